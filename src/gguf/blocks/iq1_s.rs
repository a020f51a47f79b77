//! IQ1_S: codewords of eight values -1, 0 and 1, with a 3-bit scale and a sign of `delta` for each 32:
//! `weight = d * (2 * scale + 1) * (value + delta)`, where `delta` is 1/8 or -1/8.
//!
//! Layout: `block_iq1_s` in ggml-common.h. A codeword has 11 bits, the highest three of them in `qh`.

use bytemuck::{Pod, Zeroable};

use super::codebooks::{DELTA, IQ1, nearest_scales};
use super::{f16_magnitude, scale_from_bytes};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale of the scales, f16.
    d: [u8; 2],
    /// The low eight bits of the codewords.
    qs: [[u8; 4]; 8],
    /// The high bits of four codewords, the scale, the sign of `delta`.
    qh: [[u8; 2]; 8],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

fn step(d: f32, scale: u16) -> f32 {
    d * f32::from(2 * scale + 1)
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let d = scale_from_bytes(block.d);
    let (groups, _) = out.as_chunks_mut::<32>();
    for ((qs, qh), out) in block.qs.iter().zip(&block.qh).zip(groups) {
        let qh = u16::from_le_bytes(*qh);
        let step = step(d, qh >> 12 & 7);
        let delta = if qh >> 15 == 0 { DELTA } else { -DELTA };
        for (i, (out, &q)) in out.chunks_mut(8).zip(qs).enumerate() {
            let q = u16::from(q) | (qh >> (3 * i) & 7) << 8;
            for (out, &value) in out.iter_mut().zip(IQ1.word(q.into())) {
                *out = step * (f32::from(value) + delta);
            }
        }
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let (groups, _) = weights.as_chunks::<32>();
    let steps = std::array::from_fn(|group| IQ1.step_of_values(&groups[group], 32));
    let (d, scales) = nearest_scales::<8>(steps, 1.0, 7);
    let mut block = Block {
        d: d.to_le_bytes(),
        ..Block::zeroed()
    };
    for (group, weights) in groups.iter().enumerate() {
        let scale = u16::from(scales[group]);
        let step = step(d.to_f32(), scale);
        let delta = IQ1.delta(weights, step);
        let mut qh = scale << 12 | u16::from(delta < 0.0) << 15;
        for (i, weights) in weights.chunks_exact(8).enumerate() {
            let q = IQ1.of_values(weights, step, delta) as u16;
            block.qs[group][i] = q as u8;
            qh |= (q >> 8) << (3 * i);
        }
        block.qh[group] = qh.to_le_bytes();
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iq1_s_decodes_a_hand_worked_block() {
        let mut bytes = [0; 50];
        bytes[..2].copy_from_slice(&[0x00, 0x38]); // d = 0.5
        bytes[2] = 1; // codeword 1 is 1, and seven times -1
        bytes[33] = 0xff; // with its high bits codeword 2047, which is eight times 1
        bytes[34..36].copy_from_slice(&0x1000_u16.to_le_bytes()); // scale 1
        bytes[48..].copy_from_slice(&0xfe00_u16.to_le_bytes()); // scale 7, delta -1/8
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        // Steps 0.5 * 3, 0.5, and 0.5 * 15.
        assert_eq!(out[..3], [1.5 * 1.125, 1.5 * -0.875, 1.5 * -0.875]);
        assert!(out[32..224].iter().all(|&x| x == 0.5 * -0.875));
        assert_eq!(out[247..249], [7.5 * -1.125, 7.5 * 0.875]);
        assert_eq!(out[255], 7.5 * 0.875);
    }
}
