// weigh_slots: dst[row * n_slots + s] = weights[row, s] * src[row]
// twin: experts::weigh_twin
// shapes: src [n_rows, width], weights [n_rows, n_slots], dst [n_rows * n_slots, width]
// grid: one invocation for 4 columns (x, y), rows of dst (z)
// needs: nothing
// numerics: exact (one rounding)
// source: the definition

struct Params {
    width: u32,
    stride: u32,         // elements from a row of src and of dst to the next
    n_slots: u32,
    weights_stride: u32, // elements from a row of weights to the next
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;       // [n_rows, stride]
@group(0) @binding(3) var<storage, read> weights: array<f32>;         // [n_rows, weights_stride]
@group(0) @binding(4) var<storage, read_write> dst: array<vec4<f32>>; // [n_rows * n_slots, stride]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let quad = (workgroup.y * n_workgroups.x + workgroup.x) * 64u + lane;
    if quad >= (p.width + 3u) / 4u {
        return;
    }
    let row = workgroup.z / p.n_slots;
    let slot = workgroup.z % p.n_slots;
    let stride = p.stride / 4u;
    dst[workgroup.z * stride + quad] = weights[row * p.weights_stride + slot] * src[row * stride + quad];
}
