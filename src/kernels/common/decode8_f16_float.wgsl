// The weights of a float type as 16-bit floats, or of one with codewords: its scales have fractions that even
// two 16-bit floats lose where they are tiny.
fn decode8_f16(header: Header, quarter: u32) -> EightHalves {
    let eight = decode8(header, quarter);
    return EightHalves(vec4<f16>(eight.low), vec4<f16>(eight.high));
}
