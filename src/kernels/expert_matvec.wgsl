// expert_matvec: dst[slot, j] = sum_i src[slot / slots_per_src, i] * weights[e * n_out + j, i] (+ bias[e * n_out + j]),
//   e the expert of the slot; for few rows
// twin: experts::matmul_twin, of quantize::twin where src is int8
// shapes: src [n_slots / slots_per_src, n_cols], weights [n_expert * n_out, n_cols], ids [n_rows, n_chosen],
//   dst [n_slots, n_out], n_slots = n_rows * n_chosen
// grid: one workgroup for n_pairs pairs of rows of an expert's weights (x, y), slots (z)
// needs: nothing; quantised weights where src is int8
// numerics: |error| <= 4 eps (sum |w x| + |bias|), eps = 2^-23, where src is int8 with |w x| + |offset x|
// source: the definition

struct Params {
    matrix: Matrix,
    src_stride: u32,    // elements from a row to the next
    dst_stride: u32,
    n_pairs: u32,       // of a workgroup
    has_bias: u32,
    n_out: u32,         // rows of an expert
    n_expert: u32,
    n_chosen: u32,      // slots of a row
    chosen_stride: u32, // elements from a row of ids to the next
    @size(16) slots_per_src: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>; // [matrix.n_rows, n_cols], repacked
@group(0) @binding(4) var<storage, read> ids: array<f32>;           // [n_rows, chosen_stride]
@group(0) @binding(5) var<storage, read> bias: array<f32>;          // [n_expert * n_out], read where has_bias
@group(0) @binding(6) var<storage, read_write> dst: array<f32>;     // [n_slots, dst_stride]

// The expert's first row, seen from the first row of the shard: it may be before that.
var<private> first_row: i32;

// Neighbours. Rows outside the shard repeat one of it, unused.
fn pair_rows(pair: u32) -> Pair {
    let rows = vec2(first_row) + vec2<i32>(2u * pair + vec2(0u, 1u));
    let inside = clamp(rows, vec2(0), vec2(i32(p.matrix.n_rows) - 1));
    return Pair(p.matrix.planes, p.matrix.planes, vec2<u32>(inside) * p.matrix.units_per_row);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let slot = workgroup.z;
    let first_pair = (workgroup.y * n_workgroups.x + workgroup.x) * p.n_pairs;
    if 2u * first_pair >= p.n_out {
        return;
    }
    let id = u32(ids[slot / p.n_chosen * p.chosen_stride + slot % p.n_chosen]);
    let expert = min(id, p.n_expert - 1u);
    let first = i32(expert * p.n_out) - i32(p.matrix.first_row);
    let last = first + i32(min(2u * (first_pair + p.n_pairs), p.n_out)) - 1;
    if last < 0 || first + i32(2u * first_pair) >= i32(p.matrix.n_rows) {
        return;
    }
    first_row = first;
    let output = 2u * first_pair + lane;
    let row_in_shard = first_row + i32(output);
    let is_inside = row_in_shard >= 0 && row_in_shard < i32(p.matrix.n_rows);
    let has_output = lane < 2u * p.n_pairs && output < p.n_out && is_inside;
    // Loaded now, so that it is there in the end.
    var addend = 0.0;
    if has_output && p.has_bias == 1u {
        addend = bias[expert * p.n_out + output];
    }
    let sum = pair_product(first_pair, slot / p.slots_per_src, lane);
    if has_output {
        dst[slot * p.dst_stride + output] = sum + addend;
    }
}
