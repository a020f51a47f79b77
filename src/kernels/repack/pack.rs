//! Takes the blocks of a file apart, a weight type at a time.
//!
//! The blocks' layouts are ggml's: the `block_*` structs of `ggml-common.h`, read as the
//! `dequantize_row_*` functions of `ggml-quants.c` do.

use super::{Shard, UNIT, codebooks};
use crate::gguf::WeightType;
use std::array;

/// Repacks the whole shard into zeroed words.
pub(super) fn pack(shard: &Shard, file_bytes: &[u8], words: &mut [u32]) {
    let [_, second, third, fourth] = shard.planes();
    let blocks = file_bytes.chunks_exact(shard.ty.block_bytes()).enumerate();
    match shard.ty {
        WeightType::F32 => {
            let stride = shard.units_per_row() * UNIT;
            for (i, weight) in blocks {
                words[i / shard.n_cols * stride + i % shard.n_cols] = word(weight, 0);
            }
        }
        WeightType::F16 | WeightType::BF16 => {
            let stride = shard.units_per_row() * UNIT;
            for (i, weight) in blocks {
                put_half(
                    words,
                    i / shard.n_cols * stride + i % shard.n_cols,
                    half(weight, 0),
                );
            }
        }
        WeightType::Q4_0 => {
            for (unit, block) in blocks {
                put_nibbles(words, unit, nibbles_of_halves(&block[2..]));
                put_half(&mut words[second..], unit, half(block, 0));
            }
        }
        WeightType::Q4_1 => {
            for (unit, block) in blocks {
                put_nibbles(words, unit, nibbles_of_halves(&block[4..]));
                words[second + unit] = word(block, 0);
            }
        }
        WeightType::Q5_0 => {
            for (unit, block) in blocks {
                put_nibbles(words, unit, nibbles_of_halves(&block[6..]));
                words[second + unit] = word(&block[2..], 0);
                put_half(&mut words[third..], unit, half(block, 0));
            }
        }
        WeightType::Q5_1 => {
            for (unit, block) in blocks {
                put_nibbles(words, unit, nibbles_of_halves(&block[8..]));
                words[second + unit] = word(block, 1);
                words[third + unit] = word(block, 0);
            }
        }
        WeightType::Q8_0 => {
            for (unit, block) in blocks {
                let weights: [u32; 8] = array::from_fn(|i| word(&block[2..], i));
                words[unit * 8..][..8].copy_from_slice(&weights);
                put_half(&mut words[second..], unit, half(block, 0));
            }
        }
        WeightType::Q4_K => {
            for (i, block) in blocks {
                put_nibbles_k(words, i * 8, &block[16..]);
                words[second + i * 4..][..4].copy_from_slice(&scales_k(block));
            }
        }
        WeightType::Q5_K => {
            for (i, block) in blocks {
                put_nibbles_k(words, i * 8, &block[48..]);
                words[second + i * 4..][..4].copy_from_slice(&scales_k(block));
                for unit in 0..8 {
                    words[third + i * 8 + unit] = fifth_bits_k(&block[16..48], unit);
                }
            }
        }
        WeightType::Q6_K => {
            for (i, block) in blocks {
                for unit in 0..8 {
                    put_nibbles(words, i * 8 + unit, nibbles_q6_k(block, unit));
                    let highs = highs_q6_k(block, unit);
                    words[second + (i * 8 + unit) * 2..][..2].copy_from_slice(&highs);
                }
                let scales: [u32; 4] = array::from_fn(|k| word(&block[192..], k));
                words[third + i * 4..][..4].copy_from_slice(&scales);
                put_half(&mut words[fourth..], i, half(block, 104));
            }
        }
        WeightType::Q2_K => {
            for (i, block) in blocks {
                put_two_bits(words, i * 8, &block[16..80]);
                let scales: [u32; 4] = array::from_fn(|k| word(block, k));
                words[second + i * 4..][..4].copy_from_slice(&scales);
                words[third + i] = word(&block[80..], 0);
            }
        }
        WeightType::Q3_K => {
            for (i, block) in blocks {
                put_two_bits(words, i * 8, &block[32..96]);
                for unit in 0..8 {
                    words[second + i * 8 + unit] = fifth_bits_k(&block[..32], unit);
                }
                words[third + i * 3..][..3].copy_from_slice(&scales_q3_k(block));
                put_half(&mut words[fourth..], i, half(block, 54));
            }
        }
        WeightType::IQ4_NL => {
            for (unit, block) in blocks {
                put_nibbles(words, unit, nibbles_of_halves(&block[2..]));
                put_half(&mut words[second..], unit, half(block, 0));
            }
        }
        WeightType::IQ4_XS => {
            for (i, block) in blocks {
                for unit in 0..8 {
                    let nibbles = nibbles_of_halves(&block[8 + unit * 16..]);
                    put_nibbles(words, i * 8 + unit, nibbles);
                }
                let scales = [word(block, 0), word(block, 1)];
                words[second + i * 2..][..2].copy_from_slice(&scales);
            }
        }
        WeightType::MXFP4 => {
            for (unit, block) in blocks {
                put_nibbles(words, unit, nibbles_of_halves(&block[1..]));
                words[second + unit / 4] |= u32::from(block[0]) << (8 * (unit % 4));
            }
        }
        WeightType::TQ1_0 => {
            for (i, block) in blocks {
                let quants: [u32; 12] = array::from_fn(|k| word(block, k));
                words[i * 12..][..12].copy_from_slice(&quants);
                words[second + i] = word(block, 12);
                put_half(&mut words[third..], i, half(block, 26));
            }
        }
        WeightType::TQ2_0 => {
            for (i, block) in blocks {
                put_two_bits(words, i * 8, &block[..64]);
                put_half(&mut words[second..], i, half(block, 32));
            }
        }
        WeightType::IQ3_XXS
        | WeightType::IQ3_S
        | WeightType::IQ2_XXS
        | WeightType::IQ2_XS
        | WeightType::IQ2_S
        | WeightType::IQ1_S
        | WeightType::IQ1_M => codebooks::pack(shard, blocks, words),
    }
}

