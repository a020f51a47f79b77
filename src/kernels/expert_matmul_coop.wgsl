// expert_matmul_coop: dst[slot, j] = scales[row] * sum_i src[row, i] * weights[e * n_out + j, i] (+ bias[e * n_out + j]),
//   row = slot / slots_per_src, e the expert of the slot; for many rows
// twin: experts::matmul_twin
// shapes: src [n_slots / slots_per_src, n_cols], weights [n_expert * n_out, n_cols], tiles as common/expert_tiles.wgsl says,
//   dst [n_slots, n_out], n_slots = n_rows * n_chosen
// grid: one workgroup for TILE_OUTPUTS rows of an expert's weights (x, y), tiles of at most TILE_ROWS slots (z), as many as
//   there may be
// needs: cooperative matrices of 16-bit floats with sums in f32, subgroups of one size; weights below 65504
// numerics: as matmul_coop
// source: the definition

struct Params {
    matrix: Matrix,
    src_stride: u32,    // elements from a row to the next
    dst_stride: u32,
    n_out: u32,         // rows of an expert
    has_bias: u32,
    slots_per_src: u32,
    @size(12) order_start: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>; // [matrix.n_rows, n_cols], repacked
@group(0) @binding(3) var<storage, read> src: array<vec4<u32>>;     // [n_slots / slots_per_src, src_stride] f16, as f16_rows gives it
@group(0) @binding(4) var<storage, read> scales: array<f32>;        // [n_slots / slots_per_src]
@group(0) @binding(5) var<storage, read> tiles: array<u32>;
@group(0) @binding(6) var<storage, read> bias: array<f32>;          // [n_expert * n_out], read where has_bias
@group(0) @binding(7) var<storage, read_write> dst: array<f32>;     // [n_slots, dst_stride]

fn tile_rows(tile: u32, first_j: u32) -> TileRows {
    return expert_tile(tile, first_j, TILE_OUTPUTS);
}

fn dst_rows(places: vec4<u32>) -> vec4<u32> {
    return vec4(slot_at(places.x), slot_at(places.y), slot_at(places.z), slot_at(places.w));
}

fn src_rows(places: vec4<u32>) -> vec4<u32> {
    return dst_rows(places) / p.slots_per_src;
}

fn are_outputs(outputs: vec4<u32>) -> vec4<bool> {
    let rows = first_weight + vec4<i32>(outputs);
    return (outputs < vec4(p.n_out)) & (rows >= vec4(0)) & (rows < vec4(i32(p.matrix.n_rows)));
}

fn dst_columns(outputs: vec4<u32>) -> vec4<u32> {
    return outputs;
}

fn biases(outputs: vec4<u32>) -> vec4<f32> {
    let at = tile_expert * p.n_out + outputs;
    return vec4(bias[at.x], bias[at.y], bias[at.z], bias[at.w]);
}

fn with_residual(value: vec4<f32>, at: vec4<u32>, exists: vec4<bool>) -> vec4<f32> {
    return value;
}
