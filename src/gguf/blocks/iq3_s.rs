//! IQ3_S: codewords of four magnitudes, with a 4-bit scale for each 32:
//! `weight = d * (1 + 2 * scale) * magnitude`, and a sign.
//!
//! Layout: `block_iq3_s` in ggml-common.h. A codeword has 9 bits, the highest of them in `qh`.

use bytemuck::{Pod, Zeroable};

use super::codebooks::{IQ3_S, nearest_scales, signs_of, write_signed};
use super::{f16_magnitude, scale_from_bytes};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale of the scales, f16.
    d: [u8; 2],
    /// The low eight bits of the codewords.
    qs: [[u8; 8]; 8],
    /// Their high bits.
    qh: [u8; 8],
    /// The signs.
    signs: [[u8; 4]; 8],
    /// The scales, two a byte.
    scales: [u8; 4],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

fn step(d: f32, scale: u8) -> f32 {
    d * f32::from(1 + 2 * scale)
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let d = scale_from_bytes(block.d);
    let (groups, _) = out.as_chunks_mut::<32>();
    for (group, out) in groups.iter_mut().enumerate() {
        let step = step(d, block.scales[group / 2] >> (group % 2 * 4) & 15);
        for (i, (out, &q)) in out.chunks_mut(4).zip(&block.qs[group]).enumerate() {
            let q = usize::from(q) | usize::from(block.qh[group] >> i & 1) << 8;
            let signs = block.signs[group][i / 2] >> (4 * (i % 2));
            write_signed(step, IQ3_S.word(q), signs, out);
        }
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let (groups, _) = weights.as_chunks::<32>();
    let steps = std::array::from_fn(|group| IQ3_S.step_of_magnitudes(&groups[group]));
    let (d, scales) = nearest_scales::<8>(steps, 1.0, 15);
    let q = |group: usize, i: usize| {
        let step = step(d.to_f32(), scales[group]);
        IQ3_S.of_magnitudes(&groups[group][4 * i..], step)
    };
    let high = |group: usize, i: usize| ((q(group, i) >> 8) as u8) << i;
    Block {
        d: d.to_le_bytes(),
        qs: std::array::from_fn(|group| std::array::from_fn(|i| q(group, i) as u8)),
        qh: std::array::from_fn(|group| (0..8).fold(0, |bits, i| bits | high(group, i))),
        signs: std::array::from_fn(|group| {
            std::array::from_fn(|i| signs_of(&groups[group][8 * i..]))
        }),
        scales: std::array::from_fn(|pair| scales[2 * pair] | scales[2 * pair + 1] << 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iq3_s_decodes_a_hand_worked_block() {
        let mut bytes = [0; 110];
        bytes[..2].copy_from_slice(&[0x00, 0x38]); // d = 0.5
        bytes[2] = 1; // codeword 1 is 3, 1, 1, 1
        bytes[65] = 255; // with its high bit codeword 511, which is 1, 1, 15, 15
        bytes[73] = 0x80; // the high bit of the last codeword
        bytes[74] = 0x81; // weights 0 and 7 are negative
        bytes[105] = 0x10; // and weight 252
        bytes[106] = 0x02; // scale of weights 0 to 31
        bytes[109] = 0xf0; // of weights 224 to 255
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        // Steps 0.5 * 5, 0.5, and 0.5 * 31.
        let first = [-3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0];
        assert_eq!(out[..9], first.map(|q| 2.5 * q));
        assert!(out[32..224].iter().all(|&x| x == 0.5));
        assert_eq!(out[251..], [1.0, -1.0, 1.0, 15.0, 15.0].map(|q| 15.5 * q));
    }
}
