//! TQ1_0: `weight = d * (q - 1)` with `q` of 0, 1 or 2, five in a byte.
//!
//! Layout: `block_tq1_0` in ggml-common.h. A byte is `ceil(n * 256 / 243)` of five digits to the base 3 that make
//! the number `n`, the first the highest. Digit `g` of the first 32 bytes of `qs` are the `g`-th 32 weights, digit
//! `g` of the last 16 bytes the `g`-th 16 of the next 80, and digit `g` of the bytes of `qh` the `g`-th 4 of the
//! last 16, whose fifth digit is 0.

use bytemuck::{Pod, Zeroable};

use super::{f16_magnitude, f16_not_below, quantize, scale_from_bytes, signed_step};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Block {
    /// Weights 0 to 159, five a byte.
    qs: [u8; 32],
    /// Weights 160 to 239, five a byte.
    qs_last: [u8; 16],
    /// Weights 240 to 255, four a byte.
    qh: [u8; 4],
    /// The scale, f16.
    d: [u8; 2],
}

pub(super) const SCALES: [&str; 1] = ["d"];

pub(super) fn scales(block: &Block) -> [f32; 1] {
    [f16_magnitude(block.d)]
}

pub(super) fn decode_block(block: &Block, out: &mut [f32; 256]) {
    let d = scale_from_bytes(block.d);
    let (first, rest) = out.split_at_mut(160);
    let (next, last) = rest.split_at_mut(80);
    decode_digits(&block.qs, d, first);
    decode_digits(&block.qs_last, d, next);
    decode_digits(&block.qh, d, last);
}

/// One digit of all bytes behind the other, as many as there is room for.
fn decode_digits(bytes: &[u8], d: f32, out: &mut [f32]) {
    let mut power = 1_u8;
    for out in out.chunks_exact_mut(bytes.len()) {
        for (byte, out) in bytes.iter().zip(out) {
            // A byte is a fraction of 256; what stands in front of the digit is gone by the overflow.
            let q = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
            *out = d * (f32::from(q) - 1.0);
        }
        power = power.wrapping_mul(3);
    }
}

pub(super) fn encode_block(weights: &[f32; 256]) -> Block {
    let d = f16_not_below(signed_step(weights, -1, 1));
    let q = |index: usize| (quantize(weights[index], d.to_f32(), -1, 1) + 1) as u16;
    let byte = |digits: [u16; 5]| {
        let n = digits.iter().fold(0, |n, digit| 3 * n + digit);
        (n * 256).div_ceil(243) as u8
    };
    Block {
        qs: std::array::from_fn(|i| byte(std::array::from_fn(|g| q(32 * g + i)))),
        qs_last: std::array::from_fn(|i| byte(std::array::from_fn(|g| q(160 + 16 * g + i)))),
        qh: std::array::from_fn(|i| byte([q(240 + i), q(244 + i), q(248 + i), q(252 + i), 0])),
        d: d.to_le_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tq1_0_decodes_a_hand_worked_block() {
        let mut bytes = [0; 54];
        bytes[52..].copy_from_slice(&[0x00, 0x38]); // d = 0.5
        // 2 * 81 + 0 * 27 + 1 * 9 + 0 * 3 + 2 = 173; 173 * 256 / 243 = 182.3
        bytes[0] = 183;
        // 1 * 81 + 2 * 27 + 0 * 9 + 1 * 3 + 1 = 139; 139 * 256 / 243 = 146.4
        bytes[47] = 147;
        // 0 * 81 + 1 * 27 + 2 * 9 + 2 * 3 = 51; 51 * 256 / 243 = 53.7
        bytes[49] = 54;
        let mut out = [f32::NAN; 256];
        decode_block(bytemuck::from_bytes(&bytes), &mut out);
        let at = |places: [usize; 5]| places.map(|i| out[i]);
        assert_eq!(at([0, 32, 64, 96, 128]), [0.5, -0.5, 0.0, -0.5, 0.5]);
        assert_eq!(at([175, 191, 207, 223, 239]), [0.0, 0.5, -0.5, 0.0, 0.0]);
        assert_eq!(at([240, 241, 245, 249, 253]), [-0.5, -0.5, 0.0, 0.5, 0.5]);
        let n_low = out.iter().filter(|&&x| x == -0.5).count();
        assert_eq!(n_low, 256 - 10);
    }

    #[test]
    fn tq1_0_round_trips_any_five_digits() {
        for n in 0..243 {
            let digit = |g: u32| (n / 3_i32.pow(4 - g) % 3 - 1) as f32;
            let mut weights = [0.0; 256];
            (0..5).for_each(|g| weights[32 * g as usize + 7] = digit(g));
            weights[1] = 1.0;
            let mut out = [f32::NAN; 256];
            decode_block(&encode_block(&weights), &mut out);
            assert_eq!(out, weights, "{n}");
        }
    }
}
