// Magnitudes, by their bits: these have the same order, with values that are not numbers above all, which `max`
// may drop.

fn larger(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(max(bitcast<vec4<u32>>(a), bitcast<vec4<u32>>(b)));
}

fn largest_of(value: vec4<f32>) -> f32 {
    let bits = bitcast<vec4<u32>>(value) & vec4(0x7fffffffu);
    return bitcast<f32>(max(max(bits.x, bits.y), max(bits.z, bits.w)));
}

