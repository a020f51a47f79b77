// IQ2_XS: d * (2 * scale + 1) / 8 * magnitude, with a 4-bit scale for every 16 weights. Plane 0: 2 words a
// unit: 4 times a codeword of 9 bits and its 7 signs; plane 1: two scales, a byte a unit; plane 2: d, a half a
// block; the table: a half a codeword.

struct Header {
    words: vec2<u32>,
    table: u32,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let scales = word(planes.y + (unit >> 2u)) >> (8u * (unit & 3u));
    let factors = vec2<f32>(2u * (vec2(scales, scales >> 4u) & vec2(15u)) + vec2(1u));
    let d = half_at(planes.z, unit >> 3u);
    return Header(pair(planes.x + unit * 2u), planes.w, d * 0.125 * factors, 0.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let bits = header.words[quarter >> 1u] >> (16u * (quarter & 1u));
    return with_signs(eight_magnitudes(header.table, bits & 511u), even_signs(bits >> 9u));
}
