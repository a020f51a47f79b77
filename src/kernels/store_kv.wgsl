// store_kv: keys[position + row] = k[row], values[position + row] = v[row], in the type of the cache
// twin: store_kv::twin
// shapes: k [n_rows, widths.x], v [n_rows, widths.y], keys, values [capacity, width]; widths are multiples of 4
// grid: one invocation for 4 columns of both (x, y), rows (z)
// needs: nothing
// numerics: exact (F16: to the nearest, ties to even; beyond 65504 the largest of the sign)
// source: the definition

struct Params {
    widths: vec2<u32>,  // of keys and of values
    strides: vec2<u32>, // elements from a row of k and of v to the next
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;         // [n_rows, strides.x]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;         // [n_rows, strides.y]
@group(0) @binding(4) var<storage, read_write> keys: array<KvWord>;   // [capacity, widths.x]
@group(0) @binding(5) var<storage, read_write> values: array<KvWord>; // [capacity, widths.y]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let quad = (workgroup.y * n_workgroups.x + workgroup.x) * 64u + lane;
    let n_quads = p.widths / 4u;
    let row_quad = workgroup.z * (p.strides / 4u) + quad;
    let cache_quad = (batch.position + workgroup.z) * n_quads + quad;
    if quad < n_quads.x {
        keys[cache_quad.x] = kv_encode(k[row_quad.x]);
    }
    if quad < n_quads.y {
        values[cache_quad.y] = kv_encode(v[row_quad.y]);
    }
}
