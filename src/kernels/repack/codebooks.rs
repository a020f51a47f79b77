//! The types with codebooks: their tables as the kernels read them, and their blocks taken apart.

use super::pack::{half, put_half, word};
use super::{Shard, TABLE};
use crate::gguf::{LEVELS_IQ3_S, LEVELS_IQ3_XXS, WeightType, unpacked, words};

static IQ3_XXS: [u32; 256] = fours(&words::IQ3_XXS, &LEVELS_IQ3_XXS);
static IQ3_S: [u32; 512] = fours(&words::IQ3_S, &LEVELS_IQ3_S);
static IQ2_XXS: [u32; 128] = halves(&words::IQ2_XXS);
static IQ2_XS: [u32; 256] = halves(&words::IQ2_XS);
static IQ2_S: [u32; 512] = halves(&words::IQ2_S);
static IQ1: [u32; 1024] = halves(&words::IQ1_S);

/// The codewords of a type, a multiple of four words; empty where it has none.
pub(super) fn table(ty: WeightType) -> &'static [u32] {
    match ty {
        WeightType::IQ3_XXS => &IQ3_XXS,
        WeightType::IQ3_S => &IQ3_S,
        WeightType::IQ2_XXS => &IQ2_XXS,
        WeightType::IQ2_XS => &IQ2_XS,
        WeightType::IQ2_S => &IQ2_S,
        WeightType::IQ1_S | WeightType::IQ1_M => &IQ1,
        _ => &[],
    }
}

/// The four values of each codeword, a byte each.
const fn fours<const N: usize>(words: &[u16; N], levels: &[i8]) -> [u32; N] {
    let values = unpacked::<4, N>(words, levels);
    let mut table = [0; N];
    let mut i = 0;
    while i < N {
        let [a, b, c, d] = values[i];
        table[i] = u32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]);
        i += 1;
    }
    table
}

/// Two packed codewords a word.
const fn halves<const N: usize, const WORDS: usize>(words: &[u16; N]) -> [u32; WORDS] {
    let mut table = [0; WORDS];
    let mut i = 0;
    while i < N {
        table[i / 2] |= (words[i] as u32) << (16 * (i % 2));
        i += 1;
    }
    table
}

/// Repacks blocks of a type with a codebook, and puts its table behind them.
pub(super) fn pack<'a>(
    shard: &Shard,
    blocks: impl Iterator<Item = (usize, &'a [u8])>,
    words: &mut [u32],
) {
    let planes = shard.planes();
    let [_, second, third, _] = planes;
    for (i, block) in blocks {
        let units = 8 * i..8 * i + 8;
        match shard.ty {
            WeightType::IQ3_XXS => {
                put_words(words, 16 * i, &block[2..66]);
                put_words(&mut words[second..], 8 * i, &block[66..]);
                put_half(&mut words[third..], i, half(block, 0));
            }
            WeightType::IQ3_S => {
                put_words(words, 16 * i, &block[2..66]);
                put_words(&mut words[second..], 8 * i, &block[74..106]);
                let rest = &mut words[third..];
                put_halves(rest, 7 * i, &block[..2]);
                put_halves(rest, 7 * i + 1, &block[106..]);
                put_halves(rest, 7 * i + 3, &block[66..74]);
            }
            WeightType::IQ2_XXS => {
                put_words(words, 16 * i, &block[2..]);
                put_half(&mut words[second..], i, half(block, 0));
            }
            WeightType::IQ2_XS => {
                put_words(words, 16 * i, &block[2..66]);
                put_words(&mut words[second..], 2 * i, &block[66..]);
                put_half(&mut words[third..], i, half(block, 0));
            }
            WeightType::IQ2_S => {
                for unit in units {
                    let of_unit = unit % 8;
                    words[2 * unit] = word(&block[2..], of_unit);
                    words[2 * unit + 1] = word(&block[34..], of_unit);
                    let bits = [66, 74].map(|at| u32::from(block[at + of_unit]));
                    put_half(&mut words[second..], unit, bits[0] | bits[1] << 8);
                }
                put_half(&mut words[third..], i, half(block, 0));
            }
            WeightType::IQ1_S => {
                put_words(words, 8 * i, &block[2..34]);
                put_halves(&mut words[second..], 8 * i, &block[34..]);
                put_half(&mut words[third..], i, half(block, 0));
            }
            _ => {
                put_words(words, 8 * i, &block[..32]);
                put_halves(&mut words[second..], 8 * i, &block[32..48]);
                put_words(&mut words[third..], 2 * i, &block[48..]);
            }
        }
    }
    let table = table(shard.ty);
    words[planes[TABLE]..][..table.len()].copy_from_slice(table);
}

