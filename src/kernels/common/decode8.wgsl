// The weights of a quantised type as floats: scale * q + offset, for kernels that do not compute with
// the integers.
fn decode8(header: Header, quarter: u32) -> Eight {
    let q = packed8(header, quarter);
    let scale = select(header.scale.x, header.scale.y, quarter >= 2u);
    let offset = offset_of(header, quarter);
    return Eight(floats(q.x) * scale + offset, floats(q.y) * scale + offset);
}

// Four signed bytes as floats. Conversions of integers are slow on many GPUs; as a 16-bit float
// 0x6400 + n is 1024 + n, exactly, and n is a byte + 128.
fn floats(bytes: u32) -> vec4<f32> {
    let even = unpack2x16float((bytes & 0x00ff00ffu) ^ 0x64806480u);
    let odd = unpack2x16float(((bytes >> 8u) & 0x00ff00ffu) ^ 0x64806480u);
    return vec4(even.x, odd.x, even.y, odd.y) - 1152.0;
}
