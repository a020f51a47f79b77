// Rounding to int8 with a scale for each unit of 32 elements.

// The inverse of a unit's scale, from its largest magnitude; 0 where that is too small for one. It is
// 127 / max, rounded down to 16 bits by whole numbers, so that every device has the same one. The
// exponent is held where this and its inverse are normal numbers. Not a number where a value is not finite, so
// that all products with the unit say so.
fn inverse_scale(max_size: f32) -> f32 {
    let bits = bitcast<u32>(max_size);
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    let exponent = clamp(bits >> 23u, 10u, 240u);
    let inverse = f32((127u << 24u) / ((mantissa >> 8u) + 1u)) * bitcast<f32>((245u - exponent) << 23u); // 2^(118 - exponent)
    let finite = select(bitcast<u32>(inverse), 0u, bits < (10u << 23u)); // below 2^-117
    return bitcast<f32>(select(finite, bits | 0x7fc00000u, bits >= 0x7f800000u));
}

fn quantize4(value: vec4<f32>, inverse: f32) -> vec4<i32> {
    return vec4<i32>(clamp(round(value * inverse), vec4(-127.0), vec4(127.0)));
}

// The scale and scale * sum of a unit.
fn unit_scales(inverse: f32, sum: i32) -> vec2<f32> {
    let bits = bitcast<u32>(inverse);
    if bits == 0u || bits >= 0x7f800000u {
        return vec2(inverse);
    }
    let scale = 1.0 / inverse;
    return vec2(scale, scale * f32(sum));
}

