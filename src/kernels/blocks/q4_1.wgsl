// Q4_1: q * d + m. Plane 0: 4 words of nibbles a unit; plane 1: d and m, a word a unit.

struct Header {
    unit: u32,
    d: f32,
    m: f32,
}

fn unit_header(unit: u32) -> Header {
    let d_m = unpack2x16float(weights[p.matrix.planes.y + unit]);
    return Header(unit, d_m.x, d_m.y);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let q = nibbles(weights[header.unit * 4u + quarter]);
    return Eight(q.low * header.d + header.m, q.high * header.d + header.m);
}
