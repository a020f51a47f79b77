// Rows of 16-bit floats, each divided by a power of two of its own, which a kernel writes to its bindings
// `halves: array<vec2<u32>>`, four elements each, and `scales: array<f32>`.

// 2^exponent, of a normal number.
fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// The exponent of a row's scale: its largest magnitude comes to lie between 2^14 and 2^15. Where the row is
// nearly zero the scale is the smallest whose inverse is a normal number.
fn row_exponent(largest: f32) -> i32 {
    return max(i32(bitcast<u32>(largest) >> 23u) - 127 - 14, -126);
}

fn pack_halves(value: vec4<f32>, exponent: i32) -> vec2<u32> {
    let scaled = value * power_of_two(-exponent);
    return vec2(pack2x16float(scaled.xy), pack2x16float(scaled.zw));
}

