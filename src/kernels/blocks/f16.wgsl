// F16. Plane 0: 16 words a unit, two weights a word.

struct Header {
    unit: u32,
}

fn unit_header(unit: u32) -> Header {
    return Header(unit);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let words = quad(header.unit * 16u + quarter * 4u);
    return Eight(
        vec4(unpack2x16float(words.x), unpack2x16float(words.y)),
        vec4(unpack2x16float(words.z), unpack2x16float(words.w)),
    );
}
