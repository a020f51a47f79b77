//! IQ2_S: codewords of eight magnitudes, with a 4-bit scale for each 16:
//! `weight = d * (0.5 + scale) / 4 * magnitude`, and a sign.
//!
//! Layout: `block_iq2_s` in ggml-common.h. A codeword has 10 bits, the highest two of them in `qh`.

use bytemuck::{Pod, Zeroable};

use super::codebooks::{IQ2_S, nearest_scales, signs_of, write_signed};
use super::{f16_magnitude, scale_from_bytes};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale of the scales, f16.
    d: [u8; 2],
    /// The low eight bits of the codewords.
    qs: [u8; 32],
    /// The signs.
    signs: [u8; 32],
    /// The high two bits of the codewords, four a byte.
    qh: [u8; 8],
    /// The scales, two a byte.
    scales: [u8; 8],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

fn step(d: f32, scale: u8) -> f32 {
    d * (0.5 + f32::from(scale)) * 0.25
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let d = scale_from_bytes(block.d);
    let (eights, _) = out.as_chunks_mut::<8>();
    for (i, out) in eights.iter_mut().enumerate() {
        let step = step(d, block.scales[i / 4] >> (i / 2 % 2 * 4) & 15);
        let high = block.qh[i / 4] >> (2 * (i % 4)) & 3;
        let q = usize::from(block.qs[i]) | usize::from(high) << 8;
        write_signed(step, IQ2_S.word(q), block.signs[i], out);
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let (groups, _) = weights.as_chunks::<16>();
    let steps = std::array::from_fn(|group| IQ2_S.step_of_magnitudes(&groups[group]));
    let (d, scales) = nearest_scales::<16>(steps, 0.125, 15);
    let q: [usize; 32] = std::array::from_fn(|i| {
        IQ2_S.of_magnitudes(&weights[8 * i..], step(d.to_f32(), scales[i / 2]))
    });
    let high = |i: usize| ((q[i] >> 8) as u8) << (2 * (i % 4));
    Block {
        d: d.to_le_bytes(),
        qs: q.map(|q| q as u8),
        signs: std::array::from_fn(|i| signs_of(&weights[8 * i..])),
        qh: std::array::from_fn(|unit| (4 * unit..4 * unit + 4).fold(0, |qh, i| qh | high(i))),
        scales: std::array::from_fn(|pair| scales[2 * pair] | scales[2 * pair + 1] << 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iq2_s_decodes_a_hand_worked_block() {
        let mut bytes = [0; 82];
        bytes[..2].copy_from_slice(&[0x00, 0x38]); // d = 0.5
        bytes[2] = 1; // codeword 1 is 43, and seven times 8
        bytes[33] = 255; // with its high bits codeword 1023, which is eight times 43
        bytes[34] = 0x81; // weights 0 and 7 are negative
        bytes[65] = 0x02; // and weight 249
        bytes[73] = 0xc0; // the high bits of the last codeword
        bytes[74] = 1; // scale of weights 0 to 15
        bytes[81] = 0xf0; // of weights 240 to 255
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        // Steps 0.5 * 1.5 / 4, 0.5 * 0.5 / 4, and 0.5 * 15.5 / 4.
        let first = [-43.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, -8.0, 8.0];
        assert_eq!(out[..9], first.map(|q| 0.1875 * q));
        assert!(out[16..240].iter().all(|&x| x == 0.5));
        assert_eq!(out[247..250], [8.0, 43.0, -43.0].map(|q| 1.9375 * q));
    }
}
