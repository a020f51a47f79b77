// MXFP4: 2^(e - 128) * twice a float of 2 bits of exponent and 1 of mantissa. Plane 0: 4 words of nibbles a unit;
// plane 1: e, a byte a unit.

struct Header {
    quants: vec4<u32>,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let e = (word(planes.y + (unit >> 2u)) >> (8u * (unit & 3u))) & 255u;
    // Below 2^-126 it is zero.
    let scale = bitcast<f32>((max(e, 1u) - 1u) << 23u);
    return Header(quad(planes.x + unit * 4u), vec2(scale), 0.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let n = nibbles(header.quants[quarter]);
    let ones = vec2(0x01010101u);
    let high = (n >> vec2(2u)) & ones;
    let low = n & vec2(0x03030303u);
    // 0 to 3 stand for themselves, 4 to 7 for 4, 6, 8 and 12.
    let size = (n & vec2(0x07070707u)) + (low & (high * 3u)) + ((high & (n >> vec2(1u)) & n) << vec2(1u));
    // Bytes of 128 - size and a flipped high bit where the sign is set: no byte carries, -0 is 0.
    let signs = (n >> vec2(3u)) & ones;
    return ((size ^ (signs * 127u)) + signs) ^ (signs << vec2(7u));
}
