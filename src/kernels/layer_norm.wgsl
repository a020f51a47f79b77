// layer_norm: dst = (src - mean(src)) / sqrt(variance(src) + eps) * weight (+ bias), over each group of a row
// twin: layer_norm::twin
// shapes: src, dst [n_rows, n_groups, group], weight, bias [n_weight]; n_weight is a multiple of group, and group of 4
//   where n_groups > 1
// grid: one workgroup a group (x, y), rows (z)
// needs: nothing; subgroups where there are any
// numerics: within 4e-6 * (largest |(src - mean) / sqrt(..) * weight| of the group + |bias|) where |mean| is at most the
//   deviation; |src| up to 1e15
// source: arXiv:1607.06450, equation 4

struct Params {
    group: u32,
    n_groups: u32,
    stride: u32,   // elements from a row to the next
    n_weight: u32, // weights, which the groups of a row take in turn
    eps: f32,
    @size(12) has_bias: u32, // where it is 0 any buffer may be bound for bias
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;       // [n_rows, stride]
@group(0) @binding(3) var<storage, read> weight: array<vec4<f32>>;    // [n_weight], padded with zeros
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;      // [n_weight], likewise
@group(0) @binding(5) var<storage, read_write> dst: array<vec4<f32>>; // [n_rows, stride]

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
    let start = (workgroup.z * p.stride + group * p.group) / 4u;
    let weight_start = group * p.group % p.n_weight / 4u;
    let n_quads = (p.group + 3u) / 4u;

    var sum = 0.0; // the padding adds zeros
    for (var quad = lane; quad < n_quads; quad += WORKGROUP) {
        sum += dot(src[start + quad], vec4(1.0));
    }
    let mean = workgroup_sum(sum, lane) / f32(p.group);
    var squares = 0.0;
    for (var quad = lane; quad < n_quads; quad += WORKGROUP) {
        let columns = vec4(quad * 4u) + vec4(0u, 1u, 2u, 3u);
        let centred = select(vec4(0.0), src[start + quad] - mean, columns < vec4(p.group));
        squares += dot(centred, centred);
    }
    let variance = workgroup_sum(squares, lane) / f32(p.group);
    let scale = 1.0 / sqrt(variance + p.eps);
    for (var quad = lane; quad < n_quads; quad += WORKGROUP) {
        var value = (src[start + quad] - mean) * scale * weight[weight_start + quad];
        if p.has_bias == 1u {
            value += bias[weight_start + quad];
        }
        dst[start + quad] = value;
    }
}
