//! The normaliser of SentencePiece: a map from sequences of characters to their replacements.
//!
//! `tokenizer.ggml.precompiled_charsmap` holds, little-endian, the bytes of a double array (u32), the
//! array itself and the replacements, each ended by a zero. A unit of the array has the offset of its
//! children in bits 10 to 30 (eight bits further left if bit 9 is set), whether it ends a key in bit
//! 8 and its label in bits 0 to 7; the unit of a value has bit 31. Source: `darts.h` in s-yata/darts-clone.

use super::vocabulary::invalid_key;
use crate::error::Result;
use crate::gguf::{Array, Metadata, Value};

const KEY: &str = "tokenizer.ggml.precompiled_charsmap";

/// The longest key and the longest replacement, in bytes. The longest replacement of Unicode's own normal forms has 33.
const MAX_BYTES: usize = 256;

/// The replacements of a `t5` vocabulary.
pub(super) struct CharsMap {
    units: Vec<u32>,
    replacements: String,
}

impl CharsMap {
    /// The map that the file has, if it has one.
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<CharsMap>> {
        let bytes: Vec<u8> = match metadata.get(KEY) {
            None => return Ok(None),
            Some(Value::Array(Array::U8(bytes))) => bytes.clone(),
            Some(Value::Array(Array::I8(bytes))) => bytes.iter().map(|&byte| byte as u8).collect(),
            Some(_) => return Err(invalid_key(KEY, "not an array of bytes")),
        };
        if bytes.is_empty() {
            return Ok(None);
        }
        CharsMap::new(&bytes).map(Some)
    }

    fn new(bytes: &[u8]) -> Result<CharsMap> {
        let cut_short = || invalid_key(KEY, format!("{} bytes are too few", bytes.len()));
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut_short)?;
        let size = u32::from_le_bytes(*size) as usize;
        let (units, replacements) = rest.split_at_checked(size).ok_or_else(cut_short)?;
        let units = units
            .as_chunks::<4>()
            .0
            .iter()
            .map(|unit| u32::from_le_bytes(*unit));
        let replacements = std::str::from_utf8(replacements)
            .map_err(|error| invalid_key(KEY, format!("replacements: {error}")))?;
        let longest = replacements.split('\0').map(str::len).max().unwrap_or(0);
        if longest > MAX_BYTES {
            let found = format!("a replacement of {longest} bytes, expected at most {MAX_BYTES}");
            return Err(invalid_key(KEY, found));
        }
        Ok(CharsMap {
            units: units.collect(),
            replacements: replacements.to_owned(),
        })
    }

    /// The longest key that a text begins with: its length in bytes and what replaces it.
    pub fn replacement(&self, text: &str) -> Option<(usize, &str)> {
        let mut longest = None;
        let mut node = offset(*self.units.first()?);
        // The child of a damaged unit may be the unit itself.
        let bytes = text.bytes().take(MAX_BYTES).enumerate();
        for (index, byte) in bytes.take_while(|&(_, byte)| byte != 0) {
            node ^= usize::from(byte);
            let Some(&unit) = self.units.get(node) else {
                break;
            };
            if unit & (1 << 31 | 0xFF) != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let value = self.units.get(node).map(|value| value & !(1 << 31));
                longest = value.map(|value| (index + 1, value as usize));
            }
        }
        let (n_bytes, at) = longest?;
        let replacement = self.replacements.get(at..)?.split('\0').next()?;
        text.is_char_boundary(n_bytes)
            .then_some((n_bytes, replacement))
    }
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const IS_KEY: u32 = 1 << 8;

    /// "a" becomes "b", "aa" becomes "".
    fn bytes() -> Vec<u8> {
        let mut units = vec![0_u32; 1024];
        units[0] = 256 << 10;
        let a = u32::from(b'a');
        let first = 256 ^ a as usize;
        units[first] = a | IS_KEY | (512 << 10);
        let value = first ^ 512;
        units[value] = 1 << 31;
        let second = value ^ a as usize;
        units[second] = a | IS_KEY | (64 << 10);
        units[second ^ 64] = 1 << 31 | 2;
        let mut bytes = 4096_u32.to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(b"b\0\0");
        bytes
    }

    #[test]
    fn the_longest_key_is_replaced() {
        let map = CharsMap::new(&bytes()).expect("valid");
        assert_eq!(map.replacement("ab"), Some((1, "b")));
        assert_eq!(map.replacement("aab"), Some((2, "")));
        assert_eq!(map.replacement("b"), None);
        assert_eq!(map.replacement(""), None);
    }

    #[test]
    fn a_key_without_end_is_not_followed() {
        let a = u32::from(b'a');
        let mut units = vec![0_u32; 512];
        units[0] = 256 << 10;
        units[256 ^ a as usize] = a | IS_KEY | (a << 10);
        units[256] = 1 << 31;
        let mut bytes = 2048_u32.to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(b"b\0");
        let map = CharsMap::new(&bytes).expect("valid");
        assert_eq!(map.replacement(&"a".repeat(9)), Some((9, "b")));
        assert_eq!(map.replacement(&"a".repeat(1000)), Some((MAX_BYTES, "b")));
    }

    #[test]
    fn damaged_maps_are_refused_or_replace_nothing() {
        let bytes = bytes();
        for length in [1, 3, 4, 100, 4099] {
            assert!(CharsMap::new(&bytes[..length]).is_err(), "{length}");
        }
        assert!(CharsMap::new(&[&bytes[..4100], &[0xFF]].concat()).is_err());
        let replaced = |n_bytes| CharsMap::new(&[&bytes[..], &vec![b'x'; n_bytes]].concat());
        assert!(replaced(MAX_BYTES).is_ok() && replaced(MAX_BYTES + 1).is_err());
        let mut state = 3_u32;
        for _ in 0..2000 {
            let mut damaged = bytes.clone();
            for _ in 0..40 {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                let at = 4 + (state >> 8) as usize % 4096;
                damaged[at] ^= (state >> 24) as u8;
            }
            if let Ok(map) = CharsMap::new(&damaged) {
                for text in ["aaa", "é", "日本"] {
                    assert!(
                        map.replacement(text)
                            .is_none_or(|(n, _)| text.get(..n).is_some())
                    );
                }
            }
        }
    }
}
