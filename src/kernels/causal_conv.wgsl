// causal_conv: dst[row, c] = f(sum_t weight[c, t] * src[row + t + 1 - n_taps, c] (+ bias[c])); rows in front of the batch
//   are those of state, zeros at position 0, which becomes the last n_taps - 1 rows
// twin: causal_conv::twin
// shapes: src, dst [n_rows, n_channels], weight [n_channels, n_taps], bias [n_channels], state [n_taps - 1, n_channels]; n_taps
//   is 2 to 4
// grid: one invocation a channel (x, y), which goes through all rows
// needs: nothing
// numerics: within 1e-6 * (sum_t |weight * src| + |bias|); state is exact
// source: arXiv:2312.00752, section 3.4; llama.cpp, ggml_ssm_conv

struct Params {
    n_channels: u32,
    stride: u32, // elements from a row to the next
    n_taps: u32,
    activation: u32,
    @size(16) has_bias: u32, // where it is 0 any buffer may be bound for bias
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<f32>;         // [n_rows, stride]
@group(0) @binding(3) var<storage, read> weight: array<f32>;      // [n_channels, n_taps]
@group(0) @binding(4) var<storage, read> bias: array<f32>;        // [n_channels]
@group(0) @binding(5) var<storage, read_write> state: array<f32>; // [n_taps - 1, n_channels]
@group(0) @binding(6) var<storage, read_write> dst: array<f32>;   // [n_rows, stride]

const WORKGROUP = 64u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) n_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let channel = (workgroup.y * n_workgroups.x + workgroup.x) * WORKGROUP + lane;
    if channel >= p.n_channels {
        return;
    }
    // The newest row is the last; where there are fewer than 4 taps the first ones are zero.
    var taps = vec4(0.0);
    var window = vec4(0.0);
    for (var tap = 0u; tap < p.n_taps; tap += 1u) {
        taps = vec4(taps.yzw, weight[channel * p.n_taps + tap]);
        if tap > 0u && batch.position > 0u {
            window = vec4(window.yzw, state[(tap - 1u) * p.n_channels + channel]);
        }
    }
    var addend = 0.0;
    if p.has_bias == 1u {
        addend = bias[channel];
    }
    for (var row = 0u; row < batch.n_rows; row += 1u) {
        let at = row * p.stride + channel;
        window = vec4(window.yzw, src[at]);
        dst[at] = activate(p.activation, vec4(dot(taps, window) + addend)).x;
    }
    for (var kept = 0u; kept + 1u < p.n_taps; kept += 1u) {
        state[kept * p.n_channels + channel] = window[5u - p.n_taps + kept];
    }
}
