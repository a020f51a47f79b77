// The weights of a quantised type as 16-bit floats: scale * q + offset.
fn decode8_f16(header: Header, quarter: u32) -> EightHalves {
    let q = packed8(header, quarter);
    let scale = select(header.scale.x, header.scale.y, quarter >= 2u);
    // What one 16-bit float cannot hold of them, a second one does: weights near zero stay precise.
    let terms = vec2(scale, offset_of(header, quarter));
    let large = vec2<f16>(terms);
    let small = vec2<f16>(terms - vec2<f32>(large));
    return EightHalves(weights4(q.x, large, small), weights4(q.y, large, small));
}

// Four signed bytes, in 16-bit arithmetic from the start: 0x6400 + n is 1024 + n, exactly, and n a byte + 128.
fn weights4(bytes: u32, large: vec2<f16>, small: vec2<f16>) -> vec4<f16> {
    let even = halves((bytes & 0x00ff00ffu) ^ 0x64806480u) - 1152.0h;
    let odd = halves(((bytes >> 8u) & 0x00ff00ffu) ^ 0x64806480u) - 1152.0h;
    let evens = fma(even, large.xx, large.yy) + fma(even, small.xx, small.yy);
    let odds = fma(odd, large.xx, large.yy) + fma(odd, small.xx, small.yy);
    return vec4(evens.x, odds.x, evens.y, odds.y);
}
