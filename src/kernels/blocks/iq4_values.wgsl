// What nibbles in bytes stand for in IQ4_NL and IQ4_XS, as signed bytes: -127, -104, -83, -65, -49, -35, -22, -10,
// 1, 13, 25, 38, 53, 69, 89, 113. Arithmetic, since a table that is indexed lies in memory on many GPUs.
fn iq4_values(n: vec2<u32>) -> vec2<u32> {
    let ones = vec2(0x01010101u);
    // Of every two values, plus 128: the first, and the difference where bit 0 is set.
    let odd = n & ones;
    let v0 = odd * 23u + 0x01010101u;
    let v1 = odd * 18u + 0x2d2d2d2du;
    let v2 = odd * 14u + 0x4f4f4f4fu;
    let v3 = odd * 12u + 0x6a6a6a6au;
    let v4 = odd * 12u + 0x81818181u;
    let v5 = odd * 13u + 0x99999999u;
    let v6 = odd * 16u + 0xb5b5b5b5u;
    let v7 = odd * 24u + 0xd9d9d9d9u;
    // Bits 1, 2 and 3 choose among them.
    let bit1 = ((n >> vec2(1u)) & ones) * 255u;
    let bit2 = ((n >> vec2(2u)) & ones) * 255u;
    let bit3 = ((n >> vec2(3u)) & ones) * 255u;
    let low = chosen(chosen(v0, v1, bit1), chosen(v2, v3, bit1), bit2);
    let high = chosen(chosen(v4, v5, bit1), chosen(v6, v7, bit1), bit2);
    return chosen(low, high, bit3) ^ vec2(0x80808080u);
}

// The bits of b where the mask is set, else those of a.
fn chosen(a: vec2<u32>, b: vec2<u32>, mask: vec2<u32>) -> vec2<u32> {
    return a ^ ((a ^ b) & mask);
}

