// IQ3_S: d * (2 * scale + 1) * magnitude, with a 4-bit scale a unit. Plane 0: the low bytes of 8 codewords a
// unit; plane 1: a word of signs a unit; plane 2: 7 halves a block: d, two of scales, and the high bits of
// its codewords, two units a half; the table: a word a codeword, its magnitudes.

struct Header {
    codewords: vec2<u32>,
    highs: u32,
    signs: u32,
    table: u32,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let block = (unit >> 3u) * 7u;
    let i = unit & 7u;
    let scale = (half_bits(planes.z, block + 1u + (i >> 2u)) >> (4u * (i & 3u))) & 15u;
    let highs = half_bits(planes.z, block + 3u + (i >> 1u)) >> (8u * (i & 1u));
    return Header(
        pair(planes.x + unit * 2u),
        highs,
        word(planes.y + unit),
        planes.w,
        vec2(half_at(planes.z, block) * f32(2u * scale + 1u)),
        0.0,
    );
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let two = header.codewords[quarter >> 1u] >> (16u * (quarter & 1u));
    let highs = header.highs >> (2u * quarter);
    let first = (two & 255u) | ((highs & 1u) << 8u);
    let second = ((two >> 8u) & 255u) | ((highs & 2u) << 7u);
    let magnitudes = vec2(word(header.table + first), word(header.table + second));
    return with_signs(magnitudes, header.signs >> (8u * quarter));
}
