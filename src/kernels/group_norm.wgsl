// group_norm: dst = src / sqrt(mean(src^2) + eps) * weight over each group of a row, which has weights of its own
// twin: group_norm::twin
// shapes: src, dst [n_rows, n_groups, group], weight [n_groups, group]
// grid: one workgroup a group (x, y), rows (z)
// needs: nothing; subgroups where there are any
// numerics: within 2e-6 of each result; |src| up to 1e15
// source: arXiv:2405.21060, section 7.3

struct Params {
    group: u32,
    n_groups: u32,
    stride: u32, // elements from a row to the next
    eps: f32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<f32>;       // [n_rows, stride]
@group(0) @binding(3) var<storage, read> weight: array<f32>;    // [n_groups, group]
@group(0) @binding(4) var<storage, read_write> dst: array<f32>; // [n_rows, stride]

const WORKGROUP = 256u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = workgroup.y * n_workgroups.x + workgroup.x;
    if group >= p.n_groups {
        return;
    }
    let start = workgroup.z * p.stride + group * p.group;
    var squares = 0.0;
    for (var i = lane; i < p.group; i += WORKGROUP) {
        squares += src[start + i] * src[start + i];
    }
    let scale = 1.0 / sqrt(workgroup_sum(squares, lane) / f32(p.group) + p.eps);
    for (var i = lane; i < p.group; i += WORKGROUP) {
        dst[start + i] = src[start + i] * scale * weight[group * p.group + i];
    }
}
