// IQ2_S: d * (2 * scale + 1) / 8 * magnitude, with a 4-bit scale for every 16 weights. Plane 0: 2 words a unit: the
// low bytes of 4 codewords, and signs; plane 1: a half a unit: the high bits of the codewords, two scales;
// plane 2: d, a half a block; the table: a half a codeword.

struct Header {
    words: vec2<u32>,
    highs: u32,
    table: u32,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let bits = half_bits(planes.y, unit);
    let factors = vec2<f32>(2u * ((vec2(bits) >> vec2(8u, 12u)) & vec2(15u)) + vec2(1u));
    let d = half_at(planes.z, unit >> 3u);
    return Header(pair(planes.x + unit * 2u), bits, planes.w, d * 0.125 * factors, 0.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let high = (header.highs >> (2u * quarter)) & 3u;
    let codeword = ((header.words.x >> (8u * quarter)) & 255u) | (high << 8u);
    return with_signs(eight_magnitudes(header.table, codeword), header.words.y >> (8u * quarter));
}
