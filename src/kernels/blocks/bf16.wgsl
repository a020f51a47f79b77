// BF16: the upper half of an f32. Plane 0: 16 words a unit, two weights a word.

struct Header {
    words: u32, // of the unit
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    return Header(planes.x + unit * 16u);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let words = quad(header.words + quarter * 4u);
    let even = words << vec4(16u);
    let odd = words & vec4(0xffff0000u);
    return Eight(
        bitcast<vec4<f32>>(vec4(even.x, odd.x, even.y, odd.y)),
        bitcast<vec4<f32>>(vec4(even.z, odd.z, even.w, odd.w)),
    );
}
