// Q2_K: d * scale * q - dmin * min, with a scale and a min of 4 bits for every 16 weights. Plane 0: 2 words a
// unit (two_bits); plane 1: 4 words a block of 16 bytes, scale in the low and min in the high half;
// plane 2: d and dmin, a word a block.

struct Header {
    quants: vec2<u32>,
    scale: vec2<f32>,
    offset: vec2<f32>, // as scale
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let scales = word(planes.y + (unit >> 1u)) >> (16u * (unit & 1u));
    let d = unpack2x16float(word(planes.z + (unit >> 3u)));
    return Header(
        pair(planes.x + unit * 2u),
        d.x * vec2<f32>((vec2(scales) >> vec2(0u, 8u)) & vec2(15u)),
        -d.y * vec2<f32>((vec2(scales) >> vec2(4u, 12u)) & vec2(15u)),
    );
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    return two_bits(header.quants, quarter);
}
