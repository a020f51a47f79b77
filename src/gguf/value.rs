//! The values of the metadata.

use std::fmt;

/// A value of the metadata. The variants are those of the GGUF specification.
#[expect(missing_docs, reason = "the names say all there is to say here")]
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of the metadata: all elements are of one kind. Arrays nest.
#[expect(missing_docs, reason = "the names say all there is to say here")]
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Evaluates `$body` with `$items` bound to the vector of whatever variant `$array` is.
macro_rules! with_items {
    ($array:expr, $items:ident => $body:expr) => {
        match $array {
            Array::U8($items) => $body,
            Array::I8($items) => $body,
            Array::U16($items) => $body,
            Array::I16($items) => $body,
            Array::U32($items) => $body,
            Array::I32($items) => $body,
            Array::F32($items) => $body,
            Array::Bool($items) => $body,
            Array::String($items) => $body,
            Array::Array($items) => $body,
            Array::U64($items) => $body,
            Array::I64($items) => $body,
            Array::F64($items) => $body,
        }
    };
}
pub(super) use with_items;

impl Value {
    /// The name of the value's kind, e.g. `u32`.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::U8(_) => "u8",
            Value::I8(_) => "i8",
            Value::U16(_) => "u16",
            Value::I16(_) => "i16",
            Value::U32(_) => "u32",
            Value::I32(_) => "i32",
            Value::F32(_) => "f32",
            Value::Bool(_) => "bool",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::U64(_) => "u64",
            Value::I64(_) => "i64",
            Value::F64(_) => "f64",
        }
    }

    /// The value of any integer kind.
    pub(crate) fn integer(&self) -> Option<i128> {
        match *self {
            Value::U8(x) => Some(x.into()),
            Value::I8(x) => Some(x.into()),
            Value::U16(x) => Some(x.into()),
            Value::I16(x) => Some(x.into()),
            Value::U32(x) => Some(x.into()),
            Value::I32(x) => Some(x.into()),
            Value::U64(x) => Some(x.into()),
            Value::I64(x) => Some(x.into()),
            _ => None,
        }
    }

    pub(super) fn array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }
}

/// Scalars print as in Rust, arrays as [`Array`] does.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(x) => write!(f, "{x}"),
            Value::I8(x) => write!(f, "{x}"),
            Value::U16(x) => write!(f, "{x}"),
            Value::I16(x) => write!(f, "{x}"),
            Value::U32(x) => write!(f, "{x}"),
            Value::I32(x) => write!(f, "{x}"),
            Value::F32(x) => write!(f, "{x}"),
            Value::Bool(x) => write!(f, "{x}"),
            Value::String(x) => write!(f, "{x:?}"),
            Value::Array(x) => write!(f, "{x}"),
            Value::U64(x) => write!(f, "{x}"),
            Value::I64(x) => write!(f, "{x}"),
            Value::F64(x) => write!(f, "{x}"),
        }
    }
}

impl Array {
    /// The number of elements.
    pub fn len(&self) -> usize {
        with_items!(self, items => items.len())
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of the elements' kind, e.g. `u32`.
    pub fn kind(&self) -> &'static str {
        match self {
            Array::U8(_) => "u8",
            Array::I8(_) => "i8",
            Array::U16(_) => "u16",
            Array::I16(_) => "i16",
            Array::U32(_) => "u32",
            Array::I32(_) => "i32",
            Array::F32(_) => "f32",
            Array::Bool(_) => "bool",
            Array::String(_) => "string",
            Array::Array(_) => "array",
            Array::U64(_) => "u64",
            Array::I64(_) => "i64",
            Array::F64(_) => "f64",
        }
    }

    /// How deep arrays nest in this one: 1 where no element is an array.
    pub(super) fn depth(&self) -> usize {
        match self {
            Array::Array(items) => 1 + items.iter().map(Array::depth).max().unwrap_or(0),
            _ => 1,
        }
    }

    /// The elements of an array of any integer kind.
    pub(super) fn integers(&self) -> Option<Box<dyn Iterator<Item = i128> + '_>> {
        Some(match self {
            Array::U8(items) => Box::new(items.iter().map(|&x| x.into())),
            Array::I8(items) => Box::new(items.iter().map(|&x| x.into())),
            Array::U16(items) => Box::new(items.iter().map(|&x| x.into())),
            Array::I16(items) => Box::new(items.iter().map(|&x| x.into())),
            Array::U32(items) => Box::new(items.iter().map(|&x| x.into())),
            Array::I32(items) => Box::new(items.iter().map(|&x| x.into())),
            Array::U64(items) => Box::new(items.iter().map(|&x| x.into())),
            Array::I64(items) => Box::new(items.iter().map(|&x| x.into())),
            _ => return None,
        })
    }
}

/// The first elements, then `..` and the number of all where there are more.
impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        let mut list = f.debug_list();
        with_items!(self, items => list.entries(items.iter().take(SHOWN)));
        match self.len() {
            len if len > SHOWN => list.entry(&format_args!(".. {len} in all")).finish(),
            _ => list.finish(),
        }
    }
}

macro_rules! value_from {
    ($($type:ty => $variant:ident),* $(,)?) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Value {
                Value::$variant(value)
            }
        }

        impl From<Vec<$type>> for Array {
            fn from(items: Vec<$type>) -> Array {
                Array::$variant(items)
            }
        }

        impl From<Vec<$type>> for Value {
            fn from(items: Vec<$type>) -> Value {
                Value::Array(Array::$variant(items))
            }
        }
    )*};
}

value_from! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool, String => String, Array => Array,
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_arrays_print_their_first_elements_and_their_length() {
        let array = Array::from((0..10_u8).collect::<Vec<_>>());
        assert_eq!(array.to_string(), "[0, 1, 2, 3, 4, 5, .. 10 in all]");
        assert_eq!(Array::from(vec![true]).to_string(), "[true]");
    }
}
