// The bits of floats as integers in the order of the floats. Both zeros are one, and 0 is below every
// number: only one of those that are not numbers has it.
fn ordered(bits: vec4<u32>) -> vec4<u32> {
    let is_negative = bits > vec4<u32>(0x80000000u);
    return select(bits | vec4<u32>(0x80000000u), ~bits, is_negative);
}

// The float whose bits `ordered` made into `key`.
fn unordered(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key ^ 0x80000000u, key >= 0x80000000u));
}

