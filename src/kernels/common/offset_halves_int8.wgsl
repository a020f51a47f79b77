// What the offsets of the halves of a unit of weights add to its product with int8 activations: s times
// offset sum(q) of each.
fn offset_product(weight: Header, of_src: Activations) -> f32 {
    let ones = vec2(0x01010101u);
    let low = dot8(ones, of_src.low.xy) + dot8(ones, of_src.low.zw);
    let high = dot8(ones, of_src.high.xy) + dot8(ones, of_src.high.zw);
    return of_src.scales.x * dot(weight.offset, vec2(f32(low), f32(high)));
}

