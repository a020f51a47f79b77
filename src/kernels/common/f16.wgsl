// The two halves that the bits of a word are. Compilers see that the way through 32 bits changes none.
fn halves(word: u32) -> vec2<f16> {
    return vec2<f16>(unpack2x16float(word));
}

// Weights 8 * quarter .. 8 * quarter + 7 of a unit, in order.
struct EightHalves {
    low: vec4<f16>,
    high: vec4<f16>,
}
