//! IQ1_M: codewords of eight values -1, 0 and 1, each with a sign of `delta`, and a 3-bit scale for each 16:
//! `weight = d * (2 * scale + 1) * (value + delta)`, where `delta` is 1/8 or -1/8.
//!
//! Layout: `block_iq1_m` in ggml-common.h. A codeword has 11 bits, the highest three of them in a half of a
//! byte of `qh`, below the sign of its delta. Four words hold four scales each, and in their highest four
//! bits a part of `d`, the lowest first.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codebooks::{DELTA, IQ1, nearest_scales};
use super::{f16_magnitude, scale_from_bytes};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The low eight bits of the codewords.
    qs: [u8; 32],
    /// Their high bits and the signs of `delta`, two a byte.
    qh: [u8; 16],
    /// The scales, and the scale of the scales, f16.
    scales: [[u8; 2]; 4],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(d(block))]
}

fn d(block: &Block) -> [u8; 2] {
    let [a, b, c, d] = block.scales.map(|[_, high]| high >> 4);
    [a | b << 4, c | d << 4]
}

fn step(d: f32, scale: u16) -> f32 {
    d * f32::from(2 * scale + 1)
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let d = scale_from_bytes(d(block));
    let (eights, _) = out.as_chunks_mut::<8>();
    for (i, (out, &q)) in eights.iter_mut().zip(&block.qs).enumerate() {
        let group = i / 2;
        let scales = u16::from_le_bytes(block.scales[group / 4]);
        let step = step(d, scales >> (3 * (group % 4)) & 7);
        let high = block.qh[group] >> (i % 2 * 4);
        let delta = if high & 8 == 0 { DELTA } else { -DELTA };
        let q = usize::from(q) | usize::from(high & 7) << 8;
        for (out, &value) in out.iter_mut().zip(IQ1.word(q)) {
            *out = step * (f32::from(value) + delta);
        }
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let (groups, _) = weights.as_chunks::<16>();
    let steps = std::array::from_fn(|group| IQ1.step_of_values(&groups[group], 8));
    let (d, scales) = nearest_scales::<16>(steps, 1.0, 7);
    let mut block = Block::zeroed();
    for (i, weights) in weights.chunks_exact(8).enumerate() {
        let step = step(d.to_f32(), scales[i / 2].into());
        let delta = IQ1.delta(weights, step);
        let q = IQ1.of_values(weights, step, delta);
        block.qs[i] = q as u8;
        let high = (q >> 8) as u8 | u8::from(delta < 0.0) << 3;
        block.qh[i / 2] |= high << (i % 2 * 4);
    }
    block.scales = std::array::from_fn(|word| pack_scales(&scales[4 * word..], d, word));
    block
}

fn pack_scales(scales: &[u8], d: f16, word: usize) -> [u8; 2] {
    let scales = scales.iter().take(4).enumerate();
    let bits = scales.fold(0, |bits, (i, &scale)| bits | u16::from(scale) << (3 * i));
    (bits | d.to_bits() >> (4 * word) << 12).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iq1_m_decodes_a_hand_worked_block() {
        let mut bytes = [0; 56];
        bytes[0] = 1; // codeword 1 is 1, and seven times -1
        bytes[31] = 0xff; // with its high bits codeword 2047, which is eight times 1
        bytes[47] = 0xf0; // these, and delta -1/8
        bytes[48] = 1; // scale of weights 0 to 15
        bytes[53] = 0x80; // the parts of d, 0x3800, which is 0.5
        bytes[55] = 0x3e; // and the scale of weights 240 to 255, 7
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        // Steps 0.5 * 3, 0.5, and 0.5 * 15.
        assert_eq!(out[..3], [1.5 * 1.125, 1.5 * -0.875, 1.5 * -0.875]);
        assert!(out[16..240].iter().all(|&x| x == 0.5 * -0.875));
        assert_eq!(out[247..249], [7.5 * -0.875, 7.5 * 0.875]);
        assert_eq!(out[255], 7.5 * 0.875);
    }
}
