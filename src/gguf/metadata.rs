//! The metadata of a file: keys and typed values, in file order.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::gguf::value::{Array, Value};

/// Keys and values, in file order.
///
/// The typed getters tell an absent key (`Ok(None)`) from a value that is of another kind or out of
/// range (`InvalidModel`). Any integer kind converts to the integer type asked for, where the value
/// fits; f64 converts to f32. Nothing else converts.
///
/// # Examples
/// ```
/// # use trueshot::gguf::Metadata;
/// let mut metadata = Metadata::default();
/// metadata.insert("llama.block_count", 30_u64);
/// assert_eq!(metadata.u32("llama.block_count")?, Some(30));
/// assert_eq!(metadata.u32("llama.expert_count")?, None);
/// assert!(metadata.str("llama.block_count").is_err());
/// # Ok::<(), trueshot::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&index| &self.entries[index].1)
    }

    /// All keys with their values, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries
            .iter()
            .map(|(key, value)| (key.as_str(), value))
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sets a key: a new one goes to the end, an old one keeps its place. Returns the old value.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if let Some(&index) = self.index.get(&key) {
            return Some(std::mem::replace(&mut self.entries[index].1, value));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        convert(value).map(Some).ok_or_else(|| {
            let found = match value {
                Value::Array(array) => format!("an array of {} {}", array.len(), array.kind()),
                Value::String(text) if text.len() > 80 => {
                    format!("a string of {} bytes", text.len())
                }
                scalar => format!("{} {scalar}", scalar.kind()),
            };
            Error::InvalidModel {
                message: format!("key `{key}`: {found}, expected {expected}"),
            }
        })
    }
}

/// Defines two getters for a type: one for a key that may be absent and one for a key that must not.
macro_rules! getters {
    ($($name:ident, $require:ident, $type:ty, $expected:literal, $convert:expr;)*) => {
        impl Metadata {$(
            #[doc = concat!("The value of a key that must be ", $expected, " if it is there.")]
            ///
            /// # Errors
            /// `InvalidModel` where the value is of another kind or out of range.
            pub fn $name(&self, key: &str) -> Result<Option<$type>> {
                self.typed(key, $expected, $convert)
            }

            #[doc = concat!("The value of a key that must be there and be ", $expected, ".")]
            ///
            /// # Errors
            /// `InvalidModel` where the key is absent, or the value of another kind or out of range.
            pub fn $require(&self, key: &str) -> Result<$type> {
                self.$name(key)?.ok_or_else(|| Error::InvalidModel {
                    message: format!("key `{key}` is missing"),
                })
            }
        )*}
    };
}

getters! {
    u32, require_u32, u32, "an integer from 0 to 2^32 - 1", integer;
    u64, require_u64, u64, "an integer from 0 to 2^64 - 1", integer;
    usize, require_usize, usize, "an integer that is a valid size", integer;
    f32, require_f32, f32, "a float", |value| match *value {
        Value::F32(x) => Some(x),
        Value::F64(x) => narrow(x),
        _ => None,
    };
    bool, require_bool, bool, "a bool", |value| match *value {
        Value::Bool(x) => Some(x),
        _ => None,
    };
    str, require_str, &str, "a string", |value| match value {
        Value::String(text) => Some(text.as_str()),
        _ => None,
    };
    strings, require_strings, &[String], "an array of strings", |value| match value {
        Value::Array(Array::String(items)) => Some(items.as_slice()),
        _ => None,
    };
    bools, require_bools, Vec<bool>, "an array of bools", |value| match value {
        Value::Array(Array::Bool(items)) => Some(items.clone()),
        _ => None,
    };
    f32s, require_f32s, Vec<f32>, "an array of floats", |value| match value {
        Value::Array(Array::F32(items)) => Some(items.clone()),
        Value::Array(Array::F64(items)) => items.iter().map(|&x| narrow(x)).collect(),
        _ => None,
    };
    i32s, require_i32s, Vec<i32>, "an array of integers from -2^31 to 2^31 - 1", integers;
    u32s, require_u32s, Vec<u32>, "an array of integers from 0 to 2^32 - 1", integers;
}

fn integer<T: TryFrom<i128>>(value: &Value) -> Option<T> {
    value.integer().and_then(|x| T::try_from(x).ok())
}

