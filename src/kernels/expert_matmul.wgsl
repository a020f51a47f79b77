// expert_matmul: dst[slot, j] = sum_i src[slot / slots_per_src, i] * weights[e * n_out + j, i] (+ bias[e * n_out + j]),
//   e the expert of the slot; for many rows
// twin: experts::matmul_twin
// shapes: src [n_slots / slots_per_src, n_cols], weights [n_expert * n_out, n_cols], tiles as common/expert_tiles.wgsl says,
//   dst [n_slots, n_out], n_slots = n_rows * n_chosen
// grid: one workgroup for 64 rows of an expert's weights (x, y), tiles of at most 64 slots (z), as many as there may be
// needs: 16384 bytes of workgroup memory
// numerics: |error| <= 4 eps (sum |w x| + |bias|), eps = 2^-23
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
@group(0) @binding(3) var<storage, read> src: array<vec4<f32>>;     // [n_slots / slots_per_src, src_stride] f32
@group(0) @binding(4) var<storage, read> tiles: array<u32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;          // [n_expert * n_out], read where has_bias
@group(0) @binding(6) var<storage, read_write> dst: array<f32>;     // [n_slots, dst_stride]

fn tile_rows(tile: u32, first_j: u32) -> TileRows {
    return expert_tile(tile, first_j, TILE);
}

fn src_row(place: u32) -> u32 {
    return slot_at(place) / p.slots_per_src;
}

fn store_sum(place: u32, output: u32, sum: f32) {
    let row = first_weight + i32(output);
    if row < 0 || row >= i32(p.matrix.n_rows) {
        return;
    }
    var value = sum;
    if p.has_bias == 1u {
        value += bias[tile_expert * p.n_out + output];
    }
    dst[slot_at(place) * p.dst_stride + output] = value;
}
