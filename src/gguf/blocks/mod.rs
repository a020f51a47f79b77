//! How weights are packed: one weight type a file, each with its layout, decoder and encoder.
//!
//! The layouts are those of ggml: the `block_*` structs of `ggml-common.h`, decoded as the
//! `dequantize_row_*` functions of `ggml-quants.c` do, in f32 and in the same order of operations,
//! so that the results are equal bit for bit. All numbers are little-endian.

mod codebooks;
mod floats;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod k_scales;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod scales;
mod tq1_0;
mod tq2_0;

pub(crate) use codebooks::{LEVELS_IQ3_S, LEVELS_IQ3_XXS, unpacked, words};
pub(crate) use scales::MOST_SCALES;

use bytemuck::Pod;
use half::f16;

use crate::gguf::TensorType;

/// How the weights that the engine computes with are stored.
#[expect(non_camel_case_types, reason = "the names are ggml's")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// The upper 16 bits of 32-bit floats.
    BF16,
    /// 4 bits, a scale for each 32.
    Q4_0,
    /// 4 bits, a scale and a minimum for each 32.
    Q4_1,
    /// 5 bits, a scale for each 32.
    Q5_0,
    /// 5 bits, a scale and a minimum for each 32.
    Q5_1,
    /// 8 bits, a scale for each 32.
    Q8_0,
    /// 4 bits, a 6-bit scale and minimum for each 32, which have scales for each 256.
    Q4_K,
    /// 5 bits, a 6-bit scale and minimum for each 32, which have scales for each 256.
    Q5_K,
    /// 6 bits, an 8-bit scale for each 16, which has a scale for each 256.
    Q6_K,
    /// 2 bits, a 4-bit scale and minimum for each 16, which have scales for each 256.
    Q2_K,
    /// 3 bits, a 6-bit scale for each 16, which has a scale for each 256.
    Q3_K,
    /// 4 bits that choose among 16 values, a scale for each 32.
    IQ4_NL,
    /// 4 bits that choose among 16 values, a 6-bit scale for each 32, which has a scale for each 256.
    IQ4_XS,
    /// 4-bit floats, a power of two for each 32.
    MXFP4,
    /// -1, 0 or 1, five in a byte, a scale for each 256.
    TQ1_0,
    /// -1, 0 or 1, two bits each, a scale for each 256.
    TQ2_0,
    /// About 3 bits: codewords of four, a 4-bit scale for each 32, which has a scale for each 256.
    IQ3_XXS,
    /// 3.4 bits: codewords of four, a 4-bit scale for each 32, which has a scale for each 256.
    IQ3_S,
    /// About 2 bits: codewords of eight, a 4-bit scale for each 32, which has a scale for each 256.
    IQ2_XXS,
    /// 2.3 bits: codewords of eight, a 4-bit scale for each 16, which has a scale for each 256.
    IQ2_XS,
    /// 2.6 bits: codewords of eight, a 4-bit scale for each 16, which has a scale for each 256.
    IQ2_S,
    /// 1.6 bits: codewords of eight, a 3-bit scale for each 32, which has a scale for each 256.
    IQ1_S,
    /// 1.8 bits: codewords of eight, a 3-bit scale for each 16, which has a scale for each 256.
    IQ1_M,
}

