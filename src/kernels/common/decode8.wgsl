// The weights of a quantised type as floats: scale * q + offset, for kernels that do not compute with
// the integers.
fn decode8(header: Header, quarter: u32) -> Eight {
    let q = packed8(header, quarter);
    let scale = select(header.scale.x, header.scale.y, quarter >= 2u);
    return Eight(
        vec4<f32>(unpack4xI8(q.x)) * scale + header.offset,
        vec4<f32>(unpack4xI8(q.y)) * scale + header.offset,
    );
}
