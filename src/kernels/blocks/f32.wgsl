// F32. Plane 0: 32 words a unit.

struct Header {
    words: u32, // of the unit
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    return Header(planes.x + unit * 32u);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let at = header.words + quarter * 8u;
    return Eight(bitcast<vec4<f32>>(quad(at)), bitcast<vec4<f32>>(quad(at + 4u)));
}
