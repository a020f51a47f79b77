// IQ1_M: d * (2 * scale + 1) * (value + delta), with a 3-bit scale for every 16 weights and a sign of delta for
// every 8. Plane 0: the low bytes of 4 codewords a unit; plane 1: a half a unit: for each of them three high
// bits and the sign; plane 2: 2 words a block: four halves with four scales, and a part of d in the highest four
// bits; the table: a half a codeword.

struct Header {
    codewords: u32,
    highs: u32,
    table: u32,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let words = pair(planes.z + (unit >> 3u) * 2u);
    let parts = (words.xxyy >> vec4(12u, 24u, 4u, 16u)) & vec4(0xfu, 0xf0u, 0xf00u, 0xf000u);
    let d = unpack2x16float(parts.x | parts.y | parts.z | parts.w).x;
    let i = unit & 7u;
    let bits = words[i >> 2u] >> (8u * (i & 2u) + 6u * (i & 1u));
    let factors = vec2<f32>(2u * (vec2(bits, bits >> 3u) & vec2(7u)) + vec2(1u));
    return Header(word(planes.x + unit), half_bits(planes.y, unit), planes.w, d * 0.125 * factors, 0.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let high = header.highs >> (4u * quarter);
    let codeword = ((header.codewords >> (8u * quarter)) & 255u) | ((high & 7u) << 8u);
    return eight_values(header.table, codeword, (high >> 3u) & 1u);
}
