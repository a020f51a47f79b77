// IQ1_S: d * (2 * scale + 1) * (value + delta), with a 3-bit scale and a sign of delta a unit. Plane 0: the low
// bytes of 4 codewords a unit; plane 1: a half a unit: their high bits, three each, the scale, the sign; plane 2:
// d, a half a block; the table: a half a codeword.

struct Header {
    codewords: u32,
    highs: u32,
    table: u32,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let highs = half_bits(planes.y, unit);
    let scale = half_at(planes.z, unit >> 3u) * f32(2u * ((highs >> 12u) & 7u) + 1u) * 0.125;
    return Header(word(planes.x + unit), highs, planes.w, vec2(scale), 0.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let high = (header.highs >> (3u * quarter)) & 7u;
    let codeword = ((header.codewords >> (8u * quarter)) & 255u) | (high << 8u);
    return eight_values(header.table, codeword, (header.highs >> 15u) & 1u);
}
