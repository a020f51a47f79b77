//! IQ4_NL: `weight = d * VALUES[q]` with 4-bit `q`.
//!
//! Layout: `block_iq4_nl` in ggml-common.h, values: `kvalues_iq4nl`. Byte `i` of `qs` holds weight `i` in its
//! low and weight `i + 16` in its high half.

use bytemuck::{Pod, Zeroable};

use super::{f16_magnitude, f16_not_below, nearest, scale_from_bytes, signed_step};

/// What the quants stand for: dense around zero, which is not among them.
pub(super) const VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// The scale, f16.
    d: [u8; 2],
    /// The quants, two a byte.
    qs: [u8; 16],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 32]) {
    decode_halves(&block.qs, &VALUES, scale_from_bytes(block.d), out);
}

pub(super) fn encode_block(weights: &[f32; 32]) -> Block {
    let d = step_that_helps(f16_not_below(step(weights)), weights);
    Block {
        d: d.to_le_bytes(),
        qs: encode_halves(&VALUES, d.to_f32(), weights),
    }
}

/// The smallest step with which the values span the weights.
pub(super) fn step(weights: &[f32]) -> f32 {
    signed_step(weights, -127, 113)
}

/// The step, or 0 where every weight is closer to zero than to any value.
pub(super) fn step_that_helps(step: half::f16, weights: &[f32]) -> half::f16 {
    let largest = weights.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    match step.to_f32() > largest {
        true => half::f16::ZERO,
        false => step,
    }
}

/// The low halves of 16 bytes, then their high halves, as what they stand for.
pub(super) fn decode_halves(qs: &[u8; 16], values: &[i8; 16], step: f32, out: &mut [f32; 32]) {
    let (low, high) = out.split_at_mut(16);
    for ((q, low), high) in qs.iter().zip(low).zip(high) {
        *low = step * f32::from(values[usize::from(q & 15)]);
        *high = step * f32::from(values[usize::from(q >> 4)]);
    }
}

/// The inverse of [`decode_halves`], to the nearest value.
pub(super) fn encode_halves(values: &[i8; 16], step: f32, weights: &[f32; 32]) -> [u8; 16] {
    let q = |index: usize| nearest(values, weights[index], step);
    std::array::from_fn(|index| q(index) | q(index + 16) << 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iq4_nl_decodes_a_hand_worked_block() {
        // d = 0.5 (0x3800); byte i is i in the low half and 15 - i in the high half.
        let mut bytes = [0; 18];
        bytes[..2].copy_from_slice(&[0x00, 0x38]);
        for (index, byte) in bytes[2..].iter_mut().enumerate() {
            *byte = (index | (15 - index) << 4) as u8;
        }
        let mut out = [f32::NAN; 32];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        assert_eq!(out[..4], [-63.5, -52.0, -41.5, -32.5]);
        assert_eq!(out[7..10], [-5.0, 0.5, 6.5]);
        assert_eq!(out[14..18], [44.5, 56.5, 56.5, 44.5]);
        assert_eq!(out[31], -63.5);
    }
}
