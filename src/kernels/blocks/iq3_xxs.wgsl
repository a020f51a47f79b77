// IQ3_XXS: d * (2 * scale + 1) / 4 * magnitude, with a 4-bit scale a unit. Plane 0: 8 codewords, a byte
// each, a unit; plane 1: a word a unit, four times 7 signs and the scale; plane 2: d, a half a block;
// the table: a word a codeword, its magnitudes.

struct Header {
    codewords: vec2<u32>,
    signs: u32,
    table: u32,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let signs = word(planes.y + unit);
    let scale = half_at(planes.z, unit >> 3u) * f32(2u * (signs >> 28u) + 1u) * 0.25;
    return Header(pair(planes.x + unit * 2u), signs, planes.w, vec2(scale), 0.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let two = header.codewords[quarter >> 1u] >> (16u * (quarter & 1u));
    let magnitudes = vec2(word(header.table + (two & 255u)), word(header.table + ((two >> 8u) & 255u)));
    return with_signs(magnitudes, even_signs(header.signs >> (7u * quarter)));
}
