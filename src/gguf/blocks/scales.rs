//! The floats that scale the weights of a block: where a damaged file shows first.
//!
//! The integers of a block can be anything, but a sound file has no scale that is not finite, or far
//! beyond those of all other blocks.

use super::{
    floats, iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs, iq4_nl, iq4_xs, mxfp4, q2_k,
    q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0, tq1_0, tq2_0,
};
use crate::gguf::WeightType;
use bytemuck::Pod;

/// Most scales that a block of any type has.
pub(crate) const MOST_SCALES: usize = 2;

impl WeightType {
    /// The scales of a block by ggml's names. A block of a float type is its own scale.
    pub(crate) fn scale_names(self) -> &'static [&'static str] {
        match self {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => &floats::SCALES,
            WeightType::Q4_0 => &q4_0::SCALES,
            WeightType::Q4_1 => &q4_1::SCALES,
            WeightType::Q5_0 => &q5_0::SCALES,
            WeightType::Q5_1 => &q5_1::SCALES,
            WeightType::Q8_0 => &q8_0::SCALES,
            WeightType::Q4_K => &q4_k::SCALES,
            WeightType::Q5_K => &q5_k::SCALES,
            WeightType::Q6_K => &q6_k::SCALES,
            WeightType::Q2_K => &q2_k::SCALES,
            WeightType::Q3_K => &q3_k::SCALES,
            WeightType::IQ4_NL => &iq4_nl::SCALES,
            WeightType::IQ4_XS => &iq4_xs::SCALES,
            WeightType::MXFP4 => &mxfp4::SCALES,
            WeightType::TQ1_0 => &tq1_0::SCALES,
            WeightType::TQ2_0 => &tq2_0::SCALES,
            WeightType::IQ3_XXS => &iq3_xxs::SCALES,
            WeightType::IQ3_S => &iq3_s::SCALES,
            WeightType::IQ2_XXS => &iq2_xxs::SCALES,
            WeightType::IQ2_XS => &iq2_xs::SCALES,
            WeightType::IQ2_S => &iq2_s::SCALES,
            WeightType::IQ1_S => &iq1_s::SCALES,
            WeightType::IQ1_M => &iq1_m::SCALES,
        }
    }

    /// Visits the blocks of a row, `together` at a time (fewer at the end): for each scale the largest
    /// magnitude among them, as the bits of an f32 without its sign. As integers these are ordered as
    /// the magnitudes are, with infinity and then NaN above every number.
    pub(crate) fn scale_magnitudes(self, row: &[u8], together: usize, visit: impl FnMut(&[u32])) {
        match self {
            WeightType::F32 => visit_blocks(row, together, floats::scales_f32, visit),
            WeightType::F16 => visit_blocks(row, together, floats::scales_f16, visit),
            WeightType::BF16 => visit_blocks(row, together, floats::scales_bf16, visit),
            WeightType::Q4_0 => visit_blocks(row, together, q4_0::scales, visit),
            WeightType::Q4_1 => visit_blocks(row, together, q4_1::scales, visit),
            WeightType::Q5_0 => visit_blocks(row, together, q5_0::scales, visit),
            WeightType::Q5_1 => visit_blocks(row, together, q5_1::scales, visit),
            WeightType::Q8_0 => visit_blocks(row, together, q8_0::scales, visit),
            WeightType::Q4_K => visit_blocks(row, together, q4_k::scales, visit),
            WeightType::Q5_K => visit_blocks(row, together, q5_k::scales, visit),
            WeightType::Q6_K => visit_blocks(row, together, q6_k::scales, visit),
            WeightType::Q2_K => visit_blocks(row, together, q2_k::scales, visit),
            WeightType::Q3_K => visit_blocks(row, together, q3_k::scales, visit),
            WeightType::IQ4_NL => visit_blocks(row, together, iq4_nl::scales, visit),
            WeightType::IQ4_XS => visit_blocks(row, together, iq4_xs::scales, visit),
            WeightType::MXFP4 => visit_blocks(row, together, mxfp4::scales, visit),
            WeightType::TQ1_0 => visit_blocks(row, together, tq1_0::scales, visit),
            WeightType::TQ2_0 => visit_blocks(row, together, tq2_0::scales, visit),
            WeightType::IQ3_XXS => visit_blocks(row, together, iq3_xxs::scales, visit),
            WeightType::IQ3_S => visit_blocks(row, together, iq3_s::scales, visit),
            WeightType::IQ2_XXS => visit_blocks(row, together, iq2_xxs::scales, visit),
            WeightType::IQ2_XS => visit_blocks(row, together, iq2_xs::scales, visit),
            WeightType::IQ2_S => visit_blocks(row, together, iq2_s::scales, visit),
            WeightType::IQ1_S => visit_blocks(row, together, iq1_s::scales, visit),
            WeightType::IQ1_M => visit_blocks(row, together, iq1_m::scales, visit),
        }
    }
}

