//! Q4_1: `weight = d * q + m` with 4-bit `q`.
//!
//! Layout: `block_q4_1` in ggml-common.h. Byte `i` of `qs` holds weight `i` in its low and weight
//! `i + 16` in its high half.

use bytemuck::{Pod, Zeroable};

use super::{f16_magnitude, f16_not_above, f16_not_below, quantize, range, scale_from_bytes};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale, f16.
    d: [u8; 2],
    /// The minimum, f16.
    m: [u8; 2],
    /// The quants, two a byte.
    qs: [u8; 16],
}

pub(super) const SCALES: [&str; 2] = ["d", "m"];

pub(super) fn scales(block: &Block) -> [f32; 2] {
    [f16_magnitude(block.d), f16_magnitude(block.m)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 32]) {
    let (d, m) = (scale_from_bytes(block.d), scale_from_bytes(block.m));
    let (low, high) = out.split_at_mut(16);
    for ((q, low), high) in block.qs.iter().zip(low).zip(high) {
        *low = d * f32::from(q & 15) + m;
        *high = d * f32::from(q >> 4) + m;
    }
}

pub(super) fn encode_block(weights: &[f32; 32]) -> Block {
    let (lowest, highest) = range(weights);
    let m = f16_not_above(lowest);
    let d = f16_not_below((highest - m.to_f32()) / 15.0);
    let q = |index: usize| quantize(weights[index] - m.to_f32(), d.to_f32(), 0, 15) as u8;
    let qs = std::array::from_fn(|index| q(index) | q(index + 16) << 4);
    Block {
        d: d.to_le_bytes(),
        m: m.to_le_bytes(),
        qs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q4_1_decodes_a_hand_worked_block() {
        // d = 2 (0x4000), m = -3 (0xc200); byte i is i in the low half and 15 - i in the high half.
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&[0x00, 0x40, 0x00, 0xc2]);
        for (index, byte) in bytes[4..].iter_mut().enumerate() {
            *byte = (index | (15 - index) << 4) as u8;
        }
        let mut out = [f32::NAN; 32];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!(out[..4], [-3.0, -1.0, 1.0, 3.0]);
        assert_eq!(out[14..18], [25.0, 27.0, 27.0, 25.0]);
        assert_eq!(out[31], -3.0);
    }
}
