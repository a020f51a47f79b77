// IQ4_NL: d * a value for each q (iq4_values). Plane 0: 4 words of nibbles a unit; plane 1: d, a half a unit.

struct Header {
    quants: vec4<u32>,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    return Header(quad(planes.x + unit * 4u), vec2(half_at(planes.y, unit)), 0.0);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    return iq4_values(nibbles(header.quants[quarter]));
}
