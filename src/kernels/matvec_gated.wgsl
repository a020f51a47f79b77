// matvec_gated: gate = src * gate_weights^T, up = src * up_weights^T, dst = activation(gate) * up, and where has_int8 int8 = dst as int8; for few rows
// twin: matmul::twin, of quantize::twin where src is int8, of rms_norm::twin before that where it is normed here, twice, then gated_activation::twin, then quantize::twin
// shapes: src [n_rows, n_cols], gate_weights, up_weights [n_out, n_cols], gate, up, dst [n_rows, n_out]
// grid: one workgroup for 32 outputs (x, y), rows of src (z)
// needs: nothing; quantised weights where src is int8 or normed; both matrices in one binding
// numerics: as matvec, then as gated_activation, then as quantize
// source: the definitions

struct Params {
    matrix: Matrix,        // gate_weights, or a shard of them
    up_planes: vec4<u32>,  // of up_weights: as many rows
    src_stride: u32,       // elements from a row to the next
    dst_stride: u32,       // of gate, up and dst
    n_pairs: u32,          // of a workgroup
    activation: u32,
    has_int8: u32,
    eps: f32,              // of the norm of src, where src is not normed yet
    writes_norm: u32,      // whether the first workgroup writes what the norm gives
    padding: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>; // both, [matrix.n_rows, n_cols] each, repacked
@group(0) @binding(4) var<storage, read_write> gate: array<f32>;    // [n_rows, dst_stride]
@group(0) @binding(5) var<storage, read_write> up: array<f32>;      // [n_rows, dst_stride]
@group(0) @binding(6) var<storage, read_write> dst: array<f32>;     // [n_rows, dst_stride]
@group(0) @binding(7) var<storage, read_write> int8: array<u32>;    // [n_rows] rows of common/quantize.wgsl, written where has_int8

const N_OUTPUTS = 32u; // of a workgroup: a unit of int8

var<workgroup> products: array<f32, WORKGROUP>;
var<workgroup> results: array<f32, N_OUTPUTS>;

// A row of gate_weights and the same one of up_weights. Rows behind the last one repeat it, unused.
fn pair_rows(pair: u32) -> Pair {
    let units = min(pair, p.matrix.n_rows - 1u) * p.matrix.units_per_row;
    return Pair(p.matrix.planes, p.up_planes, vec2(units));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    let first = (workgroup.y * n_workgroups.x + workgroup.x) * N_OUTPUTS;
    if first >= p.matrix.n_rows {
        return;
    }
    prepare_src(row, lane, p.writes_norm == 1u && first == 0u);
    products[lane] = pair_product(first, row, lane);
    workgroupBarrier();

    let first_column = p.matrix.first_row + first;
    if lane < N_OUTPUTS {
        var result = 0.0;
        if first + lane < p.matrix.n_rows {
            let of_gate = products[2u * lane];
            let of_up = products[2u * lane + 1u];
            result = activate(p.activation, vec4(of_gate)).x * linear(p.activation, vec4(of_up)).x;
            let at = row * p.dst_stride + first_column + lane;
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
        store_int8(value, row, p.dst_stride, first_column / 4u + quad, lane < N_OUTPUTS / 4u, lane);
    }
}
