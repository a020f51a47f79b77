// A weight matrix, or the shard of its rows that one binding holds. The binding is
// `weights: array<vec4<u32>>`, the kernel's parameters are `p` with a member `matrix: Matrix`. A unit is
// 32 consecutive weights of a row; blocks/TYPE.wgsl finds unit `row_in_shard * units_per_row + unit_in_row`
// in the planes, wherever these lie in the binding.

struct Matrix {
    n_rows: u32,         // of this shard
    first_row: u32,      // of this shard, in the whole matrix
    units_per_row: u32,
    team_size: u32,      // invocations that share a row in a product with few rows: 8, 16, 32 or 64
    planes: vec4<u32>,   // word offset of each plane in the binding, a multiple of 4
}

// Weights 8 * quarter .. 8 * quarter + 7 of a unit, in order.
struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn word(index: u32) -> u32 {
    return weights[index >> 2u][index & 3u];
}

// Two words from an even index on.
fn pair(index: u32) -> vec2<u32> {
    let four = weights[index >> 2u];
    return select(four.xy, four.zw, (index & 2u) == 2u);
}

// Four words from an index on that is a multiple of 4.
fn quad(index: u32) -> vec4<u32> {
    return weights[index >> 2u];
}

// The f16 at an index of a plane of halves.
fn half_at(plane: u32, index: u32) -> f32 {
    return unpack2x16float(word(plane + (index >> 1u)) >> (16u * (index & 1u))).x;
}

// The eight nibbles of a word, a byte each: the low ones of bytes 0 to 3, then the high ones.
fn nibbles(eight: u32) -> vec2<u32> {
    return vec2(eight, eight >> 4u) & vec2(0x0f0f0f0fu);
}

// The low byte of a word as bit 4 of eight bytes.
fn fifth_bits(bits: u32) -> vec2<u32> {
    // Bit i times bit 7i + 4 of the factor is bit 8i + 4; no other products meet there, and none carries.
    return ((vec2(bits, bits >> 4u) & vec2(15u)) * 0x02040810u) & vec2(0x10101010u);
}

// Scale and min of a unit of Q4_K or Q5_K. A block of 8 units has 4 words in the plane: d and dmin, the
// low 4 bits of its 6-bit scales, those of its mins, and the high 2 bits of both (scales first).
fn scale_and_min(plane: u32, unit: u32) -> vec2<f32> {
    let block = quad(plane + (unit >> 3u) * 4u);
    let i = unit & 7u;
    let lows = (block.yz >> vec2(4u * i)) & vec2(15u);
    let highs = (vec2(block.w, block.w >> 16u) >> vec2(2u * i)) & vec2(3u);
    return unpack2x16float(block.x) * vec2<f32>(lows | (highs << vec2(4u)));
}

// Eight weights of two bits, a byte each. Bits 2f and 2f + 1 of byte b of a word are its weight 4f + b.
fn two_bits(unit: vec2<u32>, quarter: u32) -> vec2<u32> {
    let bits = unit[quarter >> 1u] >> (4u * (quarter & 1u));
    return vec2(bits, bits >> 2u) & vec2(0x03030303u);
}
