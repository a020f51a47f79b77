//! Reads little-endian fields one after the other; every error names the field's offset and owner.

use std::fmt;

use crate::error::{Error, Result};

/// What a field belongs to, for errors.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner<'a> {
    Header,
    /// A metadata entry whose key is not known yet, by its number.
    Entry(usize),
    Key(&'a str),
    /// A tensor whose name is not known yet, by its number.
    TensorNumber(usize),
    Tensor(&'a str),
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Header => write!(f, "header"),
            Owner::Entry(index) => write!(f, "metadata entry {index}"),
            Owner::Key(key) => write!(f, "key `{key}`"),
            Owner::TensorNumber(index) => write!(f, "tensor {index}"),
            Owner::Tensor(name) => write!(f, "tensor `{name}`"),
        }
    }
}

impl Owner<'_> {
    /// The error for a field of this owner at `offset`.
    pub(super) fn error(self, offset: u64, message: impl fmt::Display) -> Error {
        Error::Gguf {
            offset,
            message: format!("{self}: {message}"),
        }
    }
}

/// A number with a fixed size in the file.
pub(super) trait Scalar: Sized {
    const BYTES: usize;
    /// Reads from exactly [`Self::BYTES`] bytes.
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! scalars {
    ($($type:ty),*) => {$(
        impl Scalar for $type {
            const BYTES: usize = size_of::<$type>();
            fn from_bytes(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$type>()];
                array.copy_from_slice(bytes);
                <$type>::from_le_bytes(array)
            }
        }
    )*};
}

scalars!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

/// A position in the file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// Bytes from the start of the file.
    pub(super) fn offset(&self) -> u64 {
        self.position as u64
    }

    fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    /// The next `n_bytes` bytes.
    pub(super) fn take(&mut self, n_bytes: u64, owner: Owner) -> Result<&'a [u8]> {
        let taken = usize::try_from(n_bytes)
            .ok()
            .and_then(|n_bytes| self.bytes[self.position..].get(..n_bytes));
        let Some(taken) = taken else {
            let remaining = self.remaining();
            let message = format!("{n_bytes} bytes expected, the file ends after {remaining}");
            return Err(owner.error(self.offset(), message));
        };
        self.position += taken.len();
        Ok(taken)
    }

    pub(super) fn scalar<T: Scalar>(&mut self, owner: Owner) -> Result<T> {
        Ok(T::from_bytes(self.take(T::BYTES as u64, owner)?))
    }

    /// A declared count of things of at least `min_bytes` bytes each. More than the rest of the
    /// file can hold is an error, so that memory may be reserved for the count.
    pub(super) fn count(&mut self, min_bytes: usize, things: &str, owner: Owner) -> Result<usize> {
        let offset = self.offset();
        let count = self.scalar::<u64>(owner)?;
        let most = self.remaining() / min_bytes as u64;
        if count > most {
            let remaining = self.remaining();
            let message = format!(
                "{count} {things} declared, the {remaining} bytes that follow hold at most {most}"
            );
            return Err(owner.error(offset, message));
        }
        Ok(count as usize)
    }

    /// A string: its length in bytes, then UTF-8.
    pub(super) fn string(&mut self, owner: Owner) -> Result<&'a str> {
        let length = self.count(1, "bytes of text", owner)?;
        let start = self.offset();
        let text = self.take(length as u64, owner)?;
        std::str::from_utf8(text).map_err(|error| {
            let valid = error.valid_up_to();
            let message = format!("text of {length} bytes is not UTF-8 at its byte {valid}");
            owner.error(start + valid as u64, message)
        })
    }

    /// A bool: one byte, 0 or 1.
    pub(super) fn bool(&mut self, owner: Owner) -> Result<bool> {
        let offset = self.offset();
        match self.scalar::<u8>(owner)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(owner.error(offset, format!("bool {other}, expected 0 or 1"))),
        }
    }
}
