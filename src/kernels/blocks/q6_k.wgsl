// Q6_K: d * scale * (q - 32), with a signed 8-bit scale for every 16 weights. Plane 0: 4 words of nibbles
// a unit; plane 1: 2 words a unit, where bits 2f and 2f + 1 of byte b of a word are the high bits
// of its weight 4f + b; plane 2: 4 words a block of 16 scales; plane 3: d, a half a block.

struct Header {
    quants: vec4<u32>,
    highs: vec2<u32>,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let scales = word(planes.z + (unit >> 1u)) >> (16u * (unit & 1u));
    let d = half_at(planes.w, unit >> 3u);
    return Header(
        quad(planes.x + unit * 4u),
        pair(planes.y + unit * 2u),
        d * vec2<f32>(unpack4xI8(scales).xy),
        0.0,
    );
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let bits = header.highs[quarter >> 1u] >> (4u * (quarter & 1u));
    let highs = vec2(bits << 4u, bits << 2u) & vec2(0x30303030u);
    let q = nibbles(header.quants[quarter]) | highs;
    // q - 32 in each byte; the highest bit keeps bytes from borrowing.
    return ((q | vec2(0x80808080u)) - vec2(0x20202020u)) ^ vec2(0x80808080u);
}
