// BF16: the upper half of an f32. Plane 0: 16 words a unit, two weights a word.

struct Header {
    unit: u32,
}

fn unit_header(unit: u32) -> Header {
    return Header(unit);
}

fn decode4(first: u32, second: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(
        vec4(first << 16u, first & 0xffff0000u, second << 16u, second & 0xffff0000u));
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let at = header.unit * 16u + quarter * 4u;
    return Eight(
        decode4(weights[at], weights[at + 1u]),
        decode4(weights[at + 2u], weights[at + 3u]),
    );
}
