// gated_activation: dst = activation(gate) * up; where has_f16 also halves, scales = dst as rows of 16-bit floats
// twin: gated_activation::twin, f16_rows::twin
// shapes: gate, up, dst [n_rows, width], halves, scales rows of common/f16_rows.wgsl
// grid: one workgroup a row (z)
// needs: nothing; subgroups where there are any
// numerics: within 1e-6 * |gate * up| (measured 2.1e-7), also for gates of 1e30; halves as f16_rows
// source: arXiv:2002.05202

struct Params {
    width: u32,
    stride: u32, // elements from a row to the next
    activation: u32,
    has_f16: u32,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> gate: array<vec4<f32>>;         // [n_rows, stride]
@group(0) @binding(3) var<storage, read> up: array<vec4<f32>>;           // [n_rows, stride]
@group(0) @binding(4) var<storage, read_write> dst: array<vec4<f32>>;    // [n_rows, stride]
@group(0) @binding(5) var<storage, read_write> halves: array<vec2<u32>>; // [n_rows, stride] 16-bit floats, written where has_f16
@group(0) @binding(6) var<storage, read_write> scales: array<f32>;       // [n_rows], written where has_f16

const WORKGROUP = 256u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    let start = row * (p.stride / 4u);
    let n_quads = (p.width + 3u) / 4u;
    var largest = 0.0;
    for (var quad = lane; quad < n_quads; quad += WORKGROUP) {
        let value = activate(p.activation, gate[start + quad]) * linear(p.activation, up[start + quad]);
        dst[start + quad] = value;
        largest = max(largest, largest_of(value));
    }
    if p.has_f16 == 0u {
        return;
    }
    let exponent = row_exponent(workgroup_max(largest, lane));
    for (var quad = lane; quad < p.stride / 4u; quad += WORKGROUP) {
        // What this invocation wrote; zeros behind it.
        let value = select(vec4(0.0), dst[start + quad], quad < n_quads);
        halves[start + quad] = pack_halves(value, exponent);
    }
    if lane == 0u {
        scales[row] = power_of_two(exponent);
    }
}
