//! Q6_K: `weight = d * scale * (q - 32)` with 6-bit `q` and a signed 8-bit `scale` for each 16.
//!
//! Layout: `block_q6_K` in ggml-common.h. Each 128 weights are four groups of 32. Their low 4 bits are
//! in 64 bytes of `ql`: groups 0 and 1 in the low halves, groups 2 and 3 in the high halves. Their high
//! 2 bits are in 32 bytes of `qh`, those of group `g` from bit `2 * g` on.

use bytemuck::{Pod, Zeroable};

use super::{f16_magnitude, f16_not_below, quantize, scale_from_bytes, signed_step};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The low four bits, two weights a byte.
    ql: [[[u8; 32]; 2]; 2],
    /// The high two bits, four weights a byte.
    qh: [[u8; 32]; 2],
    /// The scales.
    scales: [i8; 16],
    /// The scale of the scales, f16.
    d: [u8; 2],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let d = scale_from_bytes(block.d);
    let steps = block.scales.map(|scale| d * f32::from(scale));
    let (groups, _) = out.as_chunks_mut::<32>();
    for (index, out) in groups.iter_mut().enumerate() {
        let (half, group) = (index / 4, index % 4);
        let low_shift = group / 2 * 4;
        let low = &block.ql[half][group % 2];
        for (i, (low, high)) in low.iter().zip(&block.qh[half]).enumerate() {
            let q = low >> low_shift & 15 | (high >> (2 * group) & 3) << 4;
            out[i] = steps[2 * index + i / 16] * (i32::from(q) - 32) as f32;
        }
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let (groups, _) = weights.as_chunks::<16>();
    let mut steps = [0.0; 16];
    for (step, group) in steps.iter_mut().zip(groups) {
        *step = signed_step(group, -32, 31);
    }
    let d = f16_not_below(
        steps
            .iter()
            .fold(0.0_f32, |largest, &step| largest.max(step))
            / 127.0,
    );
    let scales = steps.map(|step| match step {
        0.0 => 0,
        _ => (step / d.to_f32()).ceil().min(127.0) as i8,
    });
    let q = |index: usize| {
        let step = d.to_f32() * f32::from(scales[index / 16]);
        (quantize(weights[index], step, -32, 31) + 32) as u8
    };
    let low = |half: usize, group: usize, i: usize| q(128 * half + 32 * group + i) & 15;
    let ql = std::array::from_fn(|half| {
        std::array::from_fn(|group| {
            std::array::from_fn(|i| low(half, group, i) | low(half, group + 2, i) << 4)
        })
    });
    let qh = std::array::from_fn(|half| {
        std::array::from_fn(|i| {
            (0..4).fold(0, |qh, group| {
                qh | q(128 * half + 32 * group + i) >> 4 << (2 * group)
            })
        })
    });
    Block {
        ql,
        qh,
        scales,
        d: d.to_le_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q6_k_decodes_a_hand_worked_block() {
        let mut bytes = [0; 210];
        bytes[0] = 0x21; // low bits of weight 0: 1, of weight 64: 2
        bytes[127] = 0xf5; // low bits of weight 191: 5, of weight 255: 15
        bytes[128] = 0b00_10_00_11; // high bits of weight 0: 3, of weight 64: 2
        bytes[191] = 0b11_00_01_00; // high bits of weight 191: 1, of weight 255: 3
        bytes[192] = 1; // scale of weights 0 to 15
        bytes[196] = 0x80; // of weights 64 to 79: -128
        bytes[203] = 127; // of weights 176 to 191
        bytes[207] = 0xff; // of weights 240 to 255: -1
        bytes[208..].copy_from_slice(&[0x00, 0x38]); // d = 0.5
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!(out[..2], [0.5 * (49.0 - 32.0), 0.5 * -32.0]);
        assert_eq!(out[64..66], [-64.0 * (34.0 - 32.0), -64.0 * -32.0]);
        assert_eq!(out[190..192], [63.5 * -32.0, 63.5 * (21.0 - 32.0)]);
        assert_eq!(out[254..], [-0.5 * -32.0, -0.5 * (63.0 - 32.0)]);
        assert!(out[16..64].iter().chain(&out[192..240]).all(|&x| x == 0.0));
    }
}