impl WeightType {
    /// Every weight type.
    pub const ALL: [WeightType; 25] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::BF16,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q5_1,
        WeightType::Q8_0,
        WeightType::Q4_K,
        WeightType::Q5_K,
        WeightType::Q6_K,
        WeightType::Q2_K,
        WeightType::Q3_K,
        WeightType::IQ4_NL,
        WeightType::IQ4_XS,
        WeightType::MXFP4,
        WeightType::TQ1_0,
        WeightType::TQ2_0,
        WeightType::IQ3_XXS,
        WeightType::IQ3_S,
        WeightType::IQ2_XXS,
        WeightType::IQ2_XS,
        WeightType::IQ2_S,
        WeightType::IQ1_S,
        WeightType::IQ1_M,
    ];

    /// ggml's name of the type, e.g. `q4_K`.
    pub fn name(self) -> &'static str {
        TensorType::from(self).name()
    }

    /// Weights in a block.
    pub fn block_len(self) -> usize {
        TensorType::from(self).block_len()
    }

    /// Whether a block is of several elements, integers that share a scale; else they are floats.
    pub fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        TensorType::from(self).block_bytes()
    }

    /// Bytes of a row of `n_cols` weights, which must be whole blocks.
    pub fn row_bytes(self, n_cols: usize) -> usize {
        debug_assert!(
            n_cols.is_multiple_of(self.block_len()),
            "{n_cols} weights of type {self:?}"
        );
        n_cols / self.block_len() * self.block_bytes()
    }

    /// Decodes whole blocks: `bytes` holds as many blocks as `out` has room for.
    ///
    /// Where the lengths do not match, a build with debug assertions panics and any other decodes
    /// the blocks that both have.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            WeightType::F32 => decode_blocks(bytes, out, floats::decode_f32),
            WeightType::F16 => decode_blocks(bytes, out, floats::decode_f16),
            WeightType::BF16 => decode_blocks(bytes, out, floats::decode_bf16),
            WeightType::Q4_0 => decode_blocks(bytes, out, q4_0::decode_block),
            WeightType::Q4_1 => decode_blocks(bytes, out, q4_1::decode_block),
            WeightType::Q5_0 => decode_blocks(bytes, out, q5_0::decode_block),
            WeightType::Q5_1 => decode_blocks(bytes, out, q5_1::decode_block),
            WeightType::Q8_0 => decode_blocks(bytes, out, q8_0::decode_block),
            WeightType::Q4_K => decode_blocks(bytes, out, q4_k::decode_block),
            WeightType::Q5_K => decode_blocks(bytes, out, q5_k::decode_block),
            WeightType::Q6_K => decode_blocks(bytes, out, q6_k::decode_block),
            WeightType::Q2_K => decode_blocks(bytes, out, q2_k::decode_block),
            WeightType::Q3_K => decode_blocks(bytes, out, q3_k::decode_block),
            WeightType::IQ4_NL => decode_blocks(bytes, out, iq4_nl::decode_block),
            WeightType::IQ4_XS => decode_blocks(bytes, out, iq4_xs::decode_block),
            WeightType::MXFP4 => decode_blocks(bytes, out, mxfp4::decode_block),
            WeightType::TQ1_0 => decode_blocks(bytes, out, tq1_0::decode_block),
            WeightType::TQ2_0 => decode_blocks(bytes, out, tq2_0::decode_block),
            WeightType::IQ3_XXS => decode_blocks(bytes, out, iq3_xxs::decode_block),
            WeightType::IQ3_S => decode_blocks(bytes, out, iq3_s::decode_block),
            WeightType::IQ2_XXS => decode_blocks(bytes, out, iq2_xxs::decode_block),
            WeightType::IQ2_XS => decode_blocks(bytes, out, iq2_xs::decode_block),
            WeightType::IQ2_S => decode_blocks(bytes, out, iq2_s::decode_block),
            WeightType::IQ1_S => decode_blocks(bytes, out, iq1_s::decode_block),
            WeightType::IQ1_M => decode_blocks(bytes, out, iq1_m::decode_block),
        }
    }

    /// Encodes whole blocks by plain rounding: every weight lands within half a step of its block, or
    /// becomes part of a codeword near it. Meant for tests and experiments; it does not search for the
    /// best scales.
    ///
    /// Where `weights` are not whole blocks, a build with debug assertions panics and any other
    /// encodes the whole blocks.
    ///
    /// # Examples
    /// ```
    /// use trueshot::gguf::WeightType;
    ///
    /// let bytes = WeightType::Q8_0.encode(&[1.0; 32]);
    /// let mut decoded = [0.0; 32];
    /// WeightType::Q8_0.decode(&bytes, &mut decoded);
    /// assert!(decoded.iter().all(|x| (x - 1.0).abs() < 1.0 / 127.0));
    /// ```
    pub fn encode(self, weights: &[f32]) -> Vec<u8> {
        match self {
            WeightType::F32 => encode_blocks(weights, floats::encode_f32),
            WeightType::F16 => encode_blocks(weights, floats::encode_f16),
            WeightType::BF16 => encode_blocks(weights, floats::encode_bf16),
            WeightType::Q4_0 => encode_blocks(weights, q4_0::encode_block),
            WeightType::Q4_1 => encode_blocks(weights, q4_1::encode_block),
            WeightType::Q5_0 => encode_blocks(weights, q5_0::encode_block),
            WeightType::Q5_1 => encode_blocks(weights, q5_1::encode_block),
            WeightType::Q8_0 => encode_blocks(weights, q8_0::encode_block),
            WeightType::Q4_K => encode_blocks(weights, q4_k::encode_block),
            WeightType::Q5_K => encode_blocks(weights, q5_k::encode_block),
            WeightType::Q6_K => encode_blocks(weights, q6_k::encode_block),
            WeightType::Q2_K => encode_blocks(weights, q2_k::encode_block),
            WeightType::Q3_K => encode_blocks(weights, q3_k::encode_block),
            WeightType::IQ4_NL => encode_blocks(weights, iq4_nl::encode_block),
            WeightType::IQ4_XS => encode_blocks(weights, iq4_xs::encode_block),
            WeightType::MXFP4 => encode_blocks(weights, mxfp4::encode_block),
            WeightType::TQ1_0 => encode_blocks(weights, tq1_0::encode_block),
            WeightType::TQ2_0 => encode_blocks(weights, tq2_0::encode_block),
            WeightType::IQ3_XXS => encode_blocks(weights, iq3_xxs::encode_block),
            WeightType::IQ3_S => encode_blocks(weights, iq3_s::encode_block),
            WeightType::IQ2_XXS => encode_blocks(weights, iq2_xxs::encode_block),
            WeightType::IQ2_XS => encode_blocks(weights, iq2_xs::encode_block),
            WeightType::IQ2_S => encode_blocks(weights, iq2_s::encode_block),
            WeightType::IQ1_S => encode_blocks(weights, iq1_s::encode_block),
            WeightType::IQ1_M => encode_blocks(weights, iq1_m::encode_block),
        }
    }
}

