// matmul_coop: dst[row, first_row + j] = scales[row] * sum_i src[row, i] * weights[j, i] (+ bias[first_row + j]) (+ residual[row, first_row + j]), for many rows
// twin: matmul::twin
// shapes: src [n_rows, n_cols], weights [n_out, n_cols], residual, dst [n_rows, n_out]; n_rows is n_outputs where p.extent says so
// grid: one workgroup for TILE rows of the weights (x, y) by TILE rows of src (z)
// needs: cooperative matrices of 16-bit floats with sums in f32, subgroups of one size; weights below 65504
// numerics: |error| <= 2^-10 (sum |w x| + |bias| + |residual|) + 2^-25 sum |x|, as f16_rows and the weights are rounded; measured 0.18 of it over 1 to
//           2304 columns
// source: the definition

// From Tile::source: SIZE, SUBGROUP_ROWS, SUBGROUP_COLUMNS, TILE, ELEMENT, MatA, MatB, MatC, Element, put,
// clear_sums, multiply, finish_all.

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
@group(0) @binding(3) var<storage, read> src: array<vec4<f16>>;     // [n_rows, src_stride] f16, as f16_rows gives it
@group(0) @binding(4) var<storage, read> scales: array<f32>;        // [n_rows]
@group(0) @binding(5) var<storage, read> bias: array<f32>;          // [n_out], read where has_bias
@group(0) @binding(6) var<storage, read> residual: array<f32>;      // [n_rows, dst_stride], read where has_residual
@group(0) @binding(7) var<storage, read_write> product: array<f32>; // [n_rows, dst_stride], dst without the residual, written where has_residual
@group(0) @binding(8) var<storage, read_write> dst: array<f32>;     // [n_rows, dst_stride]

const N_THREADS = 2u * TILE;
// Of a tile of one unit, in elements; 16 bytes of padding put neighbouring rows into other memory banks.
const TILE_STRIDE = 40u / ELEMENT;
const TILE_LENGTH = TILE * TILE_STRIDE;

// Two tiles each: one is filled while the other is read.
var<workgroup> src_tiles: array<Element, 2u * TILE_LENGTH>;
var<workgroup> weight_tiles: array<Element, 2u * TILE_LENGTH>;