/// The `i`-th little-endian `u32` of some bytes.
pub(super) fn word(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes(array::from_fn(|k| bytes[i * 4 + k]))
}

/// The `i`-th little-endian `u16` of some bytes.
pub(super) fn half(bytes: &[u8], i: usize) -> u32 {
    u32::from(bytes[i * 2]) | u32::from(bytes[i * 2 + 1]) << 8
}

/// Sets the `i`-th half of zeroed words.
pub(super) fn put_half(words: &mut [u32], i: usize, half: u32) {
    words[i / 2] |= half << (16 * (i % 2));
}

/// Stores a unit's nibbles, given as a byte each: a word holds eight, the first four in the low
/// nibbles of its bytes.
fn put_nibbles(words: &mut [u32], unit: usize, nibbles: [u32; 8]) {
    for quarter in 0..4 {
        words[unit * 4 + quarter] = nibbles[quarter * 2] | nibbles[quarter * 2 + 1] << 4;
    }
}

/// A unit in 16 bytes: the low nibbles are its first half.
fn nibbles_of_halves(bytes: &[u8]) -> [u32; 8] {
    array::from_fn(|i| (word(bytes, i % 4) >> (i / 4 * 4)) & 0x0f0f_0f0f)
}

/// Eight units in 128 bytes: of each 32 bytes the low nibbles are one unit, the high ones the next.
fn put_nibbles_k(words: &mut [u32], first_unit: usize, bytes: &[u8]) {
    for unit in 0..8 {
        let bytes = &bytes[unit / 2 * 32..];
        let nibbles = array::from_fn(|i| (word(bytes, i) >> (unit % 2 * 4)) & 0x0f0f_0f0f);
        put_nibbles(words, first_unit + unit, nibbles);
    }
}

/// The scales of Q4_K and Q5_K as `scale_and_min` of `common/matrix.wgsl` reads them.
fn scales_k(block: &[u8]) -> [u32; 4] {
    let packed = &block[4..16];
    let mut words = [word(block, 0), 0, 0, 0];
    for i in 0..8 {
        let (scale, min) = if i < 4 {
            (packed[i] & 63, packed[i + 4] & 63)
        } else {
            (
                (packed[i + 4] & 15) | (packed[i - 4] >> 6) << 4,
                (packed[i + 4] >> 4) | (packed[i] >> 6) << 4,
            )
        };
        let (scale, min) = (u32::from(scale), u32::from(min));
        words[1] |= (scale & 15) << (4 * i);
        words[2] |= (min & 15) << (4 * i);
        words[3] |= (scale >> 4) << (2 * i) | (min >> 4) << (16 + 2 * i);
    }
    words
}

