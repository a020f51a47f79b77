// F16. Plane 0: 16 words a unit, two weights a word.

struct Header {
    words: u32, // of the unit
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    return Header(planes.x + unit * 16u);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let words = quad(header.words + quarter * 4u);
    return Eight(
        vec4(unpack2x16float(words.x), unpack2x16float(words.y)),
        vec4(unpack2x16float(words.z), unpack2x16float(words.w)),
    );
}
