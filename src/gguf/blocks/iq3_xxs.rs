//! IQ3_XXS: codewords of four magnitudes, with a 4-bit scale for each 32:
//! `weight = d * (0.5 + scale) / 2 * magnitude`, with signs of which every eighth follows from the others.
//!
//! Layout: `block_iq3_xxs` in ggml-common.h. Of each 32 weights, a word behind the codewords holds four
//! times 7 signs, and the scale in its highest bits.

use bytemuck::{Pod, Zeroable};

use super::codebooks::{IQ3_XXS, even_signs, even_signs_of, nearest_scales, write_signed};
use super::{f16_magnitude, scale_from_bytes};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale of the scales, f16.
    d: [u8; 2],
    /// The codewords.
    qs: [[u8; 8]; 8],
    /// Signs and scales.
    signs: [[u8; 4]; 8],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

fn step(d: f32, scale: u32) -> f32 {
    d * (0.5 + scale as f32) * 0.5
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let d = scale_from_bytes(block.d);
    let (groups, _) = out.as_chunks_mut::<32>();
    for (group, out) in groups.iter_mut().enumerate() {
        let bits = u32::from_le_bytes(block.signs[group]);
        let step = step(d, bits >> 28);
        for (i, (out, &q)) in out.chunks_mut(4).zip(&block.qs[group]).enumerate() {
            let signs = even_signs(bits >> (7 * (i / 2))) >> (4 * (i % 2));
            write_signed(step, IQ3_XXS.word(q.into()), signs, out);
        }
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let (groups, _) = weights.as_chunks::<32>();
    let steps = std::array::from_fn(|group| IQ3_XXS.step_of_magnitudes(&groups[group]));
    let (d, scales) = nearest_scales::<8>(steps, 0.25, 15);
    let qs = std::array::from_fn(|group| {
        let step = step(d.to_f32(), scales[group].into());
        std::array::from_fn(|i| IQ3_XXS.of_magnitudes(&groups[group][4 * i..], step) as u8)
    });
    let signs = std::array::from_fn(|group| {
        let signs = (0..4).fold(0, |bits, i| {
            let signs = even_signs_of(&groups[group][8 * i..]);
            bits | u32::from(signs & 127) << (7 * i)
        });
        (signs | u32::from(scales[group]) << 28).to_le_bytes()
    });
    Block {
        d: d.to_le_bytes(),
        qs,
        signs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iq3_xxs_decodes_a_hand_worked_block() {
        let mut bytes = [0; 98];
        bytes[..2].copy_from_slice(&[0x00, 0x38]); // d = 0.5
        bytes[2] = 1; // codeword 1 is 20, 4, 4, 4
        bytes[65] = 71; // codeword 71 is 12, 12, 12, 12
        bytes[66..70].copy_from_slice(&0x1000_0001_u32.to_le_bytes()); // scale 1, weights 0 and 7 negative
        bytes[94..].copy_from_slice(&0xf060_0000_u32.to_le_bytes()); // scale 15, weights 248 and 249
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        // Steps 0.5 * 1.5 / 2, 0.5 * 0.5 / 2, and 0.5 * 15.5 / 2.
        let first = [-20.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, -4.0, 4.0];
        assert_eq!(out[..9], first.map(|q| 0.375 * q));
        assert!(out[32..224].iter().all(|&x| x == 0.5));
        let last = [-4.0, -4.0, 4.0, 4.0, 12.0, 12.0, 12.0, 12.0];
        assert_eq!(out[248..], last.map(|q| 3.875 * q));
    }
}
