// Q5_0: (q - 16) * d. Plane 0: 4 words of nibbles a unit; plane 1: fifth bits, a word a unit (bit i is
// weight i's); plane 2: d, a half a unit.

struct Header {
    unit: u32,
    bits: u32,
    d: f32,
}

fn unit_header(unit: u32) -> Header {
    return Header(unit, weights[p.matrix.planes.y + unit], half_at(p.matrix.planes.z, unit));
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let word = weights[header.unit * 4u + quarter];
    let q = nibbles_and_fifth_bits(word, header.bits >> (quarter * 8u));
    return Eight((q.low - 16.0) * header.d, (q.high - 16.0) * header.d);
}
