//! F32, F16 and BF16: weights that stand alone, as blocks of one.

use half::{bf16, f16};

use super::f16_magnitude;

pub(super) fn decode_f32(bytes: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*bytes);
}

pub(super) fn decode_f16(bytes: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f16::from_le_bytes(*bytes).to_f32();
}

pub(super) fn decode_bf16(bytes: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = bf16::from_le_bytes(*bytes).to_f32();
}

pub(super) const SCALES: [&str; 1] = ["weight"];

pub(super) fn scales_f32(bytes: &[u8; 4]) -> [f32; 1] {
    [f32::from_le_bytes(*bytes)]
}

pub(super) fn scales_f16(bytes: &[u8; 2]) -> [f32; 1] {
    [f16_magnitude(*bytes)]
}

pub(super) fn scales_bf16(bytes: &[u8; 2]) -> [f32; 1] {
    // Not `bf16::to_f32`, which branches.
    [f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16)]
}

pub(super) fn encode_f32(weight: &[f32; 1]) -> [u8; 4] {
    weight[0].to_le_bytes()
}

pub(super) fn encode_f16(weight: &[f32; 1]) -> [u8; 2] {
    f16::from_f32(weight[0]).to_le_bytes()
}

pub(super) fn encode_bf16(weight: &[f32; 1]) -> [u8; 2] {
    bf16::from_f32(weight[0]).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_decodes_to_its_bits() {
        let mut out = [0.0];
        decode_f32(&[0x00, 0x00, 0xc0, 0xbf], &mut out);
        assert_eq!(out, [-1.5]);
    }

    #[test]
    fn f16_decodes_every_finite_number_to_the_value_of_the_standard() {
        for bits in 0..=u16::MAX {
            let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
            let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
            let expected = match exponent {
                0 => sign * fraction * 2_f32.powi(-24),
                31 => continue,
                _ => sign * (1024.0 + fraction) * 2_f32.powi(exponent - 25),
            };
            let mut out = [f32::NAN];
            decode_f16(&bits.to_le_bytes(), &mut out);
            assert_eq!(out[0].to_bits(), expected.to_bits(), "f16 {bits:#06x}");
        }
    }

    #[test]
    fn bf16_decodes_to_the_upper_half_of_an_f32() {
        let mut out = [0.0];
        decode_bf16(&[0xc0, 0xbf], &mut out);
        assert_eq!(out, [-1.5]);
        decode_bf16(&[0x01, 0x00], &mut out);
        assert_eq!(out[0].to_bits(), 0x0001_0000);
    }
}
