// F32. Plane 0: 32 words a unit.

struct Header {
    unit: u32,
}

fn unit_header(unit: u32) -> Header {
    return Header(unit);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let at = header.unit * 32u + quarter * 8u;
    return Eight(
        bitcast<vec4<f32>>(vec4(weights[at], weights[at + 1u], weights[at + 2u], weights[at + 3u])),
        bitcast<vec4<f32>>(vec4(weights[at + 4u], weights[at + 5u], weights[at + 6u], weights[at + 7u])),
    );
}
