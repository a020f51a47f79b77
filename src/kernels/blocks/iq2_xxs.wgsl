// IQ2_XXS: d * (2 * scale + 1) / 8 * magnitude, with a 4-bit scale a unit. Plane 0: 2 words a unit: 4 codewords,
// a byte each; four times 7 signs and the scale; plane 1: d, a half a block; the table: a half a codeword.

struct Header {
    words: vec2<u32>,
    table: u32,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let words = pair(planes.x + unit * 2u);
    let scale = half_at(planes.y, unit >> 3u) * f32(2u * (words.y >> 28u) + 1u) * 0.125;
    return Header(words, planes.w, vec2(scale), 0.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let codeword = (header.words.x >> (8u * quarter)) & 255u;
    let signs = even_signs(header.words.y >> (7u * quarter));
    return with_signs(eight_magnitudes(header.table, codeword), signs);
}
