// Codewords: each stands for four or eight weights. Their table is the last of a matrix's planes.

// The half at an index of a plane, with what may lie above it.
fn half_bits(plane: u32, index: u32) -> u32 {
    return word(plane + (index >> 1u)) >> (16u * (index & 1u));
}

// Seven signs of seven bits, and an eighth that makes the number of minus signs even.
fn even_signs(bits: u32) -> u32 {
    let seven = bits & 127u;
    return seven | (countOneBits(seven) << 7u);
}

// Eight bytes, those negated whose bit is set.
fn with_signs(magnitudes: vec2<u32>, signs: u32) -> vec2<u32> {
    // Bit i times bit 7i of the factor is bit 8i; no other products meet there, and none carries.
    let ones = ((vec2(signs, signs >> 4u) & vec2(15u)) * 0x00204081u) & vec2(0x01010101u);
    // No magnitude is 0, so that no byte carries into the next.
    return (magnitudes ^ (ones * 255u)) + ones;
}

// The levels, of three, that a codeword of a table of halves consists of: a byte each.
fn eight_levels(table: u32, index: u32) -> vec2<u32> {
    let bits = half_bits(table, index);
    let fours = vec2(bits, bits >> 8u) & vec2(0xffu);
    let twos = (fours | (fours << vec2(12u))) & vec2(0x000f000fu);
    return (twos | (twos << vec2(6u))) & vec2(0x03030303u);
}
