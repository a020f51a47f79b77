// quantize: int8 = round(src / scale) in -127 ..= 127, with a scale for each unit of 32 elements of a row
// twin: quantize::twin
// shapes: src [n_rows, width], int8 [n_rows] rows of common/quantize.wgsl
// grid: one invocation for 4 elements (x, y), rows (z)
// needs: nothing
// numerics: the quants are the twin's, bit for bit; |scale - the twin's| <= 3 eps scale (one division), eps = 2^-23
// source: the definition below

struct Params {
    stride: u32,             // elements from a row to the next
    @size(12) n_slots: u32,  // rows for each of batch.n_rows
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;   // [n_rows, stride] f32
@group(0) @binding(3) var<storage, read_write> int8: array<u32>;  // [n_rows] rows of common/quantize.wgsl

const WORKGROUP = 64u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    if row >= batch.n_rows * p.n_slots {
        return;
    }
    let n_quads = p.stride / 4u;
    let quad = (workgroup.y * n_workgroups.x + workgroup.x) * WORKGROUP + lane;
    let value = src[row * n_quads + min(quad, n_quads - 1u)];
    store_int8(value, row, p.stride, quad, quad < n_quads, lane);
}
