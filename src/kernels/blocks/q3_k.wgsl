// Q3_K: d * (scale - 32) * (q - 4), with a scale of 6 bits for every 16 weights. Plane 0: 2 words a unit, the
// low bits (two_bits); plane 1: third bits, a word a unit (bit i is weight i's); plane 2: 3 words a block, the
// low 4 bits of scales 0 to 7, those of 8 to 15, the high 2 bits of all; plane 3: d, a half a block.

struct Header {
    quants: vec2<u32>,
    bits: u32,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let i = unit & 7u;
    let block = planes.z + (unit >> 3u) * 3u;
    let lows = word(block + (i >> 2u)) >> (8u * (i & 3u));
    let highs = word(block + 2u) >> (4u * i);
    let scales = (vec2(lows, lows >> 4u) & vec2(15u)) | ((vec2(highs << 4u, highs << 2u)) & vec2(48u));
    return Header(
        pair(planes.x + unit * 2u),
        word(planes.y + unit),
        half_at(planes.w, unit >> 3u) * (vec2<f32>(scales) - 32.0),
        0.0,
    );
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let q = two_bits(header.quants, quarter) | (fifth_bits(header.bits >> (quarter * 8u)) >> vec2(2u));
    // q - 4 in each byte; the highest bit keeps bytes from borrowing.
    return ((q | vec2(0x80808080u)) - vec2(0x04040404u)) ^ vec2(0x80808080u);
}
