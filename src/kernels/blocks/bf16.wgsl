// BF16: the upper half of an f32. Plane 0: 16 words a unit, two weights a word.

struct Header {
    unit: u32,
}

fn unit_header(unit: u32) -> Header {
    return Header(unit);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let words = quad(header.unit * 16u + quarter * 4u);
    let even = words << vec4(16u);
    let odd = words & vec4(0xffff0000u);
    return Eight(
        bitcast<vec4<f32>>(vec4(even.x, odd.x, even.y, odd.y)),
        bitcast<vec4<f32>>(vec4(even.z, odd.z, even.w, odd.w)),
    );
}
