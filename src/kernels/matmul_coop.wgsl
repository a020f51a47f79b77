// matmul_coop: dst[row, first_row + j] = scales[row] * sum_i src[row, i] * weights[j, i] (+ bias[first_row + j]) (+ residual[row, first_row + j]), for many rows
// twin: matmul::twin
// shapes: src [n_rows, n_cols], weights [n_out, n_cols], residual, dst [n_rows, n_out]; n_rows is n_outputs where p.extent says so
// grid: one workgroup for TILE_OUTPUTS rows of the weights (x, y) by TILE_ROWS rows of src (z)
// needs: cooperative matrices of 16-bit floats with sums in f32, subgroups of one size; weights below 65504
// numerics: |error| <= 2^-10 (sum |w x| + |bias| + |residual|) + 2^-25 sum |x|, as f16_rows and the weights are rounded; measured 0.18 of it over 1 to
//           2304 columns, 0.34 where fma rounds twice
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
@group(0) @binding(3) var<storage, read> src: array<vec4<u32>>;     // [n_rows, src_stride] f16, as f16_rows gives it
@group(0) @binding(4) var<storage, read> scales: array<f32>;        // [n_rows]
@group(0) @binding(5) var<storage, read> bias: array<f32>;          // [n_out], read where has_bias
@group(0) @binding(6) var<storage, read> residual: array<f32>;      // [n_rows, dst_stride], read where has_residual
@group(0) @binding(7) var<storage, read_write> product: array<f32>; // [n_rows, dst_stride], dst without the residual, written where has_residual
@group(0) @binding(8) var<storage, read_write> dst: array<f32>;     // [n_rows, dst_stride]

// The rows of a tile of src, for outputs from `first_j` on.
fn tile_rows(tile: u32, first_j: u32) -> TileRows {
    return TileRows(tile * TILE_ROWS, select(batch.n_rows, batch.n_outputs, p.extent == 1u));
}

fn n_outputs() -> u32 {
    return p.matrix.n_rows;
}

fn weight_row(output: u32) -> u32 {
    return output;
}

fn src_rows(places: vec4<u32>) -> vec4<u32> {
    return places;
}

fn dst_rows(places: vec4<u32>) -> vec4<u32> {
    return places;
}

fn are_outputs(outputs: vec4<u32>) -> vec4<bool> {
    return outputs < vec4(p.matrix.n_rows);
}

fn dst_columns(outputs: vec4<u32>) -> vec4<u32> {
    return p.matrix.first_row + outputs;
}

fn biases(outputs: vec4<u32>) -> vec4<f32> {
    let column = dst_columns(outputs);
    return vec4(bias[column.x], bias[column.y], bias[column.z], bias[column.w]);
}

// It is added to what is rounded already, as a step of its own would.
fn with_residual(value: vec4<f32>, at: vec4<u32>, exists: vec4<bool>) -> vec4<f32> {
    if p.has_residual == 0u {
        return value;
    }
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
    return value + addend;
}