fn visit_blocks<Block: Pod, const N: usize>(
    row: &[u8],
    together: usize,
    scales: impl Fn(&Block) -> [f32; N],
    mut visit: impl FnMut(&[u32]),
) {
    const { assert!(N <= MOST_SCALES) };
    let whole = row.len() / size_of::<Block>() * size_of::<Block>();
    debug_assert_eq!(whole, row.len(), "not whole blocks");
    // Blocks are made of bytes, so that they may lie at any address.
    let blocks: &[Block] = bytemuck::cast_slice(&row[..whole]);
    for blocks in blocks.chunks(together.max(1)) {
        let largest = blocks.iter().fold([0; N], |largest, block| {
            // Without their sign they are ordered as signed integers too, which more CPUs compare.
            let magnitudes = scales(block).map(|scale| scale.abs().to_bits() as i32);
            std::array::from_fn(|index| magnitudes[index].max(largest[index]))
        });
        visit(&largest.map(|magnitude: i32| magnitude as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn magnitudes(ty: WeightType, row: &[u8], together: usize) -> Vec<Vec<f32>> {
        let mut found = Vec::new();
        ty.scale_magnitudes(row, together, |scales| {
            found.push(scales.iter().map(|&bits| f32::from_bits(bits)).collect());
        });
        found
    }

    #[test]
    fn scales_bound_the_weights_of_their_block() {
        for ty in WeightType::ALL {
            let weights: Vec<f32> = (0..512).map(|i| (i % 7) as f32 - 3.0).collect();
            let row = ty.encode(&weights);
            let found = magnitudes(ty, &row, 1);
            assert_eq!(found.len(), 512 / ty.block_len(), "{ty:?}");
            for (scales, weights) in found.iter().zip(weights.chunks(ty.block_len())) {
                assert_eq!(scales.len(), ty.scale_names().len(), "{ty:?}");
                let largest = weights.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                // No integer of a block is above 127 * 32, and no scale above its largest weight.
                let sum: f32 = scales.iter().sum();
                assert!(
                    sum <= 2.0 * largest && sum * 4096.0 >= largest,
                    "{ty:?}: {scales:?}"
                );
            }
        }
    }

    #[test]
    fn every_scale_of_a_block_is_visited_wherever_it_lies() {
        for ty in WeightType::ALL {
            let sound = ty.encode(&[0.5; 256]);
            let expected = &magnitudes(ty, &sound, 1)[0];
            let mut seen = vec![false; expected.len()];
            for byte in 0..ty.block_bytes() {
                let mut row = sound.clone();
                row[byte] ^= 0x7f;
                let changed = magnitudes(ty, &row, 1);
                let pairs = changed[0].iter().zip(expected);
                for (seen, (changed, sound)) in seen.iter_mut().zip(pairs) {
                    *seen |= changed.to_bits() != sound.to_bits();
                }
            }
            assert!(seen.iter().all(|&seen| seen), "{ty:?}: {seen:?}");
        }
    }

    #[test]
    fn blocks_together_give_their_largest_magnitudes() {
        let row = WeightType::F16.encode(&[1.0, -3.0, 2.0, 0.0, f32::NEG_INFINITY]);
        let expected = [vec![3.0], vec![2.0], vec![f32::INFINITY]];
        assert_eq!(magnitudes(WeightType::F16, &row, 2), expected);
        let row = WeightType::F32.encode(&[1.0, f32::NAN, f32::INFINITY]);
        assert!(magnitudes(WeightType::F32, &row, 3)[0][0].is_nan());
    }
}