// One matrix of each subgroup, side by side: [SUBGROUP_ROWS * SIZE, STAGE_WIDTH].
const STAGE_WIDTH = SUBGROUP_COLUMNS * SIZE;
const STAGE_ROWS = SUBGROUP_ROWS * SIZE;
var<workgroup> stage: array<f32, STAGE_ROWS * STAGE_WIDTH>;

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
    let first_j = (workgroup.y * n_workgroups.x + workgroup.x) * TILE;
    let first_row = workgroup.z * TILE;
    if first_row >= n_rows || first_j >= p.matrix.n_rows {
        return;
    }

    // A thread brings half a unit of a row of the weights and four vectors of src to a tile. Rows behind
    // the last one repeat it, unused.
    let n_units = p.matrix.units_per_row;
    let weight_row = thread / 2u;
    let quarter = thread % 2u * 2u;
    let weight_start = min(first_j + weight_row, p.matrix.n_rows - 1u) * n_units;
    let put_weight = weight_row * TILE_STRIDE + quarter * 8u / ELEMENT;
    let src_row = thread / 8u;
    let vector = thread % 8u;
    let src_rows = first_row + vec4(src_row) + vec4(0u, 1u, 2u, 3u) * (TILE / 4u);
    let src_starts = min(src_rows, vec4(n_rows - 1u)) * (p.src_stride / 4u) + vector;
    let put_src = src_row * TILE_STRIDE + vector * 4u / ELEMENT;

    let subgroup_row = subgroup / SUBGROUP_COLUMNS;
    let subgroup_column = subgroup % SUBGROUP_COLUMNS;
    let read_src = subgroup_row * SIZE * TILE_STRIDE;
    let read_weight = subgroup_column * SIZE * TILE_STRIDE;
    let stage_at = subgroup_row * SIZE * STAGE_WIDTH + subgroup_column * SIZE;

    for (var i = thread; i < STAGE_ROWS * STAGE_WIDTH; i += N_THREADS) {
        stage[i] = 0.0;
    }
    let first_header = unit_header(weight_start);
    put_eight(put_weight, decode8(first_header, quarter));
    put_eight(put_weight + 8u / ELEMENT, decode8(first_header, quarter + 1u));
    put_four(put_src, src[src_starts.x], src[src_starts.y], src[src_starts.z], src[src_starts.w]);
    workgroupBarrier();
    clear_sums(stage_at);

    var full = 0u; // where the tile that can be read begins
    for (var unit = 0u; unit < n_units; unit++) {
        // The next unit is on its way from memory while this one is multiplied; the last one again at the end.
        let next = min(unit + 1u, n_units - 1u);
        let src0 = src[src_starts.x + next * 8u];
        let src1 = src[src_starts.y + next * 8u];
        let src2 = src[src_starts.z + next * 8u];
        let src3 = src[src_starts.w + next * 8u];
        let header = unit_header(weight_start + next);
        let low = decode8(header, quarter);
        let high = decode8(header, quarter + 1u);
        multiply(full + read_src, full + read_weight);
        full = TILE_LENGTH - full;
        put_four(full + put_src, src0, src1, src2, src3);
        put_eight(full + put_weight, low);
        put_eight(full + put_weight + 8u / ELEMENT, high);
        workgroupBarrier();
    }

    finish_all(Place(thread, stage_at, first_row, first_j, n_rows));
}

fn put_eight(at: u32, eight: Eight) {
    put_weight4(at, vec4<f16>(eight.low));
    put_weight4(at + 4u / ELEMENT, vec4<f16>(eight.high));
}

// Vectors of four rows, TILE / 4 apart.
fn put_four(at: u32, src0: vec4<f16>, src1: vec4<f16>, src2: vec4<f16>, src3: vec4<f16>) {
    put_src4(at, src0);
    put_src4(at + TILE_LENGTH / 4u, src1);
    put_src4(at + TILE_LENGTH / 2u, src2);
    put_src4(at + TILE_LENGTH / 4u * 3u, src3);
}

// Stores what there is of the matrix that every subgroup has at a row and a column of its block.
fn finish(sum: MatC, block_row: u32, block_column: u32, place: Place) {
    let at = place.stage_at;
    let stride = STAGE_WIDTH;
    coopStoreT(sum, &stage[at], stride);
    workgroupBarrier();
    let first_row = place.first_row + block_row * STAGE_ROWS;
    let first_output = place.first_j + block_column * STAGE_WIDTH;
    for (var i = place.thread; i < STAGE_ROWS * STAGE_WIDTH; i += N_THREADS) {
        let row = first_row + i / STAGE_WIDTH;
        let output = first_output + i % STAGE_WIDTH;
        if row < place.n_rows && output < p.matrix.n_rows {
            write(row, output, stage[i] * scales[row], added(row, output));
        }
    }
    workgroupBarrier();
}

// What is added to an output of a row: bias and residual.
fn added(row: u32, output: u32) -> vec2<f32> {
    let column = p.matrix.first_row + output;
    var value = vec2<f32>(0.0);
    if p.has_bias == 1u {
        value.x = bias[column];
    }
    if p.has_residual == 1u {
        value.y = residual[row * p.dst_stride + column];
    }
    return value;
}

// The residual is added to what is rounded already, as a step of its own would.
fn write(row: u32, output: u32, sum: f32, addend: vec2<f32>) {
    let at = row * p.dst_stride + p.matrix.first_row + output;
    let value = sum + addend.x;
    if p.has_residual == 1u {
        product[at] = value;
    }
    dst[at] = value + addend.y;
}
