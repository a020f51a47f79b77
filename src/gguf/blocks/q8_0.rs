//! Q8_0: `weight = d * q` with signed 8-bit `q`.
//!
//! Layout: `block_q8_0` in ggml-common.h.

use bytemuck::{Pod, Zeroable};

use super::{f16_magnitude, f16_not_below, quantize, scale_from_bytes, signed_step};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale, f16.
    d: [u8; 2],
    /// The quants.
    qs: [i8; 32],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 32]) {
    let d = scale_from_bytes(block.d);
    for (&q, out) in block.qs.iter().zip(out) {
        *out = d * f32::from(q);
    }
}

pub(super) fn encode_block(weights: &[f32; 32]) -> Block {
    // -128 stays unused, as in ggml: the sum of two products of int8 numbers then fits int16.
    let d = f16_not_below(signed_step(weights, -127, 127));
    let qs = weights.map(|x| quantize(x, d.to_f32(), -127, 127) as i8);
    Block {
        d: d.to_le_bytes(),
        qs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q8_0_decodes_a_hand_worked_block() {
        let mut bytes = [0; 34];
        bytes[1] = 0xb8; // d = -0.5
        bytes[2] = 0x80; // -128
        bytes[3] = 0x7f; // 127
        bytes[33] = 0xff; // -1
        let mut out = [f32::NAN; 32];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!(out[..2], [64.0, -63.5]);
        assert!(out[2..31].iter().all(|&x| x == 0.0));
        assert_eq!(out[31], 0.5);
    }

    #[test]
    fn q8_0_decodes_the_smallest_and_the_largest_scale() {
        let mut out = [f32::NAN; 32];
        let mut bytes = [1; 34];
        bytes[..2].copy_from_slice(&[0x01, 0x00]);
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!(out, [2_f32.powi(-24); 32]);
        bytes[..2].copy_from_slice(&[0xff, 0x7b]);
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!(out, [65504.0; 32]);
    }
}
