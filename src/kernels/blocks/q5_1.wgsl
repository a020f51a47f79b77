// Q5_1: q * d + m. Plane 0: 4 words of nibbles a unit; plane 1: fifth bits, a word a unit (bit i is
// weight i's); plane 2: d and m, a word a unit.

struct Header {
    unit: u32,
    bits: u32,
    d: f32,
    m: f32,
}

fn unit_header(unit: u32) -> Header {
    let d_m = unpack2x16float(weights[p.matrix.planes.z + unit]);
    return Header(unit, weights[p.matrix.planes.y + unit], d_m.x, d_m.y);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let word = weights[header.unit * 4u + quarter];
    let q = nibbles_and_fifth_bits(word, header.bits >> (quarter * 8u));
    return Eight(q.low * header.d + header.m, q.high * header.d + header.m);
}
