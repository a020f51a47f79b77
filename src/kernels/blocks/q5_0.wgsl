// Q5_0: (q - 16) * d. Plane 0: 4 words of nibbles a unit; plane 1: fifth bits, a word a unit (bit i is
// weight i's); plane 2: d, a half a unit.

struct Header {
    quants: vec4<u32>,
    bits: u32,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let d = half_at(planes.z, unit);
    return Header(quad(planes.x + unit * 4u), word(planes.y + unit), vec2(d), d * -16.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    return nibbles(header.quants[quarter]) | fifth_bits(header.bits >> (quarter * 8u));
}
