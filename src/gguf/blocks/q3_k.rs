//! Q3_K: `weight = d * (scale - 32) * (q - 4)` with 3-bit `q` and a 6-bit `scale` for each 16.
//!
//! Layout: `block_q3_K` in ggml-common.h. The low 2 bits are packed as those of Q2_K; bit `g` of byte `i` of
//! `hmask` is the third bit of weight `i` of the `g`-th 32 weights. Scales 0 to 7 have their low 4 bits in the
//! low halves of bytes 0 to 7, scales 8 to 15 in the high halves; the high 2 bits of scale `i` are bits
//! `i / 4 * 2` and on of byte `8 + i % 4`.

use bytemuck::{Pod, Zeroable};

use super::q2_k::pack_two_bits;
use super::{f16_magnitude, f16_not_below, quantize, scale_from_bytes, signed_step};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The third bits.
    hmask: [u8; 32],
    /// The low two bits, four weights a byte.
    qs: [[u8; 32]; 2],
    /// The packed scales.
    scales: [u8; 12],
    /// The scale of the scales, f16.
    d: [u8; 2],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let d = scale_from_bytes(block.d);
    let steps = unpack(&block.scales).map(|scale| d * (f32::from(scale) - 32.0));
    let (groups, _) = out.as_chunks_mut::<32>();
    for (index, out) in groups.iter_mut().enumerate() {
        let (half, shift) = (index / 4, index % 4 * 2);
        for (i, (low, high)) in block.qs[half].iter().zip(&block.hmask).enumerate() {
            let q = low >> shift & 3 | (high >> index & 1) << 2;
            out[i] = steps[2 * index + i / 16] * (i32::from(q) - 4) as f32;
        }
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let (groups, _) = weights.as_chunks::<16>();
    let steps: [f32; 16] = std::array::from_fn(|group| signed_step(&groups[group], -4, 3));
    let largest = steps.iter().fold(0.0_f32, |largest, &x| largest.max(x));
    let d = f16_not_below(largest / 31.0);
    let scales = steps.map(|step| match step {
        0.0 => 0,
        _ => (step / d.to_f32()).ceil().min(31.0) as u8,
    });
    let q = |index: usize| {
        let step = d.to_f32() * f32::from(scales[index / 16]);
        (quantize(weights[index], step, -4, 3) + 4) as u8
    };
    Block {
        hmask: std::array::from_fn(|i| {
            (0..8).fold(0, |byte, group| byte | q(32 * group + i) >> 2 << group)
        }),
        qs: pack_two_bits(|index| q(index) & 3),
        scales: pack(&scales.map(|scale| scale + 32)),
        d: d.to_le_bytes(),
    }
}

/// The scales, each 0 to 63.
fn unpack(bytes: &[u8; 12]) -> [u8; 16] {
    std::array::from_fn(|i| {
        let low = bytes[i % 8] >> (i / 8 * 4) & 15;
        low | (bytes[8 + i % 4] >> (i / 4 * 2) & 3) << 4
    })
}

/// The inverse of [`unpack`].
fn pack(scales: &[u8; 16]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..8 => scales[i] & 15 | (scales[i + 8] & 15) << 4,
        _ => (0..4).fold(0, |byte, k| byte | scales[i - 8 + 4 * k] >> 4 << (2 * k)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q3_k_decodes_a_hand_worked_block() {
        let mut bytes = [0; 110];
        bytes[0] = 0b0000_0001; // third bit of weight 0
        bytes[31] = 0b1000_0000; // third bit of weight 255
        bytes[32] = 0b00_00_00_11; // low bits of weight 0: 3
        bytes[95] = 0b10_00_00_00; // low bits of weight 255: 2
        bytes[96] = 0x05; // low bits of scale 0: 5, of scale 8: 0
        bytes[103] = 0xf0; // low bits of scale 7: 0, of scale 15: 15
        bytes[104] = 0b10_10_10_11; // high bits of scale 0: 3, of scales 4, 8 and 12: 2
        bytes[105..108].copy_from_slice(&[0b10_10_10_10; 3]); // of all others: 2
        bytes[108..].copy_from_slice(&[0x00, 0x38]); // d = 0.5
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        // Scale 0 is 53 - 32, scale 15 is 47 - 32, all others 32 - 32.
        assert_eq!(out[..2], [10.5 * 3.0, 10.5 * -4.0]);
        assert!(out[16..240].iter().all(|&x| x == 0.0));
        assert_eq!(out[254..], [7.5 * -4.0, 7.5 * 2.0]);
    }

    #[test]
    fn q3_k_scales_round_trip_through_their_packing() {
        let scales = std::array::from_fn(|i| (i * 37 % 64) as u8);
        assert_eq!(unpack(&pack(&scales)), scales);
    }
}
