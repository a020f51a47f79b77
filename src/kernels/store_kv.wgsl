// store_kv: keys[position + row] = k[row], values[position + row] = v[row], in the type of the cache
// twin: store_kv::twin
// shapes: k, v [n_rows, width], keys, values [capacity, width]; width = n_head_kv * head_dim is a multiple of 4
// grid: one invocation for 4 columns (x, y), rows (z)
// needs: nothing
// numerics: exact (F16: to the nearest, ties to even; beyond 65504 the largest of the sign)
// source: the definition

struct Params {
    width: u32,
    stride: u32, // elements from a row of k and v to the next
    padding: vec2<u32>,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;         // [n_rows, stride]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;         // [n_rows, stride]
@group(0) @binding(4) var<storage, read_write> keys: array<KvWord>;   // [capacity, width]
@group(0) @binding(5) var<storage, read_write> values: array<KvWord>; // [capacity, width]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let quad = (workgroup.y * n_workgroups.x + workgroup.x) * 64u + lane;
    let n_quads = p.width / 4u;
    if quad >= n_quads {
        return;
    }
    let row_quad = workgroup.z * (p.stride / 4u) + quad;
    let cache_quad = (batch.position + workgroup.z) * n_quads + quad;
    keys[cache_quad] = kv_encode(k[row_quad]);
    values[cache_quad] = kv_encode(v[row_quad]);
}
