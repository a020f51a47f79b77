// matmul_coop: dst[row, first_row + j] = scales[row] * sum_i src[row, i] * weights[j, i] (+ bias[first_row + j]) (+ residual[row, first_row + j]), for many rows
// twin: matmul::twin
// shapes: src [n_rows, n_cols], weights [n_out, n_cols], residual, dst [n_rows, n_out]; n_rows is n_outputs where p.extent says so
// grid: one workgroup for TILE_OUTPUTS rows of the weights (x, y) by TILE_ROWS rows of src (z)
// needs: cooperative matrices of 16-bit floats with sums in f32, subgroups of one size; weights below 65504
// numerics: |error| <= 2^-10 (sum |w x| + |bias| + |residual|) + 2^-25 sum |x|, as f16_rows and the weights are rounded; measured 0.18 of it over 1 to
//           2304 columns, 0.34 where fma rounds twice
// source: the definition

// From Tile::source: SIZE, SUBGROUP_ROWS, SUBGROUP_COLUMNS, N_THREADS, TILE_ROWS, TILE_OUTPUTS, TILE_UNITS, ELEMENT, MatA,
// MatB, MatC, Element, put_src4, put_weight4, clear_sums, multiply, finish_all.

struct Params {
    matrix: Matrix,
    src_stride: u32, // elements from a row to the next
    dst_stride: u32,
    extent: u32,     // 0: batch.n_rows rows, 1: batch.n_outputs rows
    has_bias: u32,
    has_residual: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>; // [matrix.n_rows, n_cols], repacked
@group(0) @binding(3) var<storage, read> src: array<vec4<u32>>;     // [n_rows, src_stride] f16, as f16_rows gives it
@group(0) @binding(4) var<storage, read> scales: array<f32>;        // [n_rows]
@group(0) @binding(5) var<storage, read> bias: array<f32>;          // [n_out], read where has_bias
@group(0) @binding(6) var<storage, read> residual: array<f32>;      // [n_rows, dst_stride], read where has_residual
@group(0) @binding(7) var<storage, read_write> product: array<f32>; // [n_rows, dst_stride], dst without the residual, written where has_residual
@group(0) @binding(8) var<storage, read_write> dst: array<f32>;     // [n_rows, dst_stride]

// A step takes in TILE_UNITS units of each row. A thread brings one unit of the weights, or none, and N_VECTORS
// vectors of src, which are VECTOR_ROWS rows apart: 1, 2 or 4.
const ROW_VECTORS = 4u * TILE_UNITS;
const VECTOR_ROWS = N_THREADS / ROW_VECTORS;
const N_VECTORS = TILE_ROWS / VECTOR_ROWS;

// Of a tile, in elements; 16 bytes of padding put neighbouring rows into other memory banks.
const TILE_STRIDE = (32u * TILE_UNITS + 8u) / ELEMENT;
var<workgroup> src_tile: array<Element, TILE_ROWS * TILE_STRIDE>;
var<workgroup> weight_tile: array<Element, TILE_OUTPUTS * TILE_STRIDE>;

// One matrix of each subgroup, side by side: [SUBGROUP_ROWS * SIZE, STAGE_WIDTH].
const STAGE_WIDTH = SUBGROUP_COLUMNS * SIZE;
const STAGE_ROWS = SUBGROUP_ROWS * SIZE;
const STAGE_SIZE = STAGE_ROWS * STAGE_WIDTH;
var<workgroup> stage: array<f32, STAGE_SIZE>;

// What a thread does in every step.
struct Task {
    has_weights: bool,
    weight_start: u32,      // its first unit
    put_weight: u32,        // where that goes
    src_starts: vec4<u32>,  // its first vectors
    put_src: u32,
    read_src: u32,          // the tile parts that its subgroup multiplies
    read_weight: u32,
    last: u32,              // the first unit of the last step
}

struct Place {
    thread: u32,
    stage_at: u32, // of the subgroup's matrix
    first_row: u32,
    first_j: u32,
    n_rows: u32,
}

@compute @workgroup_size(N_THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let n_rows = select(batch.n_rows, batch.n_outputs, p.extent == 1u);
    let first_j = (workgroup.y * n_workgroups.x + workgroup.x) * TILE_OUTPUTS;
    let first_row = workgroup.z * TILE_ROWS;
    if first_row >= n_rows || first_j >= p.matrix.n_rows {
        return;
    }

    // Rows behind the last one repeat it, unused.
    let n_units = p.matrix.units_per_row;
    let weight_row = thread % TILE_OUTPUTS;
    let weight_unit = thread / TILE_OUTPUTS % TILE_UNITS;
    let src_row = thread / ROW_VECTORS;
    let vector = thread % ROW_VECTORS;
    let src_rows = min(first_row + src_row + vec4(0u, 1u, 2u, 3u) * VECTOR_ROWS, vec4(n_rows - 1u));
    let subgroup_row = subgroup / SUBGROUP_COLUMNS;
    let subgroup_column = subgroup % SUBGROUP_COLUMNS;
    let stage_at = subgroup_row * SIZE * STAGE_WIDTH + subgroup_column * SIZE;
    let task = Task(
        thread < TILE_OUTPUTS * TILE_UNITS,
        min(first_j + weight_row, p.matrix.n_rows - 1u) * n_units + weight_unit,
        weight_row * TILE_STRIDE + weight_unit * 32u / ELEMENT,
        src_rows * (p.src_stride / 8u) + vector,
        src_row * TILE_STRIDE + vector * 8u / ELEMENT,
        subgroup_row * SIZE * TILE_STRIDE,
        subgroup_column * SIZE * TILE_STRIDE,
        n_units - TILE_UNITS,
    );

    for (var i = thread; i < STAGE_SIZE; i += N_THREADS) {
        stage[i] = 0.0;
    }
    workgroupBarrier();
    clear_sums(stage_at);

    // Weights come from far: they are on their way for two steps, and src, which others have read, for one.
    var vectors = load_vectors(task.src_starts);
    var even = unit_header(p.matrix.planes, task.weight_start);
    var odd = unit_header(p.matrix.planes, task.weight_start + min(TILE_UNITS, task.last));
    for (var unit = 0u; unit < n_units; unit += 2u * TILE_UNITS) {
        advance(unit, &vectors, &even, task);
        if unit < task.last {
            advance(unit + TILE_UNITS, &vectors, &odd, task);
        }
    }

    finish_all(Place(thread, stage_at, first_row, first_j, n_rows));
}

// Multiplies what was loaded of a step, and loads what comes next: at the end, the last step again.
fn advance(unit: u32, vectors: ptr<function, Vectors>, header: ptr<function, Header>, task: Task) {
    let eight0 = decode8_f16(*header, 0u);
    let eight1 = decode8_f16(*header, 1u);
    let eight2 = decode8_f16(*header, 2u);
    let eight3 = decode8_f16(*header, 3u);
    workgroupBarrier();
    put_vectors(task.put_src, *vectors);
    if task.has_weights {
        put_eight(task.put_weight, eight0);
        put_eight(task.put_weight + 8u / ELEMENT, eight1);
        put_eight(task.put_weight + 16u / ELEMENT, eight2);
        put_eight(task.put_weight + 24u / ELEMENT, eight3);
    }
    workgroupBarrier();
    *vectors = load_vectors(task.src_starts + min(unit + TILE_UNITS, task.last) * 4u);
    *header = unit_header(p.matrix.planes, task.weight_start + min(unit + 2u * TILE_UNITS, task.last));
    multiply(task.read_src, task.read_weight);
}

// Eight halves each of N_VECTORS rows.
struct Vectors {
    row0: vec4<u32>,
    row1: vec4<u32>,
    row2: vec4<u32>,
    row3: vec4<u32>,
}

fn load_vectors(at: vec4<u32>) -> Vectors {
    var vectors: Vectors;
    vectors.row0 = src[at.x];
    if N_VECTORS > 1u {
        vectors.row1 = src[at.y];
    }
    if N_VECTORS > 2u {
        vectors.row2 = src[at.z];
        vectors.row3 = src[at.w];
    }
    return vectors;
}

fn put_vectors(at: u32, vectors: Vectors) {
    put_src8(at, vectors.row0);
    if N_VECTORS > 1u {
        put_src8(at + VECTOR_ROWS * TILE_STRIDE, vectors.row1);
    }
    if N_VECTORS > 2u {
        put_src8(at + 2u * VECTOR_ROWS * TILE_STRIDE, vectors.row2);
        put_src8(at + 3u * VECTOR_ROWS * TILE_STRIDE, vectors.row3);
    }
}

fn put_src8(at: u32, eight: vec4<u32>) {
    put_src4(at, vec4<f16>(halves(eight.x), halves(eight.y)));
    put_src4(at + 4u / ELEMENT, vec4<f16>(halves(eight.z), halves(eight.w)));
}

fn put_eight(at: u32, eight: EightHalves) {
    put_weight4(at, eight.low);
    put_weight4(at + 4u / ELEMENT, eight.high);
}

// Stores what there is of the matrix that every subgroup has at a row and a column of its block.
fn finish(sum: MatC, block_row: u32, block_column: u32, place: Place) {
    let stage_at = place.stage_at;
    let stride = STAGE_WIDTH;
    coopStoreT(sum, &stage[stage_at], stride);
    workgroupBarrier();
    let first_row = place.first_row + block_row * STAGE_ROWS;
    let first_output = place.first_j + block_column * STAGE_WIDTH;
    for (var i = place.thread; i < STAGE_SIZE; i += 4u * N_THREADS) {
        let staged = i + vec4(0u, 1u, 2u, 3u) * N_THREADS;
        let rows = first_row + staged / STAGE_WIDTH;
        let outputs = first_output + staged % STAGE_WIDTH;
        // All loads come before the stores: for all that a compiler knows, a load behind a store might read what
        // that wrote, and so wait for it. What is behind the last repeats it, unused.
        let source = min(staged, vec4(STAGE_SIZE - 1u));
        let row = min(rows, vec4(place.n_rows - 1u));
        let column = p.matrix.first_row + min(outputs, vec4(p.matrix.n_rows - 1u));
        let at = row * p.dst_stride + column;
        let exists = (staged < vec4(STAGE_SIZE)) & (rows < vec4(place.n_rows)) & (outputs < vec4(p.matrix.n_rows));
        var value = vec4(stage[source.x], stage[source.y], stage[source.z], stage[source.w])
            * vec4(scales[row.x], scales[row.y], scales[row.z], scales[row.w]);
        if p.has_bias == 1u {
            value += vec4(bias[column.x], bias[column.y], bias[column.z], bias[column.w]);
        }
        // It is added to what is rounded already, as a step of its own would.
        if p.has_residual == 1u {
            let addend = vec4(residual[at.x], residual[at.y], residual[at.z], residual[at.w]);
            if exists.x {
                product[at.x] = value.x;
            }
            if exists.y {
                product[at.y] = value.y;
            }
            if exists.z {
                product[at.z] = value.z;
            }
            if exists.w {
                product[at.w] = value.w;
            }
            value += addend;
        }
        if exists.x {
            dst[at.x] = value.x;
        }
        if exists.y {
            dst[at.y] = value.y;
        }
        if exists.z {
            dst[at.z] = value.z;
        }
        if exists.w {
            dst[at.w] = value.w;
        }
    }
    workgroupBarrier();
}
