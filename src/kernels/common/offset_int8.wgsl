// What the offset of a unit of weights adds to its product with int8 activations: offset s sum(q).
fn offset_product(weight: Header, of_src: Activations) -> f32 {
    return of_src.scales.y * weight.offset;
}

