// Q8_0: q * d. Plane 0: 8 words a unit, four signed bytes a word; plane 1: d, a half a unit.

struct Header {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let d = half_at(planes.y, unit);
    return Header(quad(planes.x + unit * 8u), quad(planes.x + unit * 8u + 4u), vec2(d), 0.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    let half = select(header.low, header.high, quarter >= 2u);
    return select(half.xy, half.zw, (quarter & 1u) == 1u);
}
