// f16_rows: dst[row, i] = src[row, i] / scales[row], in 16-bit floats; scales[row] is the power of two that puts
//           the row's largest magnitude between 2^14 and 2^15
// twin: f16_rows::twin
// shapes: src, dst [n_rows, width], scales [n_rows]; n_rows is n_outputs where p.extent says so
// grid: one workgroup a row (z)
// needs: 16-bit floats; subgroups where there are any
// numerics: scales exact; |error| of dst <= 2^-10 |dst| + 2^-24 (drivers may truncate), measured 2^-11 |dst|
// source: the definition

struct Params {
    stride: u32, // elements from a row of src and dst to the next
    extent: u32, // 0: batch.n_rows rows, 1: batch.n_outputs rows
    padding: vec2<u32>,
}

@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> src: array<vec4<f32>>;         // [n_rows, stride]
@group(0) @binding(3) var<storage, read_write> dst: array<vec4<f16>>;   // [n_rows, stride]
@group(0) @binding(4) var<storage, read_write> scales: array<f32>;      // [n_rows]

// 2^exponent, of a normal number.
fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.z;
    if row >= select(batch.n_rows, batch.n_outputs, p.extent == 1u) {
        return;
    }
    let n_quads = p.stride / 4u; // the padding stays zero
    let start = row * n_quads;

    var largest = vec4(0.0);
    for (var quad = lane; quad < n_quads; quad += WORKGROUP) {
        largest = max(largest, abs(src[start + quad]));
    }
    let of_lane = max(max(largest.x, largest.y), max(largest.z, largest.w));
    let of_row = workgroup_max(of_lane, lane);
    // Where the row is nearly zero the scale is the smallest whose inverse is a normal number.
    let exponent = max(i32(bitcast<u32>(of_row) >> 23u) - 127 - 14, -126);
    let inverse = power_of_two(-exponent);
    for (var quad = lane; quad < n_quads; quad += WORKGROUP) {
        dst[start + quad] = vec4<f16>(src[start + quad] * inverse);
    }
    if lane == 0u {
        scales[row] = power_of_two(exponent);
    }
}