/// The fifth bits of a unit of Q5_K: bit `unit` of each of 32 bytes.
fn fifth_bits_k(bytes: &[u8], unit: usize) -> u32 {
    (0..8).fold(0, |bits, i| {
        // The product gathers the lowest bits of four bytes in the four highest bits.
        let four = ((word(bytes, i) >> unit) & 0x0101_0101).wrapping_mul(0x1020_4080) >> 28;
        bits | four << (4 * i)
    })
}

/// The low nibbles of a unit of Q6_K. Half a block has 64 bytes of them: units 0 and 1 in the low
/// nibbles, 2 and 3 in the high ones.
fn nibbles_q6_k(block: &[u8], unit: usize) -> [u32; 8] {
    let bytes = &block[unit / 4 * 64 + unit % 2 * 32..];
    array::from_fn(|i| (word(bytes, i) >> (unit % 4 / 2 * 4)) & 0x0f0f_0f0f)
}

/// The high bits of a unit of Q6_K, 16 weights a word.
fn highs_q6_k(block: &[u8], unit: usize) -> [u32; 2] {
    two_bits(&block[128 + unit / 4 * 32..], unit % 4)
}

/// Two bits of each weight of eight units, 16 weights a word. Half a block has 32 bytes of them, two bits
/// of each for each of its four units.
fn put_two_bits(words: &mut [u32], first_unit: usize, bytes: &[u8]) {
    for unit in 0..8 {
        let unit_words = two_bits(&bytes[unit / 4 * 32..], unit % 4);
        words[(first_unit + unit) * 2..][..2].copy_from_slice(&unit_words);
    }
}

/// The two bits that each of 32 bytes has of one of four units.
fn two_bits(bytes: &[u8], unit: usize) -> [u32; 2] {
    array::from_fn(|k| {
        (0..4).fold(0, |bits, f| {
            bits | ((word(bytes, k * 4 + f) >> (unit * 2)) & 0x0303_0303) << (2 * f)
        })
    })
}

