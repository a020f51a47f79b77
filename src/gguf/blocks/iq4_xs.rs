//! IQ4_XS: `weight = d * (scale - 32) * VALUES[q]` with 4-bit `q` and a 6-bit `scale` for each 32; the values
//! are those of IQ4_NL.
//!
//! Layout: `block_iq4_xs` in ggml-common.h. The low 4 bits of the scales are in `scales_l`, two a byte, the high
//! 2 bits of scale `g` in `scales_h` from bit `2 * g` on. Each 32 quants are packed as those of IQ4_NL.

use bytemuck::{Pod, Zeroable};

use super::iq4_nl::{VALUES, decode_halves, encode_halves, step, step_that_helps};
use super::{f16_magnitude, f16_not_below, scale_from_bytes};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale of the scales, f16.
    d: [u8; 2],
    /// The high two bits of the scales.
    scales_h: [u8; 2],
    /// The low four bits of the scales.
    scales_l: [u8; 4],
    /// The quants, two a byte.
    qs: [[u8; 16]; 8],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let d = scale_from_bytes(block.d);
    let highs = u16::from_le_bytes(block.scales_h);
    let (groups, _) = out.as_chunks_mut::<32>();
    for (group, (qs, out)) in block.qs.iter().zip(groups).enumerate() {
        let low = i32::from(block.scales_l[group / 2] >> (group % 2 * 4) & 15);
        let scale = low | i32::from(highs >> (2 * group) & 3) << 4;
        decode_halves(qs, &VALUES, d * (scale - 32) as f32, out);
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let (groups, _) = weights.as_chunks::<32>();
    let steps: [f32; 8] = std::array::from_fn(|group| step(&groups[group]));
    let largest = steps.iter().fold(0.0_f32, |largest, &x| largest.max(x));
    let d = step_that_helps(f16_not_below(largest / 31.0), weights);
    let scales: [u8; 8] = std::array::from_fn(|group| {
        if step_that_helps(d, &groups[group]).to_f32() == 0.0 {
            return 32;
        }
        32 + (steps[group] / d.to_f32()).ceil().min(31.0) as u8
    });
    let highs = (0..8).fold(0, |highs, group| {
        highs | u16::from(scales[group] >> 4) << (2 * group)
    });
    let low = |group: usize| scales[group] & 15;
    Block {
        d: d.to_le_bytes(),
        scales_h: highs.to_le_bytes(),
        scales_l: std::array::from_fn(|pair| low(2 * pair) | low(2 * pair + 1) << 4),
        qs: std::array::from_fn(|group| {
            let step = d.to_f32() * (f32::from(scales[group]) - 32.0);
            encode_halves(&VALUES, step, &groups[group])
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iq4_xs_decodes_a_hand_worked_block() {
        let mut bytes = [0; 136];
        bytes[..2].copy_from_slice(&[0x00, 0x38]); // d = 0.5
        bytes[2..4].copy_from_slice(&[0b10_10_10_11, 0b01_10_10_10]); // scale 0: 3, scale 7: 1, others: 2
        bytes[4] = 0x05; // low bits of scale 0: 5
        bytes[7] = 0xf0; // low bits of scale 7: 15
        bytes[8] = 0xf8; // weight 0: 1, weight 16: 113
        bytes[135] = 0x90; // weight 239: -127, weight 255: 13
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        // Scale 0 is 53 - 32, scale 7 is 31 - 32, all others 32 - 32.
        assert_eq!(out[..2], [10.5, 10.5 * -127.0]);
        assert_eq!(out[16], 10.5 * 113.0);
        assert!(out[32..224].iter().all(|&x| x == 0.0));
        assert_eq!((out[239], out[255]), (-0.5 * -127.0, -0.5 * 13.0));
    }
}
