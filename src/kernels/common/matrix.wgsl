// A weight matrix, or the shard of its rows that one binding holds. The binding is `weights: array<u32>`,
// the kernel's parameters are `p` with a member `matrix: Matrix`. A unit is 32 consecutive weights of
// a row; blocks/TYPE.wgsl finds unit `row_in_shard * units_per_row + unit_in_row` in the planes.

struct Matrix {
    n_rows: u32,         // of this shard
    first_row: u32,      // of this shard, in the whole matrix
    units_per_row: u32,
    padding: u32,
    planes: vec4<u32>,   // word offset of each plane; the first plane is always at 0
}

// Weights 8 * quarter .. 8 * quarter + 7 of a unit, in order.
struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

// The f16 at an index of a plane of halves.
fn half_at(plane: u32, index: u32) -> f32 {
    return unpack2x16float(weights[plane + (index >> 1u)])[index & 1u];
}

// The eight nibbles of a word: the low ones of bytes 0 to 3, then the high ones.
fn nibbles(word: u32) -> Eight {
    let low = word & 0x0f0f0f0fu;
    let high = (word >> 4u) & 0x0f0f0f0fu;
    return Eight(vec4<f32>(unpack4xU8(low)), vec4<f32>(unpack4xU8(high)));
}

// Eight numbers of 5 bits: nibbles from a word, fifth bits from the low byte of another.
fn nibbles_and_fifth_bits(word: u32, bits: u32) -> Eight {
    let low = (word & 0x0f0f0f0fu) | fifth_bits(bits & 15u);
    let high = ((word >> 4u) & 0x0f0f0f0fu) | fifth_bits((bits >> 4u) & 15u);
    return Eight(vec4<f32>(unpack4xU8(low)), vec4<f32>(unpack4xU8(high)));
}

// Four bits, each as bit 4 of a byte.
fn fifth_bits(bits: u32) -> u32 {
    return ((bits * 0x00204081u) & 0x01010101u) << 4u;
}

// Scale and min of a unit of Q4_K or Q5_K. A block of 8 units has 4 words in the plane: d and dmin, the
// low 4 bits of its 6-bit scales, those of its mins, and the high 2 bits of both (scales first).
fn scale_and_min(plane: u32, unit: u32) -> vec2<f32> {
    let at = plane + (unit >> 3u) * 4u;
    let i = unit & 7u;
    let highs = weights[at + 3u] >> (2u * i);
    let scale = ((weights[at + 1u] >> (4u * i)) & 15u) | ((highs & 3u) << 4u);
    let min = ((weights[at + 2u] >> (4u * i)) & 15u) | (((highs >> 16u) & 3u) << 4u);
    return unpack2x16float(weights[at]) * vec2(f32(scale), f32(min));
}
