// matmul: dst[row, first_row + j] = sum_i src[row, i] * weights[j, i] (+ bias[first_row + j]) (+ residual[row, first_row + j]), for many rows
// twin: matmul::twin
// shapes: src [n_rows, n_cols], weights [n_out, n_cols], residual, dst [n_rows, n_out]; n_rows is n_outputs where p.extent says so
// grid: one workgroup for 64 rows of the weights (x, y) by 64 rows of src (z)
// needs: 16384 bytes of workgroup memory
// numerics: |error| <= 4 eps (sum |w x| + |bias| + |residual|), eps = 2^-23; measured 1.0 eps over 1 to 2304 columns
// source: the definition

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
@group(0) @binding(3) var<storage, read> src: array<vec4<f32>>;     // [n_rows, src_stride] f32
@group(0) @binding(4) var<storage, read> bias: array<f32>;          // [n_out], read where has_bias
@group(0) @binding(5) var<storage, read> residual: array<f32>;      // [n_rows, dst_stride], read where has_residual
@group(0) @binding(6) var<storage, read_write> product: array<f32>; // [n_rows, dst_stride], dst without the residual, written where has_residual
@group(0) @binding(7) var<storage, read_write> dst: array<f32>;     // [n_rows, dst_stride]

// The rows of a tile of src, for outputs from `first_j` on.
fn tile_rows(tile: u32, first_j: u32) -> TileRows {
    return TileRows(tile * TILE, select(batch.n_rows, batch.n_outputs, p.extent == 1u));
}

fn n_outputs() -> u32 {
    return p.matrix.n_rows;
}

fn weight_row(output: u32) -> u32 {
    return output;
}

fn src_row(place: u32) -> u32 {
    return place;
}

fn store_sum(place: u32, output: u32, sum: f32) {
    write(place, output, sum, added(place, output));
}