/// The scales of Q3_K as `q3_k.wgsl` reads them.
fn scales_q3_k(block: &[u8]) -> [u32; 3] {
    let packed = &block[96..108];
    let low = |i: usize| u32::from(packed[i % 8] >> (i / 8 * 4) & 15);
    let high = |i: usize| u32::from(packed[8 + i % 4] >> (i / 4 * 2) & 3);
    [
        (0..8).fold(0, |word, i| word | low(i) << (4 * i)),
        (0..8).fold(0, |word, i| word | low(8 + i) << (4 * i)),
        (0..16).fold(0, |word, i| word | high(i) << (2 * i)),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bytes, repacked};
    use super::*;

    fn one_block(ty: WeightType, block: &[u8]) -> Vec<u32> {
        let shard = Shard {
            ty,
            first_row: 0,
            n_rows: 1,
            n_cols: ty.block_len().max(2),
        };
        repacked(&shard, 2, block)
    }

    #[test]
    fn float_rows_are_padded_with_zeros_to_whole_units() {
        let shard = Shard {
            ty: WeightType::F16,
            first_row: 0,
            n_rows: 2,
            n_cols: 3,
        };
        let words = repacked(&shard, 2, &[1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0]);
        assert_eq!(words.len(), 32);
        assert_eq!(
            (&words[..2], &words[16..18]),
            (&[0x0002_0001, 3][..], &[0x0005_0004, 6][..])
        );
        assert!(
            words[2..16]
                .iter()
                .chain(&words[18..])
                .all(|word| *word == 0)
        );
        let words = one_block(WeightType::F32, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(
            (&words[..2], words.len()),
            (&[0x0403_0201, 0x0807_0605][..], 32)
        );
        assert_eq!(one_block(WeightType::BF16, &[1, 2, 3, 4])[0], 0x0403_0201);
    }

    /// 16 bytes whose low nibbles are 0 to 15 and whose high nibbles are 15 to 0.
    fn counting_nibbles() -> Vec<u8> {
        (0..16).map(|i| i | (15 - i) << 4).collect()
    }

    const COUNTING: [u32; 4] = [0x7362_5140, 0xfbea_d9c8, 0x8c9d_aebf, 0x0415_2637];

    #[test]
    fn quants_of_32_lie_apart_from_their_scales() {
        let block = |header: &[u8]| [header, &counting_nibbles()].concat();
        let words = one_block(WeightType::Q4_0, &block(&[0x34, 0x12]));
        assert_eq!((&words[..4], words[4]), (&COUNTING[..], 0x1234));
        let words = one_block(WeightType::Q4_1, &block(&[0x34, 0x12, 0x78, 0x56]));
        assert_eq!((&words[..4], words[4]), (&COUNTING[..], 0x5678_1234));
        let words = one_block(WeightType::Q5_0, &block(&[0x34, 0x12, 1, 2, 3, 4]));
        assert_eq!(
            (&words[..4], words[4], words[8]),
            (&COUNTING[..], 0x0403_0201, 0x1234)
        );
        let words = one_block(
            WeightType::Q5_1,
            &block(&[0x34, 0x12, 0x78, 0x56, 1, 2, 3, 4]),
        );
        assert_eq!(
            (&words[..4], words[4], words[8]),
            (&COUNTING[..], 0x0403_0201, 0x5678_1234)
        );
        let words = one_block(WeightType::Q8_0, &[&[0x34, 0x12], &bytes(32)[..]].concat());
        assert_eq!(
            (words[0], words[7], words[8]),
            (0x0302_0100, 0x1f1e_1d1c, 0x1234)
        );
    }

    #[test]
    fn halves_of_neighbouring_units_share_a_word() {
        let mut file = vec![0; 36];
        (file[0], file[18]) = (1, 2);
        let shard = Shard {
            ty: WeightType::Q4_0,
            first_row: 0,
            n_rows: 2,
            n_cols: 32,
        };
        assert_eq!(repacked(&shard, 2, &file)[8], 0x0002_0001);
    }

    #[test]
    fn scales_of_q4_k_and_q5_k_are_regrouped_by_their_bits() {
        // Scales 33 to 40 and mins 17 to 24, packed as ggml's get_scale_min_k4 unpacks them.
        let (scales, mins): (Vec<u8>, Vec<u8>) = ((33..41).collect(), (17..25).collect());
        let mut block = vec![0; 176];
        block[..4].copy_from_slice(&[0x34, 0x12, 0x78, 0x56]);
        for i in 0..4 {
            block[4 + i] = scales[i] | (scales[i + 4] >> 4) << 6;
            block[8 + i] = mins[i] | (mins[i + 4] >> 4) << 6;
            block[12 + i] = (scales[i + 4] & 15) | (mins[i + 4] & 15) << 4;
        }
        block[16 + 5] = 0b1000_0001; // fifth bits of weight 5 of units 0 and 7
        let expected = [0x5678_1234, 0x8765_4321, 0x8765_4321, 0x5555_aaaa];
        let words = one_block(WeightType::Q5_K, &block);
        assert_eq!(words[32..36], expected);
        assert_eq!(words[36..44], [32, 0, 0, 0, 0, 0, 0, 32]);
        assert_eq!(one_block(WeightType::Q4_K, &block[..144])[32..36], expected);
    }

    #[test]
    fn nibbles_of_256_are_in_the_order_of_the_weights() {
        let mut block = vec![0; 144];
        block[16] = 0x21; // weights 0 and 32
        block[16 + 127] = 0x43; // weights 223 and 255
        let words = one_block(WeightType::Q4_K, &block);
        let set: Vec<_> = (0..32)
            .filter(|i| words[*i] != 0)
            .map(|i| (i, words[i]))
            .collect();
        assert_eq!(set, [(0, 1), (4, 2), (27, 0x3000_0000), (31, 0x4000_0000)]);
    }

    #[test]
    fn q6_k_keeps_high_bits_scales_and_d_in_planes_of_their_own() {
        let mut block = vec![0; 210];
        block[32] = 0x21; // weights 32 and 96
        block[64 + 63] = 0x43; // weights 191 and 255
        block[128] = 0b11_10_01_00; // high bits of weights 0, 32, 64, 96
        block[128 + 63] = 0b01_00_00_00; // of weight 255
        block[192..208].copy_from_slice(&bytes(16));
        block[208..].copy_from_slice(&[0x34, 0x12]);
        let words = one_block(WeightType::Q6_K, &block);
        let set: Vec<_> = (0..48)
            .filter(|i| words[*i] != 0)
            .map(|i| (i, words[i]))
            .collect();
        let nibbles = [(4, 1), (12, 2), (23, 0x3000_0000), (31, 0x4000_0000)];
        let highs = [(34, 1), (36, 2), (38, 3), (47, 0x4000_0000)];
        assert_eq!(set, [nibbles, highs].concat());
        assert_eq!(
            (words[48], words[51], words[52]),
            (0x0302_0100, 0x0f0e_0d0c, 0x1234)
        );
    }

    #[test]
    fn q2_k_keeps_quants_and_scales_in_the_order_of_the_weights() {
        let mut block = vec![0; 84];
        block[..16].copy_from_slice(&bytes(16));
        block[16] = 0b11_10_01_00; // weights 0, 32, 64, 96
        block[16 + 63] = 0b01_00_00_00; // weight 255
        block[80..].copy_from_slice(&[0x34, 0x12, 0x78, 0x56]);
        let words = one_block(WeightType::Q2_K, &block);
        let set: Vec<_> = (0..16).filter(|i| words[*i] != 0).collect();
        assert_eq!(set, [2, 4, 6, 15]);
        assert_eq!(
            (words[2], words[4], words[6], words[15]),
            (1, 2, 3, 0x4000_0000)
        );
        assert_eq!((words[16], words[19]), (0x0302_0100, 0x0f0e_0d0c));
        assert_eq!(words[20], 0x5678_1234);
    }

    #[test]
    fn q3_k_regroups_its_scales_by_their_bits() {
        let mut block = vec![0; 110];
        block[5] = 0b1000_0001; // third bits of weight 5 of units 0 and 7
        block[32 + 63] = 0b01_00_00_00; // weight 255
        // Low bits of scales 0 to 7: 1 to 8, of scales 8 to 15: 15 to 8.
        (0..8).for_each(|i| block[96 + i] = (i as u8 + 1) | (15 - i as u8) << 4);
        // High bits of scales 0 to 3: 3, of scales 12 to 15: 2.
        block[104..108].copy_from_slice(&[0b10_00_00_11; 4]);
        block[108..].copy_from_slice(&[0x34, 0x12]);
        let words = one_block(WeightType::Q3_K, &block);
        assert_eq!(words[15], 0x4000_0000);
        assert_eq!(words[16..24], [32, 0, 0, 0, 0, 0, 0, 32]);
        assert_eq!(words[24..27], [0x8765_4321, 0x89ab_cdef, 0xaa00_00ff]);
        assert_eq!(words[28], 0x1234);
    }

    #[test]
    fn iq4_nl_lies_as_q4_0_does() {
        let block = [&[0x34, 0x12], &counting_nibbles()[..]].concat();
        let words = one_block(WeightType::IQ4_NL, &block);
        assert_eq!((&words[..4], words[4]), (&COUNTING[..], 0x1234));
    }

    #[test]
    fn iq4_xs_keeps_its_scales_as_they_are_in_two_words() {
        let mut block = vec![0; 136];
        block[..8].copy_from_slice(&bytes(8));
        block[8 + 16..][..16].copy_from_slice(&counting_nibbles());
        let words = one_block(WeightType::IQ4_XS, &block);
        assert_eq!(words[4..8], COUNTING);
        assert_eq!(words[32..34], [0x0302_0100, 0x0706_0504]);
    }

    #[test]
    fn mxfp4_has_the_exponents_of_four_units_in_a_word() {
        let file: Vec<u8> = (1..7)
            .flat_map(|e| [&[e], &counting_nibbles()[..]].concat())
            .collect();
        let shard = Shard {
            ty: WeightType::MXFP4,
            first_row: 0,
            n_rows: 6,
            n_cols: 32,
        };
        let words = repacked(&shard, 4, &file);
        assert_eq!(words[20..24], COUNTING);
        assert_eq!(words[24..26], [0x0403_0201, 0x0605]);
    }

    #[test]
    fn tq1_0_keeps_its_bytes_apart_by_their_digits() {
        let words = one_block(WeightType::TQ1_0, &bytes(54));
        assert_eq!((words[0], words[11]), (0x0302_0100, 0x2f2e_2d2c));
        assert_eq!((words[12], words[16]), (0x3332_3130, 0x3534));
    }

    #[test]
    fn tq2_0_keeps_quants_in_the_order_of_the_weights() {
        let mut block = vec![0; 66];
        block[32] = 0b10_00_00_01; // weights 128 and 224
        block[64..].copy_from_slice(&[0x34, 0x12]);
        let words = one_block(WeightType::TQ2_0, &block);
        assert_eq!((words[8], words[14], words[16]), (1, 2, 0x1234));
    }
}
