//! Q4_0: `weight = d * (q - 8)` with 4-bit `q`.
//!
//! Layout: `block_q4_0` in ggml-common.h. Byte `i` of `qs` holds weight `i` in its low and weight
//! `i + 16` in its high half.

use bytemuck::{Pod, Zeroable};

use super::{f16_magnitude, f16_not_below, quantize, scale_from_bytes, signed_step};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale, f16.
    d: [u8; 2],
    /// The quants, two a byte.
    qs: [u8; 16],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 32]) {
    let d = scale_from_bytes(block.d);
    let (low, high) = out.split_at_mut(16);
    for ((q, low), high) in block.qs.iter().zip(low).zip(high) {
        *low = d * (i32::from(q & 15) - 8) as f32;
        *high = d * (i32::from(q >> 4) - 8) as f32;
    }
}

pub(super) fn encode_block(weights: &[f32; 32]) -> Block {
    let d = f16_not_below(signed_step(weights, -8, 7));
    let q = |index: usize| (quantize(weights[index], d.to_f32(), -8, 7) + 8) as u8;
    let qs = std::array::from_fn(|index| q(index) | q(index + 16) << 4);
    Block {
        d: d.to_le_bytes(),
        qs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q4_0_decodes_a_hand_worked_block() {
        // d = 0.5 (0x3800); byte i is i in the low half and 15 - i in the high half.
        let mut bytes = [0; 18];
        bytes[..2].copy_from_slice(&[0x00, 0x38]);
        for (index, byte) in bytes[2..].iter_mut().enumerate() {
            *byte = (index | (15 - index) << 4) as u8;
        }
        let mut out = [f32::NAN; 32];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        // 0.5 * (0 - 8) up to 0.5 * (15 - 8), then down again.
        assert_eq!(out[..4], [-4.0, -3.5, -3.0, -2.5]);
        assert_eq!(out[14..18], [3.0, 3.5, 3.5, 3.0]);
        assert_eq!(out[31], -4.0);
    }

    #[test]
    fn q4_0_decodes_a_negative_scale() {
        let mut out = [f32::NAN; 32];
        let mut bytes = [0; 18];
        bytes[1] = 0xbc; // d = -1
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!(out, [8.0; 32]);
    }
}
