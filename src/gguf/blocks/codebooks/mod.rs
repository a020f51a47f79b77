//! The codebooks of the IQ types: a codeword stands for four or eight weights at once.
//!
//! The codewords are ggml's (`words.rs`, which `make_words.py` made). Those of IQ3 and IQ2 are
//! magnitudes, and signs are stored beside them; those of IQ1 are -1, 0 and 1.

mod encode;
pub(crate) mod words;

pub(super) use encode::{DELTA, even_signs_of, nearest_scales, signs_of};

use std::sync::LazyLock;

/// The magnitudes in [`words::IQ3_XXS`].
pub(crate) const LEVELS_IQ3_XXS: [i8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
/// The magnitudes in [`words::IQ3_S`].
pub(crate) const LEVELS_IQ3_S: [i8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];
/// The magnitudes in [`words::IQ2_XXS`], [`words::IQ2_XS`] and [`words::IQ2_S`].
const LEVELS_IQ2: [i8; 3] = [8, 25, 43];
/// The values in [`words::IQ1_S`].
const LEVELS_IQ1: [i8; 3] = [-1, 0, 1];

pub(super) static IQ3_XXS: Codebook<4, 256> = Codebook {
    words: unpacked(&words::IQ3_XXS, &LEVELS_IQ3_XXS),
    levels: &LEVELS_IQ3_XXS,
    nearest: LazyLock::new(|| IQ3_XXS.find_nearest()),
};
pub(super) static IQ3_S: Codebook<4, 512> = Codebook {
    words: unpacked(&words::IQ3_S, &LEVELS_IQ3_S),
    levels: &LEVELS_IQ3_S,
    nearest: LazyLock::new(|| IQ3_S.find_nearest()),
};
pub(super) static IQ2_XXS: Codebook<8, 256> = Codebook {
    words: unpacked(&words::IQ2_XXS, &LEVELS_IQ2),
    levels: &LEVELS_IQ2,
    nearest: LazyLock::new(|| IQ2_XXS.find_nearest()),
};
pub(super) static IQ2_XS: Codebook<8, 512> = Codebook {
    words: unpacked(&words::IQ2_XS, &LEVELS_IQ2),
    levels: &LEVELS_IQ2,
    nearest: LazyLock::new(|| IQ2_XS.find_nearest()),
};
pub(super) static IQ2_S: Codebook<8, 1024> = Codebook {
    words: unpacked(&words::IQ2_S, &LEVELS_IQ2),
    levels: &LEVELS_IQ2,
    nearest: LazyLock::new(|| IQ2_S.find_nearest()),
};
/// Of IQ1_M too.
pub(super) static IQ1: Codebook<8, 2048> = Codebook {
    words: unpacked(&words::IQ1_S, &LEVELS_IQ1),
    levels: &LEVELS_IQ1,
    nearest: LazyLock::new(|| IQ1.find_nearest()),
};

/// `N` codewords of `LEN` weights each.
pub(super) struct Codebook<const LEN: usize, const N: usize> {
    words: [[i8; LEN]; N],
    /// The values that codewords are made of.
    levels: &'static [i8],
    /// The codeword nearest to each combination of levels, the first level counting least.
    nearest: LazyLock<Vec<u16>>,
}

impl<const LEN: usize, const N: usize> Codebook<LEN, N> {
    /// A codeword's values.
    pub(super) fn word(&self, index: usize) -> &[i8; LEN] {
        &self.words[index % N]
    }
}

/// Codewords whose values are packed as indices of their levels, the first one lowest.
pub(crate) const fn unpacked<const LEN: usize, const N: usize>(
    words: &[u16; N],
    levels: &[i8],
) -> [[i8; LEN]; N] {
    let bits = usize::BITS - (levels.len() - 1).leading_zeros();
    let mut values = [[0; LEN]; N];
    let mut word = 0;
    while word < N {
        let mut i = 0;
        while i < LEN {
            let level = words[word] >> (bits * i as u32) & ((1 << bits) - 1);
            values[word][i] = levels[level as usize];
            i += 1;
        }
        word += 1;
    }
    values
}

/// Eight signs of seven bits: the eighth makes the number of minus signs even (`ksigns_iq2xs` in
/// ggml-common.h).
pub(super) fn even_signs(bits: u32) -> u8 {
    let seven = (bits & 127) as u8;
    seven | ((seven.count_ones() & 1) << 7) as u8
}

/// `step` times the values of a codeword, negative where a bit of `signs` is set.
pub(super) fn write_signed(step: f32, word: &[i8], signs: u8, out: &mut [f32]) {
    for (i, (value, out)) in word.iter().zip(out).enumerate() {
        let value = match signs >> i & 1 {
            0 => *value,
            _ => -*value,
        };
        *out = step * f32::from(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codewords_differ_and_are_made_of_their_levels() {
        fn check<const LEN: usize, const N: usize>(codebook: &Codebook<LEN, N>) {
            let mut words = codebook.words.to_vec();
            words.sort_unstable();
            words.dedup();
            assert_eq!(words.len(), N);
            let mut values = words.as_flattened().iter();
            assert!(values.all(|value| codebook.levels.contains(value)));
        }
        check(&IQ3_XXS);
        check(&IQ3_S);
        check(&IQ2_XXS);
        check(&IQ2_XS);
        check(&IQ2_S);
        check(&IQ1);
    }

    #[test]
    fn even_signs_have_an_even_number_of_minus_signs() {
        for bits in 0..256 {
            let signs = even_signs(bits);
            assert_eq!(u32::from(signs) & 127, bits & 127);
            assert!(signs.count_ones().is_multiple_of(2));
        }
    }

    #[test]
    fn nearest_of_a_codeword_is_itself() {
        fn check<const LEN: usize, const N: usize>(codebook: &Codebook<LEN, N>) {
            for index in 0..N {
                let targets = codebook.word(index).map(f32::from);
                assert_eq!(codebook.nearest(targets), index);
            }
        }
        check(&IQ3_XXS);
        check(&IQ3_S);
        check(&IQ2_XXS);
        check(&IQ2_XS);
        check(&IQ2_S);
        check(&IQ1);
    }
}
