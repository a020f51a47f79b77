//! TQ2_0: `weight = d * (q - 1)` with 2-bit `q`; encoders give 0, 1 and 2.
//!
//! Layout: `block_tq2_0` in ggml-common.h. The quants are packed as those of Q2_K.

use bytemuck::{Pod, Zeroable};

use super::q2_k::pack_two_bits;
use super::{f16_magnitude, f16_not_below, quantize, scale_from_bytes, signed_step};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The quants, four weights a byte.
    qs: [[u8; 32]; 2],
    /// The scale, f16.
    d: [u8; 2],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let d = scale_from_bytes(block.d);
    let (groups, _) = out.as_chunks_mut::<32>();
    for (index, out) in groups.iter_mut().enumerate() {
        let (half, shift) = (index / 4, index % 4 * 2);
        for (byte, out) in block.qs[half].iter().zip(out) {
            *out = d * (f32::from(byte >> shift & 3) - 1.0);
        }
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let d = f16_not_below(signed_step(weights, -1, 1));
    let q = |index: usize| (quantize(weights[index], d.to_f32(), -1, 1) + 1) as u8;
    Block {
        qs: pack_two_bits(q),
        d: d.to_le_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tq2_0_decodes_a_hand_worked_block() {
        let mut bytes = [0b01_01_01_01; 66];
        bytes[0] = 0b11_00_01_10; // weight 0: 2, weight 32: 1, weight 64: 0, weight 96: 3
        bytes[63] = 0b00_01_01_10; // weight 159: 2, weight 255: 0
        bytes[64..].copy_from_slice(&[0x00, 0xb8]); // d = -0.5
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!([0, 32, 64, 96].map(|i| out[i]), [-0.5, 0.0, 0.5, -1.0]);
        assert_eq!((out[159], out[255]), (-0.5, 0.5));
        assert_eq!(out.iter().filter(|&&x| x == 0.0).count(), 256 - 5);
    }
}
