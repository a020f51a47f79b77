// A cache of 16-bit floats, four elements a word.
alias KvWord = vec2<u32>;

fn kv_decode(word: KvWord) -> vec4<f32> {
    return vec4(unpack2x16float(word.x), unpack2x16float(word.y));
}

// The nearest 16-bit float, ties to even; what would overflow becomes the largest, 65504.
// WGSL leaves the rounding of pack2x16float to the driver, so it is done here in integers.
fn f16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(clamp(value, -65504.0, 65504.0));
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7FFFFFFFu;
    let subnormal = u32(round(bitcast<f32>(magnitude) * 16777216.0)); // in units of 2^-24
    let normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13u) & 1u)) >> 13u;
    return sign | select(normal, subnormal, magnitude < 0x38800000u);
}

fn kv_encode(value: vec4<f32>) -> KvWord {
    return vec2(kv_word(value.x, value.y), kv_word(value.z, value.w));
}

// The same by words of two neighbouring elements.
const KV_PER_WORD = 2u;

fn kv_word(first: f32, second: f32) -> u32 {
    return f16_bits(first) | (f16_bits(second) << 16u);
}

// The same eight at a time, by loads of 16 bytes.
alias KvEight = vec4<u32>;

fn kv_decode8(words: KvEight) -> mat2x4<f32> {
    return mat2x4(kv_decode(words.xy), kv_decode(words.zw));
}

