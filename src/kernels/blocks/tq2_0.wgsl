// TQ2_0: d * (q - 1). Plane 0: 2 words a unit (two_bits); plane 1: d, a half a block.

struct Header {
    quants: vec2<u32>,
    scale: vec2<f32>,
    offset: f32,
}

fn unit_header(planes: vec4<u32>, unit: u32) -> Header {
    let d = half_at(planes.y, unit >> 3u);
    return Header(pair(planes.x + unit * 2u), vec2(d), -d);
}

fn packed8(header: Header, quarter: u32) -> vec2<u32> {
    return two_bits(header.quants, quarter);
}
