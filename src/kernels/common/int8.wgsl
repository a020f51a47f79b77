// Rounding to int8 with a scale for each unit of 32 elements.

// The inverse of a unit's scale, from its largest magnitude; 0 where that is too small for one. It is
// 127 / max, rounded down to 16 bits by whole numbers, so that every device has the same one. The
// exponent is held where this and its inverse are normal numbers.
fn inverse_scale(max_size: f32) -> f32 {
    let bits = bitcast<u32>(max_size);
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    let exponent = clamp(bits >> 23u, 10u, 240u);
    let inverse = f32((127u << 24u) / ((mantissa >> 8u) + 1u)) * bitcast<f32>((245u - exponent) << 23u); // 2^(118 - exponent)
    return select(inverse, 0.0, bits < (10u << 23u)); // below 2^-117
}

fn quantize4(value: vec4<f32>, inverse: f32) -> vec4<i32> {
    return vec4<i32>(clamp(round(value * inverse), vec4(-127.0), vec4(127.0)));
}

// The scale and scale * sum of a unit.
fn unit_scales(inverse: f32, sum: i32) -> vec2<f32> {
    let scale = select(1.0 / inverse, 0.0, inverse == 0.0);
    return vec2(scale, scale * f32(sum));
}

