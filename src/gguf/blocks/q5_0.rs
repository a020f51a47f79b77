//! Q5_0: `weight = d * (q - 16)` with 5-bit `q`.
//!
//! Layout: `block_q5_0` in ggml-common.h. Byte `i` of `qs` holds the low 4 bits of weight `i` in its
//! low and of weight `i + 16` in its high half; bit `i` of `qh` is the fifth bit of weight `i`.

use bytemuck::{Pod, Zeroable};

use super::{f16_magnitude, f16_not_below, quantize, scale_from_bytes, signed_step};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale, f16.
    d: [u8; 2],
    /// The fifth bits, u32.
    qh: [u8; 4],
    /// The low four bits, two weights a byte.
    qs: [u8; 16],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 32]) {
    let d = scale_from_bytes(block.d);
    let q = unpack(&block.qs, block.qh);
    for (q, out) in q.into_iter().zip(out) {
        *out = d * (i32::from(q) - 16) as f32;
    }
}

pub(super) fn encode_block(weights: &[f32; 32]) -> Block {
    let d = f16_not_below(signed_step(weights, -16, 15));
    let (qs, qh) = pack(&weights.map(|x| (quantize(x, d.to_f32(), -16, 15) + 16) as u8));
    Block {
        d: d.to_le_bytes(),
        qh,
        qs,
    }
}

/// The 5-bit quants of a block.
pub(super) fn unpack(qs: &[u8; 16], qh: [u8; 4]) -> [u8; 32] {
    let qh = u32::from_le_bytes(qh);
    std::array::from_fn(|index| {
        let low = if index < 16 {
            qs[index] & 15
        } else {
            qs[index - 16] >> 4
        };
        low | ((qh >> index & 1) as u8) << 4
    })
}

/// The low four bits and the fifth bits of a block's quants.
pub(super) fn pack(q: &[u8; 32]) -> ([u8; 16], [u8; 4]) {
    let qs = std::array::from_fn(|index| q[index] & 15 | (q[index + 16] & 15) << 4);
    let qh = (0..32).fold(0_u32, |qh, index| qh | u32::from(q[index] >> 4) << index);
    (qs, qh.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q5_0_decodes_a_hand_worked_block() {
        // d = 0.25 (0x3400); weights 0, 16 and 31 have their fifth bit set.
        let mut bytes = [0; 22];
        bytes[..6].copy_from_slice(&[0x00, 0x34, 0x01, 0x00, 0x01, 0x80]);
        bytes[6] = 0xf0; // weight 0: 16 + 0, weight 16: 16 + 15
        bytes[7] = 0x2f; // weight 1: 15, weight 17: 2
        bytes[21] = 0x10; // weight 15: 0, weight 31: 16 + 1
        let mut out = [f32::NAN; 32];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!(out[..3], [0.0, -0.25, -4.0]);
        assert_eq!(out[15..19], [-4.0, 3.75, -3.5, -4.0]);
        assert_eq!(out[31], 0.25);
    }
}