fn integers<T: TryFrom<i128>>(value: &Value) -> Option<Vec<T>> {
    value
        .array()?
        .integers()?
        .map(|x| T::try_from(x).ok())
        .collect()
}

/// The nearest f32, or `None` where a finite value is beyond the range of f32.
fn narrow(x: f64) -> Option<f32> {
    let narrowed = x as f32;
    (narrowed.is_finite() || !x.is_finite()).then_some(narrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(value: impl Into<Value>) -> Metadata {
        let mut metadata = Metadata::default();
        metadata.insert("k", value);
        metadata
    }

    #[test]
    fn integer_getters_accept_every_integer_kind_that_fits() {
        let values: [Value; 8] = [
            7_u8.into(),
            7_i8.into(),
            7_u16.into(),
            7_i16.into(),
            7_u32.into(),
            7_i32.into(),
            7_u64.into(),
            7_i64.into(),
        ];
        for value in values {
            let metadata = metadata(value);
            assert_eq!(metadata.u32("k").expect("fits"), Some(7));
            assert_eq!(metadata.u64("k").expect("fits"), Some(7));
            assert_eq!(metadata.usize("k").expect("fits"), Some(7));
        }
        assert_eq!(metadata(u64::MAX).u64("k").expect("fits"), Some(u64::MAX));
    }

    #[test]
    fn getters_refuse_other_kinds_and_ranges_by_name() {
        let text = |result: Result<Option<u32>>| result.expect_err("refused").to_string();
        let integer = "expected an integer from 0 to 2^32 - 1";
        assert_eq!(
            text(metadata(-1_i32).u32("k")),
            format!("key `k`: i32 -1, {integer}")
        );
        assert_eq!(
            text(metadata(1_u64 << 32).u32("k")),
            format!("key `k`: u64 4294967296, {integer}")
        );
        assert_eq!(
            text(metadata(true).u32("k")),
            format!("key `k`: bool true, {integer}")
        );
        assert_eq!(
            text(metadata(1.0_f32).u32("k")),
            format!("key `k`: f32 1, {integer}")
        );
        assert_eq!(
            text(metadata(vec![1_u32, 2]).u32("k")),
            format!("key `k`: an array of 2 u32, {integer}")
        );
        assert!(metadata(1_u32).f32("k").is_err());
        assert!(metadata(1e300).f32("k").is_err());
        assert!(metadata(1_u8).bool("k").is_err());
        assert!(metadata(vec![-1_i32]).u32s("k").is_err());
        assert!(metadata(vec![1_u32]).strings("k").is_err());
        assert!(metadata(vec![1_u8]).bools("k").is_err());
    }

    #[test]
    fn getters_convert_where_nothing_is_lost_in_range() {
        assert_eq!(metadata(0.5_f64).f32("k").expect("a float"), Some(0.5));
        assert_eq!(
            metadata(f64::INFINITY).f32("k").expect("a float"),
            Some(f32::INFINITY)
        );
        assert_eq!(
            metadata(vec![0.5_f64]).f32s("k").expect("floats"),
            Some(vec![0.5])
        );
        assert_eq!(
            metadata(vec![3_u8, 4]).i32s("k").expect("integers"),
            Some(vec![3, 4])
        );
        assert_eq!(
            metadata(vec![3_i64, 4]).u32s("k").expect("integers"),
            Some(vec![3, 4])
        );
        assert_eq!(
            metadata(vec![true]).bools("k").expect("bools"),
            Some(vec![true])
        );
        assert_eq!(metadata("text").str("k").expect("a string"), Some("text"));
    }

    #[test]
    fn absent_keys_are_none_or_missing() {
        let metadata = Metadata::default();
        assert_eq!(metadata.u32("k").expect("absent"), None);
        let error = metadata.require_u32("k").expect_err("missing");
        assert_eq!(error.to_string(), "key `k` is missing");
    }

    #[test]
    fn insert_keeps_the_order_and_returns_the_old_value() {
        let mut metadata = Metadata::default();
        assert_eq!(metadata.insert("b", 1_u32), None);
        assert_eq!(metadata.insert("a", 2_u32), None);
        assert_eq!(metadata.insert("b", 3_u32), Some(Value::U32(1)));
        let entries: Vec<_> = metadata.iter().collect();
        assert_eq!(entries, [("b", &Value::U32(3)), ("a", &Value::U32(2))]);
    }
}
