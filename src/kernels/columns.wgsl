// columns: dst[row] = src[row, first..first + width]
// twin: columns::twin
// shapes: src [n_rows, at least first + width], dst [n_rows, width]
// grid: one invocation a column (x, y), rows (z)
// needs: nothing
// numerics: exact
// source: the definition

struct Params {
    width: u32,
    stride: u32,     // elements from a row of dst to the next
    src_stride: u32, // and of src
    first: u32,      // column of src
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<f32>;       // [n_rows, src_stride]
@group(0) @binding(3) var<storage, read_write> dst: array<f32>; // [n_rows, stride]

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
    let row = workgroup.z;
    dst[row * p.stride + column] = src[row * p.src_stride + p.first + column];
}
