// Q8_0: q * d. Plane 0: 8 words a unit, four signed bytes a word; plane 1: d, a half a unit.

struct Header {
    unit: u32,
    d: f32,
}

fn unit_header(unit: u32) -> Header {
    return Header(unit, half_at(p.matrix.planes.y, unit));
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let at = header.unit * 8u + quarter * 2u;
    return Eight(
        vec4<f32>(unpack4xI8(weights[at])) * header.d,
        vec4<f32>(unpack4xI8(weights[at + 1u])) * header.d,
    );
}
