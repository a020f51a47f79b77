//! IQ2_XS: codewords of eight magnitudes, with a 4-bit scale for each 16:
//! `weight = d * (0.5 + scale) / 4 * magnitude`, with signs of which every eighth follows from the others.
//!
//! Layout: `block_iq2_xs` in ggml-common.h. Of 16 bits, the low 9 are a codeword and the others its signs.

use bytemuck::{Pod, Zeroable};

use super::codebooks::{IQ2_XS, even_signs, even_signs_of, nearest_scales, write_signed};
use super::{f16_magnitude, scale_from_bytes};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale of the scales, f16.
    d: [u8; 2],
    /// Codewords and signs.
    qs: [[u8; 2]; 32],
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
    for (i, (out, q)) in eights.iter_mut().zip(&block.qs).enumerate() {
        let q = u16::from_le_bytes(*q);
        let step = step(d, block.scales[i / 4] >> (i / 2 % 2 * 4) & 15);
        let signs = even_signs(u32::from(q >> 9));
        write_signed(step, IQ2_XS.word((q & 511).into()), signs, out);
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let (groups, _) = weights.as_chunks::<16>();
    let steps = std::array::from_fn(|group| IQ2_XS.step_of_magnitudes(&groups[group]));
    let (d, scales) = nearest_scales::<16>(steps, 0.125, 15);
    let qs = std::array::from_fn(|i| {
        let weights = &weights[8 * i..][..8];
        let q = IQ2_XS.of_magnitudes(weights, step(d.to_f32(), scales[i / 2]));
        (q as u16 | u16::from(even_signs_of(weights) & 127) << 9).to_le_bytes()
    });
    Block {
        d: d.to_le_bytes(),
        qs,
        scales: std::array::from_fn(|pair| scales[2 * pair] | scales[2 * pair + 1] << 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iq2_xs_decodes_a_hand_worked_block() {
        let mut bytes = [0; 74];
        bytes[..2].copy_from_slice(&[0x00, 0x38]); // d = 0.5
        bytes[2..4].copy_from_slice(&(1_u16 | 1 << 9).to_le_bytes()); // 43, 8, ..; 0 and 7 negative
        bytes[64..66].copy_from_slice(&(511_u16 | 3 << 9).to_le_bytes()); // 43, ..; 248 and 249
        bytes[66] = 1; // scale of weights 0 to 15
        bytes[73] = 0xf0; // of weights 240 to 255
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        // Steps 0.5 * 1.5 / 4, 0.5 * 0.5 / 4, and 0.5 * 15.5 / 4.
        let first = [-43.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, -8.0, 8.0];
        assert_eq!(out[..9], first.map(|q| 0.1875 * q));
        assert!(out[16..240].iter().all(|&x| x == 0.5));
        assert_eq!(out[247..251], [8.0, -43.0, -43.0, 43.0].map(|q| 1.9375 * q));
    }
}
