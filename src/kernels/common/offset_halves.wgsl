// The offset of the weights of a quarter of a unit, of a type that has one for each half.
fn offset_of(header: Header, quarter: u32) -> f32 {
    return select(header.offset.x, header.offset.y, quarter >= 2u);
}

