// IQ4_XS: d * (scale - 32) * a value for each q (iq4_values), with a scale of 6 bits for each of a block's 8
// units. Plane 0: 4 words of nibbles a unit; plane 1: 2 words a block: d and the high 2 bits of the scales, the low
// 4 bits of the scales.

struct Header {
    quants: vec4<u32>,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let block = pair(planes.y + (unit >> 3u) * 2u);
    let i = unit & 7u;
    let low = (block.y >> (4u * i)) & 15u;
    let high = (block.x >> (16u + 2u * i)) & 3u;
    let scale = unpack2x16float(block.x).x * (f32(low | (high << 4u)) - 32.0);
    return Header(quad(planes.x + unit * 4u), vec2(scale), 0.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    return iq4_values(nibbles(header.quants[quarter]));
}
