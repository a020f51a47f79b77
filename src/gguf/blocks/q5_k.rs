//! Q5_K: `weight = d * scale * q - dmin * min` with 5-bit `q` and 6-bit `scale` and `min` for each 32.
//!
//! Layout: `block_q5_K` in ggml-common.h. The low 4 bits are packed as those of Q4_K; bit `g` of
//! byte `i` of `qh` is the fifth bit of weight `i` of the `g`-th 32 weights.

use bytemuck::{Pod, Zeroable};

use super::k_scales::{Scales, unpack};
use super::{f16_magnitude, scale_from_bytes};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale of the scales, f16.
    d: [u8; 2],
    /// The scale of the minimums, f16.
    dmin: [u8; 2],
    /// The packed scales and minimums.
    scales: [u8; 12],
    /// The fifth bits.
    qh: [u8; 32],
    /// The low four bits, two weights a byte.
    qs: [[u8; 32]; 4],
}

pub(super) const SCALES: [&str; 2] = ["d", "dmin"];

pub(super) fn scales(block: &Block) -> [f32; 2] {
    [f16_magnitude(block.d), f16_magnitude(block.dmin)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let (d, dmin) = (scale_from_bytes(block.d), scale_from_bytes(block.dmin));
    let (scales, mins) = unpack(&block.scales);
    let (groups, _) = out.as_chunks_mut::<32>();
    for (group, out) in groups.iter_mut().enumerate() {
        let step = d * f32::from(scales[group]);
        let offset = dmin * f32::from(mins[group]);
        let shift = group % 2 * 4;
        for ((low, high), out) in block.qs[group / 2].iter().zip(&block.qh).zip(out) {
            let q = low >> shift & 15 | (high >> group & 1) << 4;
            *out = step * f32::from(q) - offset;
        }
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let scales = Scales::fit(weights, 31);
    let q = |index: usize| scales.quantize(index, weights[index], 31);
    let qh = std::array::from_fn(|index| {
        (0..8).fold(0, |qh, group| qh | q(32 * group + index) >> 4 << group)
    });
    let low = |index: usize| q(index) & 15;
    let qs = std::array::from_fn(|pair| {
        std::array::from_fn(|index| low(64 * pair + index) | low(64 * pair + 32 + index) << 4)
    });
    let (d, dmin) = (scales.d.to_le_bytes(), scales.dmin.to_le_bytes());
    Block {
        d,
        dmin,
        scales: scales.packed,
        qh,
        qs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q5_k_decodes_a_hand_worked_block() {
        let mut bytes = [0; 176];
        bytes[..4].copy_from_slice(&[0x00, 0x38, 0x00, 0x34]); // d = 0.5, dmin = 0.25
        bytes[4] = 2; // scale 0 = 2
        bytes[7] = 0b11_000000; // high bits of scale 7 = 3
        bytes[9] = 8; // min 1 = 8
        bytes[11] = 0b01_000000; // high bits of min 7 = 1
        bytes[15] = 0b0100_1111; // low bits of scale 7 = 15, of min 7 = 4
        bytes[16] = 0b0000_0001; // fifth bit of weight 0
        bytes[47] = 0b1000_0000; // fifth bit of weight 255
        bytes[48] = 0x53; // weight 0: 16 + 3, weight 32: 5
        bytes[79] = 0x0f; // weight 31: 15
        bytes[175] = 0xf0; // weight 255: 16 + 15
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        // Group 0: 0.5 * 2 * q. Group 1: scale 0, minus 0.25 * 8. Group 7: 0.5 * 63 * q - 0.25 * 20.
        assert_eq!(out[..2], [19.0, 0.0]);
        assert_eq!(out[31..34], [15.0, -2.0, -2.0]);
        assert!(out[64..224].iter().all(|&x| x == 0.0));
        assert_eq!(out[254..], [-5.0, 31.5 * 31.0 - 5.0]);
    }
}
