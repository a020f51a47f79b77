// Q4_0: (q - 8) * d. Plane 0: 4 words of nibbles a unit; plane 1: d, a half a unit.

struct Header {
    quants: vec4<u32>,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let d = half_at(planes.y, unit);
    return Header(quad(planes.x + unit * 4u), vec2(d), d * -8.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    return nibbles(header.quants[quarter]);
}
