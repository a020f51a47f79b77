// map: dst = function(src), of each element for itself
// twin: map::twin
// shapes: src, dst [n_rows, width]
// grid: one invocation for 4 columns (x, y), rows (z)
// needs: nothing
// numerics: within 2e-6 of each result, and of |src| where the function is GELU or SiLU
// source: arXiv:2408.00118, section 2 (soft cap); common/activation.wgsl

struct Params {
    width: u32,
    stride: u32,   // elements from a row to the next
    function: u32, // SCALE, SOFT_CAP, SIGMOID, or behind them the number of an activation
    value: f32,    // the factor or the cap
}

const SCALE = 0u;
const SOFT_CAP = 1u;
const SIGMOID = 2u;
const FIRST_ACTIVATION = 3u;

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;       // [n_rows, stride]
@group(0) @binding(3) var<storage, read_write> dst: array<vec4<f32>>; // [n_rows, stride]

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
    var value = map(src[at]);
    if p.function == SIGMOID {
        let columns = vec4(quad * 4u) + vec4(0u, 1u, 2u, 3u);
        // What is not a number stays so: max makes a number of it.
        value = select(sigmoid(src[at]), src[at], is_nan(src[at]));
        value = select(vec4(0.0), value, columns < vec4(p.width));
    }
    dst[at] = value;
}

// Zero of zero, so that the padding stays.
fn map(x: vec4<f32>) -> vec4<f32> {
    if p.function == SCALE {
        return x * p.value;
    }
    if p.function == SOFT_CAP {
        return vec4(soft_cap(x.x, p.value), soft_cap(x.y, p.value), soft_cap(x.z, p.value), soft_cap(x.w, p.value));
    }
    return activate(p.function - FIRST_ACTIVATION, x);
}
