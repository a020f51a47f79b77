// The magnitudes of a codeword of IQ2: 8, 25 and 43 are 8 + 17 q + q / 2.
fn eight_magnitudes(table: u32, index: u32) -> vec2<u32> {
    let q = eight_levels(table, index);
    return q * 17u + ((q >> vec2(1u)) & vec2(0x01010101u)) + vec2(0x08080808u);
}
