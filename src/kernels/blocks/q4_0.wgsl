// Q4_0: (q - 8) * d. Plane 0: 4 words of nibbles a unit; plane 1: d, a half a unit.

struct Header {
    unit: u32,
    d: f32,
}

fn unit_header(unit: u32) -> Header {
    return Header(unit, half_at(p.matrix.planes.y, unit));
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let q = nibbles(weights[header.unit * 4u + quarter]);
    return Eight((q.low - 8.0) * header.d, (q.high - 8.0) * header.d);
}
