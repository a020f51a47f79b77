// Q4_K: d * scale * q - dmin * min, with a scale and a min of 6 bits for each of a block's 8 units.
// Plane 0: 4 words of nibbles a unit; plane 1: 4 words a block (scale_and_min).

struct Header {
    unit: u32,
    scale: f32,
    min: f32,
}

fn unit_header(unit: u32) -> Header {
    let scale_min = scale_and_min(p.matrix.planes.y, unit);
    return Header(unit, scale_min.x, scale_min.y);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let q = nibbles(weights[header.unit * 4u + quarter]);
    return Eight(q.low * header.scale - header.min, q.high * header.scale - header.min);
}
