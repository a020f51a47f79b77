// take_columns: dst[row, g * length + i] = src[row, g * period + first + i], i < length
// twin: take_columns::twin
// shapes: src [n_rows, n_groups * period], dst [n_rows, n_groups * length]
// grid: one invocation a column of dst (x, y), rows (z)
// needs: nothing
// numerics: exact
// source: none

struct Params {
    width: u32,
    src_stride: u32, // elements from a row to the next
    dst_stride: u32, // likewise
    first: u32,
    length: u32,
    @size(12) period: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<f32>;       // [n_rows, src_stride]
@group(0) @binding(3) var<storage, read_write> dst: array<f32>; // [n_rows, dst_stride]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let column = (workgroup.y * n_workgroups.x + workgroup.x) * 64u + lane;
    if column >= p.width {
        return;
    }
    let source = column / p.length * p.period + p.first + column % p.length;
    dst[workgroup.z * p.dst_stride + column] = src[workgroup.z * p.src_stride + source];
}