fn decode_blocks<Block: Pod, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode_block: impl Fn(&Block, &mut [f32; LEN]),
) {
    let blocks = bytes.chunks_exact(size_of::<Block>());
    let (outs, out_left) = out.as_chunks_mut::<LEN>();
    debug_assert!(
        blocks.remainder().is_empty() && out_left.is_empty(),
        "not whole blocks"
    );
    debug_assert_eq!(blocks.len(), outs.len(), "blocks given, blocks of room");
    for (block, out) in blocks.zip(outs) {
        decode_block(bytemuck::from_bytes(block), out);
    }
}

fn encode_blocks<Block: Pod, const LEN: usize>(
    weights: &[f32],
    encode_block: impl Fn(&[f32; LEN]) -> Block,
) -> Vec<u8> {
    let (blocks, left) = weights.as_chunks::<LEN>();
    debug_assert!(left.is_empty(), "not whole blocks");
    let mut bytes = Vec::with_capacity(blocks.len() * size_of::<Block>());
    for weights in blocks {
        bytes.extend_from_slice(bytemuck::bytes_of(&encode_block(weights)));
    }
    bytes
}

/// Reads an f16 scale.
fn scale_from_bytes(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// The magnitude of an f16, faster than [`scale_from_bytes`]: for many at once there is no branch.
fn f16_magnitude(bytes: [u8; 2]) -> f32 {
    const BIAS: i32 = (127 - 15) << 23;
    let bits = i32::from(u16::from_le_bytes(bytes) & 0x7fff);
    let subnormal = (bits as f32 * 2_f32.powi(-24)).to_bits() as i32;
    let normal = (bits << 13) + BIAS;
    let finite = if bits < 0x0400 { subnormal } else { normal };
    let extra = if bits < 0x7c00 { 0 } else { BIAS };
    f32::from_bits((finite + extra) as u32)
}

/// The smallest f16 that is not below `x`, or the largest finite one.
fn f16_not_below(x: f32) -> f16 {
    let nearest = f16::from_f32(x);
    let next = if nearest.to_f32() < x {
        next_up(nearest)
    } else {
        nearest
    };
    next.clamp(f16::MIN, f16::MAX)
}

/// The largest f16 that is not above `x`, or the smallest finite one.
fn f16_not_above(x: f32) -> f16 {
    -f16_not_below(-x)
}

/// The next larger f16. IEEE floats of one sign are ordered as their bits are.
fn next_up(x: f16) -> f16 {
    match x.to_bits() {
        0x8000 => f16::from_bits(1),
        bits if bits > 0x8000 => f16::from_bits(bits - 1),
        bits => f16::from_bits(bits + 1),
    }
}

/// The integer in `min..=max` closest to `x / step`; 0 where the step is 0.
fn quantize(x: f32, step: f32, min: i32, max: i32) -> i32 {
    if step == 0.0 {
        0
    } else {
        ((x / step).round() as i32).clamp(min, max)
    }
}

/// The index of the smallest number; 0 where there is none.
fn least(numbers: impl Iterator<Item = f32>) -> usize {
    let least = numbers.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
    least.map_or(0, |(index, _)| index)
}

/// Which of the values, times the step, is closest to `x`.
fn nearest(values: &[i8; 16], x: f32, step: f32) -> u8 {
    let error = |q: &u8| (step * f32::from(values[usize::from(*q)]) - x).abs();
    (0..16)
        .min_by(|a, b| error(a).total_cmp(&error(b)))
        .unwrap_or(0)
}

/// The smallest and the largest of the weights and 0.
fn range_with_zero(weights: &[f32]) -> (f32, f32) {
    weights
        .iter()
        .fold((0.0, 0.0), |(min, max), &x| (x.min(min), x.max(max)))
}

/// The smallest and the largest weight.
fn range(weights: &[f32; 32]) -> (f32, f32) {
    weights
        .iter()
        .fold((weights[0], weights[0]), |(min, max), &x| {
            (x.min(min), x.max(max))
        })
}

/// The smallest step with which signed integers `min..=max` span the weights.
fn signed_step(weights: &[f32], min: i32, max: i32) -> f32 {
    let (lowest, highest) = range_with_zero(weights);
    (lowest / min as f32).max(highest / max as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest error that encoding may have in a block whose largest magnitude is given: half a
    /// step, with a margin for the rounding of the scales.
    fn encode_bound(weight_type: WeightType, largest: f32) -> f32 {
        let steps_of_largest = match weight_type {
            WeightType::F32 => return 0.0,
            WeightType::F16 => return (largest / 1024.0).max(2_f32.powi(-24)) / 2.0,
            WeightType::BF16 => 1.0 / 128.0,
            WeightType::Q4_0 => 1.0 / 7.0 * 1.002,
            WeightType::Q4_1 => 2.0 / 15.0 * 1.002,
            WeightType::Q5_0 => 1.0 / 15.0 * 1.002,
            WeightType::Q5_1 => 2.0 / 31.0 * 1.002,
            WeightType::Q8_0 => 1.0 / 127.0 * 1.002,
            WeightType::Q4_K => 2.0 / 15.0 * (1.0 + 2.0 / 63.0),
            WeightType::Q5_K => 2.0 / 31.0 * (1.0 + 2.0 / 63.0),
            WeightType::Q6_K => 1.0 / 31.0 * (1.0 + 2.0 / 127.0),
            WeightType::Q2_K => 2.0 / 3.0 * (1.0 + 2.0 / 15.0),
            WeightType::Q3_K => 1.0 / 3.0 * (1.0 + 2.0 / 31.0),
            WeightType::IQ4_NL => 24.0 / 113.0 * 1.002,
            WeightType::IQ4_XS => 24.0 / 113.0 * (1.0 + 2.0 / 31.0),
            WeightType::MXFP4 => 2.0 / 3.0,
            WeightType::TQ1_0 => 1.002,
            WeightType::TQ2_0 => 1.002,
            // Measured: twice 0.98, 0.33, 0.99, 1.32, 0.68, 1.23 and 1.11. A sign may be another's.
            WeightType::IQ3_XXS => 2.0,
            WeightType::IQ3_S => 0.7,
            WeightType::IQ2_XXS => 2.0,
            WeightType::IQ2_XS => 2.7,
            WeightType::IQ2_S => 1.4,
            WeightType::IQ1_S => 2.5,
            WeightType::IQ1_M => 2.3,
        };
        largest * steps_of_largest / 2.0
    }

    /// Weights in -1..1 from a linear congruential generator (constants of Knuth's MMIX).
    fn weights(mut state: u64, scale: f32) -> Vec<f32> {
        let mut weight = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            scale * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
        };
        (0..2048).map(|_| weight()).collect()
    }

    fn decode(weight_type: WeightType, bytes: &[u8], len: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; len];
        weight_type.decode(bytes, &mut out);
        out
    }

    #[test]
    fn encode_lands_within_half_a_step() {
        for weight_type in WeightType::ALL {
            for (seed, scale) in [(1, 1.0), (2, 0.02), (3, 300.0), (4, -0.5)] {
                let weights = weights(seed, scale);
                let bytes = weight_type.encode(&weights);
                assert_eq!(bytes.len(), weight_type.row_bytes(weights.len()));
                let decoded = decode(weight_type, &bytes, weights.len());
                let block_len = weight_type.block_len();
                for (block, decoded) in weights.chunks(block_len).zip(decoded.chunks(block_len)) {
                    let largest = block
                        .iter()
                        .fold(0.0_f32, |largest, x| largest.max(x.abs()));
                    let bound = encode_bound(weight_type, largest);
                    for (&weight, &decoded) in block.iter().zip(decoded) {
                        let error = (decoded - weight).abs();
                        assert!(
                            error <= bound,
                            "{weight_type:?}, seed {seed}: {weight} became {decoded}, \
                             off by {error}, bound {bound}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn encode_keeps_zeros_exact() {
        for weight_type in WeightType::ALL {
            let decoded = decode(weight_type, &weight_type.encode(&[0.0; 256]), 256);
            assert!(decoded.iter().all(|&x| x == 0.0), "{weight_type:?}");
        }
    }

    #[test]
    fn encode_stays_finite_and_close_for_extreme_blocks() {
        for weight_type in WeightType::ALL {
            for extreme in [1e-8_f32, 6e4] {
                let weights = [extreme, -extreme, 0.0, extreme / 2.0].repeat(64);
                let decoded = decode(weight_type, &weight_type.encode(&weights), 256);
                // The smallest f16 scale, 2^-24, is a coarse step for tiny weights.
                let bound = encode_bound(weight_type, extreme) + 2_f32.powi(-24);
                for (&weight, &decoded) in weights.iter().zip(&decoded) {
                    let error = (decoded - weight).abs();
                    assert!(error <= bound, "{weight_type:?}: {weight} became {decoded}");
                }
            }
        }
    }

    #[test]
    fn f16_has_the_magnitude_of_its_value() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            let (found, expected) = (f16_magnitude(bytes), scale_from_bytes(bytes).abs());
            let is_same = found.to_bits() == expected.to_bits();
            assert!(
                is_same || found.is_nan() && expected.is_nan(),
                "f16 {bits:#06x}"
            );
        }
    }

    #[test]
    fn f16_rounds_to_the_side_asked_for() {
        for x in [0.0, 1.0, 1.0003, 0.9999, 3e-8, 1e-9, 65503.9, 1e6] {
            for x in [x, -x] {
                let (above, below) = (f16_not_below(x).to_f32(), f16_not_above(x).to_f32());
                assert!(above >= x.min(65504.0) && below <= x.max(-65504.0), "{x}");
                assert!(above.is_finite() && below.is_finite(), "{x}");
                assert!(
                    above - below <= x.abs() / 512.0 + 1.2e-7 || x.abs() > 65504.0,
                    "{x}"
                );
            }
        }
    }

    #[test]
    fn block_sizes_are_those_of_the_layouts() {
        for weight_type in WeightType::ALL {
            let (len, bytes) = (weight_type.block_len(), weight_type.block_bytes());
            assert_eq!(
                weight_type.encode(&vec![1.0; len]).len(),
                bytes,
                "{weight_type:?}"
            );
        }
    }
}
