// Q6_K: d * scale * (q - 32), with a signed 8-bit scale for every 16 weights. Plane 0: 4 words of nibbles
// a unit; plane 1: 2 words a unit, where bits 2f and 2f + 1 of byte b of a word are the high bits
// of its weight 4f + b; plane 2: 4 words a block of 16 scales; plane 3: d, a half a block.

struct Header {
    unit: u32,
    scales: vec2<f32>,
}

fn unit_header(unit: u32) -> Header {
    let word = weights[p.matrix.planes.z + (unit >> 1u)] >> (16u * (unit & 1u));
    let scales = vec2<f32>(unpack4xI8(word).xy);
    return Header(unit, half_at(p.matrix.planes.w, unit >> 3u) * scales);
}

fn decode8(header: Header, quarter: u32) -> Eight {
    let word = weights[header.unit * 4u + quarter];
    let half = quarter >> 1u;
    let bits = weights[p.matrix.planes.y + header.unit * 2u + half] >> (4u * (quarter & 1u));
    let low = (word & 0x0f0f0f0fu) | ((bits & 0x03030303u) << 4u);
    let high = ((word >> 4u) & 0x0f0f0f0fu) | (((bits >> 2u) & 0x03030303u) << 4u);
    let scale = header.scales[half];
    return Eight(
        (vec4<f32>(unpack4xU8(low)) - 32.0) * scale,
        (vec4<f32>(unpack4xU8(high)) - 32.0) * scale,
    );
}
