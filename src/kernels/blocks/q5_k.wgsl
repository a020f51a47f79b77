// Q5_K: d * scale * q - dmin * min, with a scale and a min of 6 bits for each of a block's 8 units.
// Plane 0: 4 words of nibbles a unit; plane 1: 4 words a block (scale_and_min);
// plane 2: fifth bits, a word a unit (bit i is weight i's).

struct Header {
    quants: vec4<u32>,
    bits: u32,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let scale_min = scale_and_min(planes.y, unit);
    let bits = word(planes.z + unit);
    return Header(quad(planes.x + unit * 4u), bits, scale_min.xx, -scale_min.y);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    return nibbles(header.quants[quarter]) | fifth_bits(header.bits >> (quarter * 8u));
}
