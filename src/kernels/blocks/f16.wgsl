// F16. Plane 0: 16 words a unit, two weights a word.

struct Header {
    unit: u32,
}

fn unit_header(unit: u32) -> Header {
    return Header(unit);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let at = header.unit * 16u + quarter * 4u;
    return Eight(
        vec4(unpack2x16float(weights[at]), unpack2x16float(weights[at + 1u])),
        vec4(unpack2x16float(weights[at + 2u]), unpack2x16float(weights[at + 3u])),
    );
}
