//! MXFP4: `weight = 2^(e - 127) * q` with 4-bit floats `q` of two bits of exponent and one of mantissa.
//!
//! Layout: `block_mxfp4` in ggml-common.h; floats and scales: OCP Microscaling Formats (MX) 1.0, E2M1 and E8M0.
//! Byte `i` of `qs` holds weight `i` in its low and weight `i + 16` in its high half. As in ggml, the quants are
//! twice and the scale is half of what the standard says, and negative zero is zero.

use bytemuck::{Pod, Zeroable};

use super::iq4_nl::{decode_halves, encode_halves};

/// Twice what the quants stand for.
const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The exponent of the scale, biased by 127.
    e: u8,
    /// The quants, two a byte.
    qs: [u8; 16],
}

pub(super) const SCALES: [&str; 1] = ["e"];

/// The scale; 255 is not a number by the standard, and no sound file has it.
pub(super) fn scales(block: &Block) -> [f32; 1] {
    [match block.e {
        255 => f32::NAN,
        0 => f32::from_bits(1 << 22),
        e => f32::from_bits(u32::from(e) << 23),
    }]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 32]) {
    decode_halves(&block.qs, &VALUES, half_scale(block.e), out);
}

/// `2^(e - 128)`, also where that is a subnormal number.
fn half_scale(e: u8) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 1 << (21 + e),
        _ => (u32::from(e) - 1) << 23,
    })
}

pub(super) fn encode_block(weights: &[f32; 32]) -> Block {
    let largest = weights.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    // The smallest power of two of which the largest weight is at most six.
    let bits = (largest / 6.0).to_bits();
    let e = ((bits >> 23) + u32::from(bits & 0x7f_ffff != 0)).min(254) as u8;
    Block {
        e,
        qs: encode_halves(&VALUES, half_scale(e), weights),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mxfp4_decodes_a_hand_worked_block() {
        // The scale is 2^(128 - 127); byte i is i in the low half and 15 - i in the high half.
        let mut bytes = [128; 17];
        for (index, byte) in bytes[1..].iter_mut().enumerate() {
            *byte = (index | (15 - index) << 4) as u8;
        }
        let mut out = [f32::NAN; 32];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!(out[..8], [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]);
        assert_eq!(out[8..12], [0.0, -1.0, -2.0, -3.0]);
        assert_eq!(out[15..18], [-12.0, -12.0, -8.0]);
    }

    #[test]
    fn mxfp4_has_a_scale_for_every_exponent() {
        for e in 0..=255 {
            let block = Block { e, qs: [0; 16] };
            let half = 2_f64.powi(i32::from(e) - 128);
            assert_eq!(f64::from(half_scale(e)), half, "{e}");
            let [scale] = scales(&block);
            match e {
                255 => assert!(scale.is_nan()),
                _ => assert_eq!(f64::from(scale), 2.0 * half, "{e}"),
            }
        }
    }
}
