// expert_gated: of the expert e of each slot gate = src * gate_weights[e]^T (+ bias), up = src * up_weights[e]^T (+ bias), dst = activation(gate) * up, and where has_int8 int8 = dst as int8; for few rows
// twin: experts::matmul_twin, of quantize::twin where src is int8, twice, then gated_activation::twin, then quantize::twin
// shapes: src [n_slots / slots_per_src, n_cols], gate_weights, up_weights [n_expert * n_out, n_cols], ids [n_rows, n_chosen],
//   gate, up, dst [n_slots, n_out], n_slots = n_rows * n_chosen
// grid: one workgroup for 32 outputs (x, y), slots (z)
// needs: nothing; quantised weights where src is int8; both matrices in one binding, and both biases
// numerics: as expert_matvec, then as gated_activation, then as quantize
// source: the definitions

struct Params {
    matrix: Matrix,       // gate_weights, all rows
    up_planes: vec4<u32>, // of up_weights: as many rows
    src_stride: u32,      // elements from a row to the next
    dst_stride: u32,      // of gate, up and dst
    n_pairs: u32,         // of a workgroup
    activation: u32,
    has_int8: u32,
    has_bias: u32,
    up_bias: u32,         // where the bias of up begins
    n_out: u32,           // rows of an expert
    n_expert: u32,
    n_chosen: u32,        // slots of a row
    chosen_stride: u32,   // elements from a row of ids to the next
    slots_per_src: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>; // both, [n_expert * n_out, n_cols] each, repacked
@group(0) @binding(4) var<storage, read> ids: array<f32>;           // [n_rows, chosen_stride]
@group(0) @binding(5) var<storage, read> bias: array<f32>;          // both, [n_expert * n_out] each, read where has_bias
@group(0) @binding(6) var<storage, read_write> gate: array<f32>;    // [n_slots, dst_stride]
@group(0) @binding(7) var<storage, read_write> up: array<f32>;      // [n_slots, dst_stride]
@group(0) @binding(8) var<storage, read_write> dst: array<f32>;     // [n_slots, dst_stride]
@group(0) @binding(9) var<storage, read_write> int8: array<u32>;    // [n_slots] rows of common/quantize.wgsl, written where has_int8

const N_OUTPUTS = 32u; // of a workgroup: a unit of int8

var<workgroup> products: array<f32, WORKGROUP>;
var<workgroup> results: array<f32, N_OUTPUTS>;

// The expert's first row.
var<private> first_row: u32;

// A row of the expert's gate_weights and the same one of its up_weights. Rows behind the last one repeat it, unused.
fn pair_rows(pair: u32) -> Pair {
    let units = (first_row + min(pair, p.n_out - 1u)) * p.matrix.units_per_row;
    return Pair(p.matrix.planes, p.up_planes, vec2(units));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let slot = workgroup.z;
    let first = (workgroup.y * n_workgroups.x + workgroup.x) * N_OUTPUTS;
    if first >= p.n_out {
        return;
    }
    let id = u32(ids[slot / p.n_chosen * p.chosen_stride + slot % p.n_chosen]);
    first_row = min(id, p.n_expert - 1u) * p.n_out;
    let is_output = lane < N_OUTPUTS && first + lane < p.n_out;
    // Loaded now, so that it is there in the end.
    var addend = vec2<f32>(0.0);
    if is_output && p.has_bias == 1u {
        let at = first_row + first + lane;
        addend = vec2(bias[at], bias[p.up_bias + at]);
    }
    products[lane] = pair_product(first, slot / p.slots_per_src, lane);
    workgroupBarrier();

    if lane < N_OUTPUTS {
        var result = 0.0;
        if is_output {
            let of_gate = products[2u * lane] + addend.x;
            let of_up = products[2u * lane + 1u] + addend.y;
            result = activate(p.activation, vec4(of_gate)).x * linear(p.activation, vec4(of_up)).x;
            let at = slot * p.dst_stride + first + lane;
            gate[at] = of_gate;
            up[at] = of_up;
            dst[at] = result;
        }
        results[lane] = result;
    }
    workgroupBarrier();
    if p.has_int8 == 1u {
        let quad = lane % (N_OUTPUTS / 4u);
        let value = vec4(results[4u * quad], results[4u * quad + 1u], results[4u * quad + 2u], results[4u * quad + 3u]);
        store_int8(value, slot, p.dst_stride, first / 4u + quad, lane < N_OUTPUTS / 4u, lane);
    }
}
