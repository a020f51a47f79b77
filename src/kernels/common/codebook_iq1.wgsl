// The values -1, 0 and 1 of a codeword of IQ1 and their delta, 1/8 or -1/8, eight times as large:
// 8 q - 8 + 1 or 8 q - 8 - 1. Bytes are 128 too large until the end, so that none borrows.
fn eight_values(table: u32, index: u32, is_down: u32) -> vec2<u32> {
    let moved = 0x79797979u - 0x02020202u * is_down;
    return (eight_levels(table, index) * 8u + vec2(moved)) ^ vec2(0x80808080u);
}
