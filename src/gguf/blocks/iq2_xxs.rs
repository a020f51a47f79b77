//! IQ2_XXS: codewords of eight magnitudes, with a 4-bit scale for each 32:
//! `weight = d * (0.5 + scale) / 4 * magnitude`, with signs of which every eighth follows from the others.
//!
//! Layout: `block_iq2_xxs` in ggml-common.h. Each 32 weights are four codewords and a word with four
//! times 7 signs, and the scale in its highest bits.

use bytemuck::{Pod, Zeroable};

use super::codebooks::{IQ2_XXS, even_signs, even_signs_of, nearest_scales, write_signed};
use super::{f16_magnitude, scale_from_bytes};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale of the scales, f16.
    d: [u8; 2],
    /// Four codewords; signs and scale.
    groups: [[[u8; 4]; 2]; 8],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

fn step(d: f32, scale: u32) -> f32 {
    d * (0.5 + scale as f32) * 0.25
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let d = scale_from_bytes(block.d);
    let (groups, _) = out.as_chunks_mut::<32>();
    for ([qs, bits], out) in block.groups.iter().zip(groups) {
        let bits = u32::from_le_bytes(*bits);
        let step = step(d, bits >> 28);
        for (i, (out, &q)) in out.chunks_mut(8).zip(qs).enumerate() {
            let signs = even_signs(bits >> (7 * i));
            write_signed(step, IQ2_XXS.word(q.into()), signs, out);
        }
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let (groups, _) = weights.as_chunks::<32>();
    let steps = std::array::from_fn(|group| IQ2_XXS.step_of_magnitudes(&groups[group]));
    let (d, scales) = nearest_scales::<8>(steps, 0.125, 15);
    let group = |group: usize| {
        let (weights, scale) = (&groups[group], u32::from(scales[group]));
        let step = step(d.to_f32(), scale);
        let qs = std::array::from_fn(|i| IQ2_XXS.of_magnitudes(&weights[8 * i..], step) as u8);
        let signs = (0..4).fold(0, |bits, i| {
            bits | u32::from(even_signs_of(&weights[8 * i..]) & 127) << (7 * i)
        });
        [qs, (signs | scale << 28).to_le_bytes()]
    };
    Block {
        d: d.to_le_bytes(),
        groups: std::array::from_fn(group),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iq2_xxs_decodes_a_hand_worked_block() {
        let mut bytes = [0; 66];
        bytes[..2].copy_from_slice(&[0x00, 0x38]); // d = 0.5
        bytes[2] = 1; // codeword 1 is 43, and seven times 8
        bytes[6..10].copy_from_slice(&0x1000_0001_u32.to_le_bytes()); // scale 1, weights 0 and 7 negative
        bytes[62..].copy_from_slice(&0xf060_0000_u32.to_le_bytes()); // scale 15, weights 248 and 249
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        // Steps 0.5 * 1.5 / 4, 0.5 * 0.5 / 4, and 0.5 * 15.5 / 4.
        let first = [-43.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, -8.0, 8.0];
        assert_eq!(out[..9], first.map(|q| 0.1875 * q));
        assert!(out[32..224].iter().all(|&x| x == 0.5));
        let last = [8.0, -8.0, -8.0, 8.0];
        assert_eq!(out[247..251], last.map(|q| 1.9375 * q));
    }
}
