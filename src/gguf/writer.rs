//! Writes GGUF files, mostly for tests.

use std::path::Path;

use crate::error::{Error, Result};
use crate::gguf::metadata::Metadata;
use crate::gguf::reader::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_ARRAY_DEPTH, VERSION, check_alignment,
};
use crate::gguf::split::{COUNT_KEY, NUMBER_KEY, TENSORS_KEY};
use crate::gguf::tensor::{TensorType, tensor_bytes};
use crate::gguf::value::{Array, Value, with_items};

/// Builds a GGUF file: metadata and tensors in the order in which they are given.
///
/// # Examples
/// ```
/// use trueshot::gguf::{Gguf, TensorType, WeightType, Writer};
///
/// let weights = WeightType::Q4_0.encode(&[0.5; 64]);
/// let bytes = Writer::new()
///     .metadata("general.architecture", "llama")
///     .tensor("output.weight", [2, 32], TensorType::Q4_0, weights)?
///     .to_bytes()?;
/// assert_eq!(Gguf::from_bytes(bytes)?.tensors()[0].shape, [2, 32]);
/// # Ok::<(), trueshot::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Writer {
    version: u32,
    metadata: Metadata,
    tensors: Vec<Tensor>,
}

#[derive(Debug, Clone)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    ty: TensorType,
    bytes: Vec<u8>,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer {
            version: VERSION,
            metadata: Metadata::default(),
            tensors: Vec::new(),
        }
    }
}

impl Writer {
    /// A file of version 3 with neither metadata nor tensors.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Sets the version of the format.
    ///
    /// # Errors
    /// `InvalidArgument` for anything but 2 and 3.
    pub fn version(mut self, version: u32) -> Result<Writer> {
        if !(2..=VERSION).contains(&version) {
            let message = format!("{version}, expected 2 or 3");
            return Err(Error::InvalidArgument {
                name: "version",
                message,
            });
        }
        self.version = version;
        Ok(self)
    }

    /// Sets the alignment of the tensors' data in bytes: the key `general.alignment`.
    ///
    /// # Errors
    /// `InvalidArgument` for what is neither a power of two nor a multiple of 8.
    pub fn alignment(self, alignment: u32) -> Result<Writer> {
        check_alignment(&Value::U32(alignment)).map_err(|message| Error::InvalidArgument {
            name: "alignment",
            message,
        })?;
        Ok(self.metadata(ALIGNMENT_KEY, alignment))
    }

