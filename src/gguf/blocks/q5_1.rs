//! Q5_1: `weight = d * q + m` with 5-bit `q`.
//!
//! Layout: `block_q5_1` in ggml-common.h; the quants are packed as those of Q5_0.

use bytemuck::{Pod, Zeroable};

use super::q5_0::{pack, unpack};
use super::{f16_magnitude, f16_not_above, f16_not_below, quantize, range, scale_from_bytes};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale, f16.
    d: [u8; 2],
    /// The minimum, f16.
    m: [u8; 2],
    /// The fifth bits, u32.
    qh: [u8; 4],
    /// The low four bits, two weights a byte.
    qs: [u8; 16],
}

pub(super) const SCALES: [&str; 2] = ["d", "m"];

pub(super) fn scales(block: &Block) -> [f32; 2] {
    [f16_magnitude(block.d), f16_magnitude(block.m)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 32]) {
    let (d, m) = (scale_from_bytes(block.d), scale_from_bytes(block.m));
    let q = unpack(&block.qs, block.qh);
    for (q, out) in q.into_iter().zip(out) {
        *out = d * f32::from(q) + m;
    }
}

pub(super) fn encode_block(weights: &[f32; 32]) -> Block {
    let (lowest, highest) = range(weights);
    let m = f16_not_above(lowest);
    let d = f16_not_below((highest - m.to_f32()) / 31.0);
    let q = weights.map(|x| quantize(x - m.to_f32(), d.to_f32(), 0, 31) as u8);
    let (qs, qh) = pack(&q);
    Block {
        d: d.to_le_bytes(),
        m: m.to_le_bytes(),
        qh,
        qs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q5_1_decodes_a_hand_worked_block() {
        // d = 0.5 (0x3800), m = 1 (0x3c00); weights 1, 15 and 30 have their fifth bit set.
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&[0x00, 0x38, 0x00, 0x3c, 0x02, 0x80, 0x00, 0x40]);
        bytes[8] = 0x51; // weight 0: 1, weight 16: 5
        bytes[9] = 0x0f; // weight 1: 16 + 15, weight 17: 0
        bytes[22] = 0xf0; // weight 14: 0, weight 30: 16 + 15
        bytes[23] = 0xe4; // weight 15: 16 + 4, weight 31: 14
        let mut out = [f32::NAN; 32];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!(out[..3], [1.5, 16.5, 1.0]);
        assert_eq!(out[14..18], [1.0, 11.0, 3.5, 1.0]);
        assert_eq!(out[29..], [1.0, 16.5, 8.0]);
    }
}
