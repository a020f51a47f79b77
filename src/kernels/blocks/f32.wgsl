// F32. Plane 0: 32 words a unit.

struct Header {
    unit: u32,
}

fn unit_header(unit: u32) -> Header {
    return Header(unit);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let at = header.unit * 32u + quarter * 8u;
    return Eight(bitcast<vec4<f32>>(quad(at)), bitcast<vec4<f32>>(quad(at + 4u)));
}