    /// Sets a key of the metadata.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Writer {
        self.metadata.insert(key, value);
        self
    }

    /// Adds a tensor. `shape` is outermost first, `bytes` are the rows in blocks of type `ty`.
    ///
    /// # Errors
    /// `InvalidArgument` where there is a tensor of this name already, the shape is not one that
    /// a file can have, or the number of bytes is not that of the shape.
    pub fn tensor(
        mut self,
        name: impl Into<String>,
        shape: impl Into<Vec<usize>>,
        ty: impl Into<TensorType>,
        bytes: Vec<u8>,
    ) -> Result<Writer> {
        let (name, shape, ty) = (name.into(), shape.into(), ty.into());
        let refuse = |message: String| {
            let message = format!("tensor `{name}`: {message}");
            Err(Error::InvalidArgument {
                name: "tensor",
                message,
            })
        };
        if self.tensors.iter().any(|tensor| tensor.name == name) {
            return refuse("the name occurs twice".to_owned());
        }
        match tensor_bytes(&shape, ty) {
            Ok(expected) if expected == bytes.len() as u64 => {}
            Ok(expected) => {
                let message = format!(
                    "{} bytes, expected {expected} for shape {shape:?} of type {ty}",
                    bytes.len()
                );
                return refuse(message);
            }
            Err(message) => return refuse(message),
        }
        self.tensors.push(Tensor {
            name,
            shape,
            ty,
            bytes,
        });
        Ok(self)
    }

    /// The whole file.
    ///
    /// # Errors
    /// `InvalidArgument` where the metadata has a `general.alignment` that is not valid, or arrays
    /// that nest more than 8 deep.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let refuse = |key: &str, message| Error::InvalidArgument {
            name: "metadata",
            message: format!("key `{key}`: {message}"),
        };
        let alignment = match self.metadata.get(ALIGNMENT_KEY) {
            None => DEFAULT_ALIGNMENT,
            Some(value) => check_alignment(value).map_err(|e| refuse(ALIGNMENT_KEY, e))?,
        } as usize;

        let mut out = MAGIC.to_vec();
        self.version.write(&mut out);
        self.tensors.len().write(&mut out);
        self.metadata.len().write(&mut out);
        for (key, value) in self.metadata.iter() {
            if let Value::Array(array) = value
                && array.depth() > MAX_ARRAY_DEPTH
            {
                let message = format!("arrays nest more than {MAX_ARRAY_DEPTH} deep");
                return Err(refuse(key, message));
            }
            key.to_owned().write(&mut out);
            value.write(&mut out);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            tensor.name.write(&mut out);
            (tensor.shape.len() as u32).write(&mut out);
            for size in tensor.shape.iter().rev() {
                size.write(&mut out);
            }
            tensor.ty.id().write(&mut out);
            offset.write(&mut out);
            offset += tensor.bytes.len().next_multiple_of(alignment);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(alignment), 0);
            out.extend_from_slice(&tensor.bytes);
        }
        out.resize(out.len().next_multiple_of(alignment), 0);
        Ok(out)
    }

    /// The files of the model split into `n_parts`, with as near as can be as many tensors in each and the
    /// metadata in the first.
    ///
    /// # Errors
    /// `InvalidArgument` for no parts or more than 65535; otherwise as [`Writer::to_bytes`].
    pub fn to_parts(&self, n_parts: usize) -> Result<Vec<Vec<u8>>> {
        let count = match u16::try_from(n_parts) {
            Ok(count) if count > 0 => count,
            _ => {
                let message = format!("{n_parts}, expected 1 to 65535");
                return Err(Error::InvalidArgument {
                    name: "n_parts",
                    message,
                });
            }
        };
        let n_tensors = self.tensors.len();
        let parts = (0..count).map(|number| {
            let start = |part: usize| n_tensors * part / n_parts;
            let number_of = usize::from(number);
            let mut metadata = match number {
                0 => self.metadata.clone(),
                _ => Metadata::default(),
            };
            if let Some(alignment) = self.metadata.get(ALIGNMENT_KEY) {
                metadata.insert(ALIGNMENT_KEY, alignment.clone());
            }
            metadata.insert(NUMBER_KEY, number);
            metadata.insert(COUNT_KEY, count);
            metadata.insert(TENSORS_KEY, n_tensors as i32);
            let part = Writer {
                version: self.version,
                metadata,
                tensors: self.tensors[start(number_of)..start(number_of + 1)].to_vec(),
            };
            part.to_bytes()
        });
        parts.collect()
    }

    /// Writes the whole file to `path`.
    ///
    /// # Errors
    /// `Io` where the file cannot be written; otherwise as [`Writer::to_bytes`].
    pub fn write_to(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        std::fs::write(path, self.to_bytes()?).map_err(|source| Error::Io {
            path: path.to_owned(),
            source: source.into(),
        })
    }
}

/// Something with a form in the file.
trait Write {
    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! write_numbers {
    ($($type:ty),*) => {$(
        impl Write for $type {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

write_numbers!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

/// Counts, lengths and sizes are u64 in the file.
impl Write for usize {
    fn write(&self, out: &mut Vec<u8>) {
        (*self as u64).write(out);
    }
}

impl Write for bool {
    fn write(&self, out: &mut Vec<u8>) {
        u8::from(*self).write(out);
    }
}

impl Write for String {
    fn write(&self, out: &mut Vec<u8>) {
        self.len().write(out);
        out.extend_from_slice(self.as_bytes());
    }
}

/// The kind of the elements, their number, the elements.
impl Write for Array {
    fn write(&self, out: &mut Vec<u8>) {
        let kind: u32 = match self {
            Array::U8(_) => 0,
            Array::I8(_) => 1,
            Array::U16(_) => 2,
            Array::I16(_) => 3,
            Array::U32(_) => 4,
            Array::I32(_) => 5,
            Array::F32(_) => 6,
            Array::Bool(_) => 7,
            Array::String(_) => 8,
            Array::Array(_) => 9,
            Array::U64(_) => 10,
            Array::I64(_) => 11,
            Array::F64(_) => 12,
        };
        kind.write(out);
        self.len().write(out);
        with_items!(self, items => items.iter().for_each(|item| item.write(out)));
    }
}

/// The kind, then the value.
impl Write for Value {
    fn write(&self, out: &mut Vec<u8>) {
        let mut tagged = |kind: u32, value: &dyn Write| {
            kind.write(out);
            value.write(out);
        };
        match self {
            Value::U8(x) => tagged(0, x),
            Value::I8(x) => tagged(1, x),
            Value::U16(x) => tagged(2, x),
            Value::I16(x) => tagged(3, x),
            Value::U32(x) => tagged(4, x),
            Value::I32(x) => tagged(5, x),
            Value::F32(x) => tagged(6, x),
            Value::Bool(x) => tagged(7, x),
            Value::String(x) => tagged(8, x),
            Value::Array(x) => tagged(9, x),
            Value::U64(x) => tagged(10, x),
            Value::I64(x) => tagged(11, x),
            Value::F64(x) => tagged(12, x),
        }
    }
}
