//! Q2_K: `weight = d * scale * q - dmin * min` with 2-bit `q` and 4-bit `scale` and `min` for each 16.
//!
//! Layout: `block_q2_K` in ggml-common.h. Each 128 weights are four groups of 32 in 32 bytes of `qs`, those
//! of group `g` from bit `2 * g` on. A byte of `scales` holds a scale in its low and a minimum in its high half.

use bytemuck::{Pod, Zeroable};

use super::{f16_magnitude, f16_not_below, quantize, range_with_zero, scale_from_bytes};
use half::f16;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// Scales and minimums of 16 weights each.
    scales: [u8; 16],
    /// The quants, four weights a byte.
    qs: [[u8; 32]; 2],
    /// The scale of the scales, f16.
    d: [u8; 2],
    /// The scale of the minimums, f16.
    dmin: [u8; 2],
}

pub(super) const SCALES: [&str; 2] = ["d", "dmin"];

pub(super) fn scales(block: &Block) -> [f32; 2] {
    [f16_magnitude(block.d), f16_magnitude(block.dmin)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let (d, dmin) = (scale_from_bytes(block.d), scale_from_bytes(block.dmin));
    let steps = block.scales.map(|byte| d * f32::from(byte & 15));
    let offsets = block.scales.map(|byte| dmin * f32::from(byte >> 4));
    let (groups, _) = out.as_chunks_mut::<32>();
    for (index, out) in groups.iter_mut().enumerate() {
        let (half, shift) = (index / 4, index % 4 * 2);
        for (i, byte) in block.qs[half].iter().enumerate() {
            let at = 2 * index + i / 16;
            out[i] = steps[at] * f32::from(byte >> shift & 3) - offsets[at];
        }
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let (groups, _) = weights.as_chunks::<16>();
    let range = |group: usize| range_with_zero(&groups[group]);
    let (dmin, mins) = quantize_up(&std::array::from_fn(|group| -range(group).0));
    let offsets = mins.map(|min| dmin.to_f32() * f32::from(min));
    let (d, scales) = quantize_up(&std::array::from_fn(|group| {
        (range(group).1 + offsets[group]) / 3.0
    }));
    let steps = scales.map(|scale| d.to_f32() * f32::from(scale));
    let q = |index: usize| {
        let group = index / 16;
        quantize(weights[index] + offsets[group], steps[group], 0, 3) as u8
    };
    Block {
        scales: std::array::from_fn(|group| scales[group] | mins[group] << 4),
        qs: pack_two_bits(q),
        d: d.to_le_bytes(),
        dmin: dmin.to_le_bytes(),
    }
}

/// Two bits of each of 256 weights as Q2_K, Q3_K and TQ2_0 hold them.
pub(super) fn pack_two_bits(bits: impl Fn(usize) -> u8) -> [[u8; 32]; 2] {
    std::array::from_fn(|half| {
        std::array::from_fn(|i| {
            (0..4).fold(0, |byte, group| {
                byte | bits(128 * half + 32 * group + i) << (2 * group)
            })
        })
    })
}

/// A scale and 4-bit integers whose products are not below the values, which are not negative.
fn quantize_up(values: &[f32; 16]) -> (f16, [u8; 16]) {
    let largest = values.iter().fold(0.0_f32, |largest, &x| largest.max(x));
    let d = f16_not_below(largest / 15.0);
    let integer = |x: f32| match x {
        0.0 => 0,
        _ => (x / d.to_f32()).ceil().min(15.0) as u8,
    };
    (d, values.map(integer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q2_k_decodes_a_hand_worked_block() {
        let mut bytes = [0; 84];
        bytes[0] = 0x21; // weights 0 to 15: scale 1, min 2
        bytes[1] = 0x0f; // weights 16 to 31: scale 15
        bytes[6] = 0x02; // weights 96 to 111: scale 2
        bytes[15] = 0xf3; // weights 240 to 255: scale 3, min 15
        bytes[16] = 0b10_00_00_11; // weight 0: 3, weight 96: 2
        bytes[47] = 0b00_00_00_01; // weight 31: 1
        bytes[79] = 0b11_00_00_00; // weight 255: 3
        bytes[80..].copy_from_slice(&[0x00, 0x38, 0x00, 0x34]); // d = 0.5, dmin = 0.25
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!(out[..2], [1.5 - 0.5, -0.5]);
        assert_eq!(out[30..32], [0.0, 7.5]);
        assert_eq!(out[96..98], [2.0, 0.0]);
        assert_eq!(out[254..], [-3.75, 4.5 - 3.75]);
        assert!(out[32..96].iter().chain(&out[112..240]).all(|&x| x == 0.0));
    }
}
