// The product of a tile of rows of src with rows of weights, by cooperative matrices. The kernel says which rows a tile
// has: fn tile_rows(tile: u32, first_j: u32) -> TileRows, of at most TILE_ROWS places, none where there is nothing to
// do; which rows of src and of dst are in these places: fn src_rows, dst_rows(places: vec4<u32>) -> vec4<u32>; the outputs
// that there are, and the rows of the shard that give them: fn n_outputs() -> u32, fn weight_row(output: u32) -> u32; which
// outputs this shard writes, and where: fn are_outputs(outputs: vec4<u32>) -> vec4<bool>, fn dst_columns(outputs:
// vec4<u32>) -> vec4<u32>; and what is added: fn biases(outputs: vec4<u32>) -> vec4<f32>, fn with_residual(value: vec4<f32>,
// at: vec4<u32>, exists: vec4<bool>) -> vec4<f32>. Its parameters have `matrix`, `src_stride`, `dst_stride` and `has_bias`,
// its bindings are `src`, `scales` and `dst`; its grid has tiles in z and TILE_OUTPUTS outputs in x, y.

// From Tile::source: SIZE, SUBGROUP_ROWS, SUBGROUP_COLUMNS, N_THREADS, TILE_ROWS, TILE_OUTPUTS, TILE_UNITS, ELEMENT, MatA,
// MatB, MatC, Element, put_src4, put_weight4, clear_sums, multiply, finish_all.

struct TileRows {
    first: u32,
    end: u32, // behind the last
}

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
    end: u32, // of the rows
}

@compute @workgroup_size(N_THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let first_j = (workgroup.y * n_workgroups.x + workgroup.x) * TILE_OUTPUTS;
    if first_j >= n_outputs() {
        return;
    }
    let rows = tile_rows(workgroup.z, first_j);
    if rows.first >= rows.end {
        return;
    }

    // Rows behind the last one repeat it, unused.
    let n_units = p.matrix.units_per_row;
    let weight_in_tile = thread % TILE_OUTPUTS;
    let weight_unit = thread / TILE_OUTPUTS % TILE_UNITS;
    let src_in_tile = thread / ROW_VECTORS;
    let vector = thread % ROW_VECTORS;
    let places = rows.first + src_in_tile + vec4(0u, 1u, 2u, 3u) * VECTOR_ROWS;
    let subgroup_row = subgroup / SUBGROUP_COLUMNS;
    let subgroup_column = subgroup % SUBGROUP_COLUMNS;
    let stage_at = subgroup_row * SIZE * STAGE_WIDTH + subgroup_column * SIZE;
    let task = Task(
        thread < TILE_OUTPUTS * TILE_UNITS,
        weight_row(min(first_j + weight_in_tile, n_outputs() - 1u)) * n_units + weight_unit,
        weight_in_tile * TILE_STRIDE + weight_unit * 32u / ELEMENT,
        src_rows(min(places, vec4(rows.end - 1u))) * (p.src_stride / 8u) + vector,
        src_in_tile * TILE_STRIDE + vector * 8u / ELEMENT,
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

    finish_all(Place(thread, stage_at, rows.first, first_j, rows.end));
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
        let places = min(rows, vec4(place.end - 1u));
        let output = min(outputs, vec4(n_outputs() - 1u));
        let row = src_rows(places);
        let at = dst_rows(places) * p.dst_stride + dst_columns(output);
        let exists = (staged < vec4(STAGE_SIZE)) & (rows < vec4(place.end)) & are_outputs(outputs);
        var value = vec4(stage[source.x], stage[source.y], stage[source.z], stage[source.w])
            * vec4(scales[row.x], scales[row.y], scales[row.z], scales[row.w]);
        if p.has_bias == 1u {
            value += biases(output);
        }
        value = with_residual(value, at, exists);
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