/// Sets words from the `first` on.
fn put_words(words: &mut [u32], first: usize, bytes: &[u8]) {
    for (i, to) in words[first..][..bytes.len() / 4].iter_mut().enumerate() {
        *to = word(bytes, i);
    }
}

/// Sets halves of zeroed words from the `first` on.
fn put_halves(words: &mut [u32], first: usize, bytes: &[u8]) {
    for i in 0..bytes.len() / 2 {
        put_half(words, first + i, half(bytes, i));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bytes, repacked};
    use super::*;

    fn one_block(ty: WeightType) -> Vec<u32> {
        let shard = Shard {
            ty,
            first_row: 0,
            n_rows: 1,
            n_cols: 256,
        };
        let words = repacked(&shard, 2, &bytes(ty.block_bytes()));
        let (planes, found) = words.split_at(words.len() - table(ty).len());
        assert_eq!(found, table(ty));
        planes.to_vec()
    }

    #[test]
    fn a_table_is_behind_the_rows_and_written_once() {
        for ty in WeightType::ALL {
            let shard = Shard {
                ty,
                first_row: 0,
                n_rows: 8,
                n_cols: 256,
            };
            let step = shard.row_step();
            let file = bytes(step * ty.row_bytes(256));
            let n_runs = |start: usize| {
                let mut n = 0;
                shard.repack_rows(start..start + step, &file, &mut Vec::new(), |_, _| n += 1);
                n
            };
            assert_eq!(n_runs(0) - n_runs(step), usize::from(!table(ty).is_empty()));
        }
    }

    #[test]
    fn codewords_are_packed_by_levels_or_as_bytes() {
        // Codeword 1 of IQ3_XXS is 20, 4, 4, 4; of IQ2_XXS 43 and seven times 8; of IQ1 1 and seven times -1.
        assert_eq!(table(WeightType::IQ3_XXS)[1], 0x0404_0414);
        assert_eq!(table(WeightType::IQ2_XXS)[0], 0x0002_0000);
        assert_eq!(table(WeightType::IQ1_M)[0], 0x0002_0000);
    }

    #[test]
    fn fields_of_a_block_lie_in_planes_of_their_own() {
        // Byte i of the block is i.
        let words = one_block(WeightType::IQ3_XXS);
        assert_eq!((words[0], words[15]), (0x0504_0302, 0x4140_3f3e));
        assert_eq!((words[16], words[23]), (0x4544_4342, 0x6160_5f5e));
        assert_eq!(words[24], 0x0100);
        let words = one_block(WeightType::IQ3_S);
        assert_eq!((words[16], words[23]), (0x4d4c_4b4a, 0x6968_6766));
        assert_eq!(
            words[24..28],
            [0x6b6a_0100, 0x4342_6d6c, 0x4746_4544, 0x4948]
        );
        let words = one_block(WeightType::IQ2_XXS);
        assert_eq!(
            (words[0], words[15], words[16]),
            (0x0504_0302, 0x4140_3f3e, 0x0100)
        );
        let words = one_block(WeightType::IQ2_XS);
        assert_eq!(
            (words[15], words[17], words[20]),
            (0x4140_3f3e, 0x4948_4746, 0x0100)
        );
        let words = one_block(WeightType::IQ2_S);
        assert_eq!((words[2], words[3]), (0x0908_0706, 0x2928_2726));
        assert_eq!((words[16], words[20]), (0x4b43_4a42, 0x0100));
        let words = one_block(WeightType::IQ1_S);
        assert_eq!(
            (words[7], words[8], words[12]),
            (0x2120_1f1e, 0x2524_2322, 0x0100)
        );
        let words = one_block(WeightType::IQ1_M);
        assert_eq!(
            (words[0], words[8], words[13]),
            (0x0302_0100, 0x2322_2120, 0x3736_3534)
        );
    }
}
