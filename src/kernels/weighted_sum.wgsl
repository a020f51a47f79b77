// weighted_sum: dst[row] = sum_s weights[row, s] * src[row * n_slots + s], with weights of 1 where there are none
// twin: experts::sum_twin
// shapes: src [n_rows * n_slots, width], weights [n_rows, n_slots], dst [n_rows, width]
// grid: one invocation for 4 columns (x, y), rows (z)
// needs: nothing
// numerics: |error| <= (n_slots + 1) eps sum |w x|, eps = 2^-23
// source: the definition

struct Params {
    width: u32,
    stride: u32,         // elements from a row of src and of dst to the next
    n_slots: u32,
    weights_stride: u32, // elements from a row of weights to the next; 0 where there are none
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;       // [n_rows * n_slots, stride]
@group(0) @binding(3) var<storage, read> weights: array<f32>;         // [n_rows, weights_stride]
@group(0) @binding(4) var<storage, read_write> dst: array<vec4<f32>>; // [n_rows, stride]

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
    let row = workgroup.z;
    let stride = p.stride / 4u;
    var sum = vec4<f32>(0.0);
    for (var slot = 0u; slot < p.n_slots; slot++) {
        let weight = select(weights[row * p.weights_stride + slot], 1.0, p.weights_stride == 0u);
        sum += weight * src[(row * p.n_slots + slot) * stride + quad];
    }
    dst[row * stride + quad] = sum;
}
