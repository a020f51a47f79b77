// add: dst = a + b
// twin: add::twin
// shapes: a, b, dst [n_rows, width]
// grid: one invocation for 4 columns (x, y), rows (z)
// needs: nothing
// numerics: exact (one rounding)
// source: the definition

struct Params {
    width: u32,
    stride: u32, // elements from a row to the next
    padding: vec2<u32>,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> a: array<vec4<f32>>;         // [n_rows, stride]
@group(0) @binding(3) var<storage, read> b: array<vec4<f32>>;         // [n_rows, stride]
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
    let at = workgroup.z * (p.stride / 4u) + quad;
    dst[at] = a[at] + b[at];
}
