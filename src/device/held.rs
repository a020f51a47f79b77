//! What a device holds of a weight, compared with what the file gives.

use serde::Serialize;
use std::fmt;

/// What a comparison of some rows of a weight found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Held {
    /// The device holds what the file gives, in so many bytes.
    Same {
        /// Bytes on the device that were compared.
        bytes: u64,
    },
    /// The device reads the file where it lies: there is nothing to compare.
    InFile,
    /// The device holds something else.
    Differs(HeldDifference),
}

/// Where a device first holds something else than the file gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldDifference {
    /// The weight's name, e.g. `blk.3.attn_q.weight`; `rope_table[0]` for a table of angles.
    pub name: String,
    /// The first row that differs; the position in a table of angles.
    pub row: usize,
    /// Which plane of a repacked matrix; 0 where there is one only.
    pub plane: usize,
    /// The word (32 bits) in the buffer, or the part of one, that has the row.
    pub word: usize,
    /// The device's word.
    pub found: u32,
    /// The word that the file gives.
    pub expected: u32,
    /// Whether the device holds only zeros in all that was compared.
    pub all_zero: bool,
}

impl fmt::Display for HeldDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HeldDifference {
            name,
            row,
            plane,
            word,
            found,
            expected,
            all_zero,
        } = self;
        write!(
            f,
            "`{name}`: row {row}, word {word} (plane {plane}) is {found:#010x} on the device, \
             expected {expected:#010x}"
        )?;
        if *all_zero {
            f.write_str("; the device holds only zeros")?;
        }
        Ok(())
    }
}

/// The first word in which a device's bytes differ from those that the file gives.
pub(super) struct WordDifference {
    pub(super) word: usize,
    /// The lowest bit of the word that differs.
    pub(super) bit: usize,
    pub(super) found: u32,
    pub(super) expected: u32,
}

/// Compares as many bytes as both have.
pub(super) fn first_difference(found: &[u8], expected: &[u8]) -> Option<WordDifference> {
    let n = found.len().min(expected.len());
    if found[..n] == expected[..n] {
        return None;
    }
    let words = found[..n].chunks(4).zip(expected[..n].chunks(4));
    let word = |bytes: &[u8]| {
        let bytes = bytes.iter().rev();
        bytes.fold(0, |word, &byte| word << 8 | u32::from(byte))
    };
    words.enumerate().find_map(|(index, (found, expected))| {
        let (found, expected) = (word(found), word(expected));
        (found != expected).then(|| WordDifference {
            word: index,
            bit: (found ^ expected).trailing_zeros() as usize,
            found,
            expected,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_difference_is_the_first_word_and_its_lowest_bit() {
        let mut found: Vec<u8> = (0..11).collect();
        let expected = found.clone();
        assert!(first_difference(&found, &expected).is_none());
        found[10] = 0x8a;
        let last = first_difference(&found, &expected).unwrap();
        assert_eq!((last.word, last.bit), (2, 23));
        assert_eq!((last.found, last.expected), (0x008a_0908, 0x000a_0908));
        found[5] ^= 0x30;
        let first = first_difference(&found, &expected).unwrap();
        assert_eq!((first.word, first.bit), (1, 12));
    }
}
