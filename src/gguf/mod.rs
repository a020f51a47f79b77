//! GGUF files: metadata, the tensor table and the tensors' bytes.
//!
//! [`Gguf::open`] maps a file and validates all of it before anything is used; [`Writer`] makes
//! files. [`WeightType`] knows how the weights that the engine computes with are packed in blocks.

mod blocks;
mod cursor;
mod map;
mod metadata;
mod reader;
mod tensor;
mod value;
mod writer;

use std::path::Path;

pub use blocks::WeightType;
pub(crate) use blocks::{LEVELS_IQ3_S, LEVELS_IQ3_XXS, MOST_SCALES, unpacked, words};
pub use metadata::Metadata;
pub use tensor::{TensorInfo, TensorType};
pub use value::{Array, Value};
pub use writer::Writer;

use crate::error::Result;
use map::FileBytes;
use reader::Contents;
use xxhash_rust::xxh64::xxh64;

/// A GGUF file, opened and validated.
///
/// # Examples
/// ```no_run
/// use trueshot::gguf::Gguf;
///
/// let gguf = Gguf::open("model.gguf")?;
/// println!("{}", gguf.metadata().require_str("general.architecture")?);
/// for tensor in gguf.tensors() {
///     println!("{} {:?} {}", tensor.name, tensor.shape, tensor.ty);
/// }
/// # Ok::<(), trueshot::Error>(())
/// ```
#[derive(Debug)]
pub struct Gguf {
    file: FileBytes,
    contents: Contents,
}

impl Gguf {
    /// Maps a file into memory and validates it.
    ///
    /// The file must not be changed or shortened while it is open: changed bytes show up as changed
    /// weights, and the operating system ends a program that reads beyond a shortened file.
    ///
    /// # Errors
    /// `Io` where the file cannot be read; otherwise as [`Gguf::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        Self::new(FileBytes::map(path.as_ref())?)
    }

    /// Validates a file that is in memory.
    ///
    /// # Errors
    /// `Gguf` with offset and name where the bytes are not a sound file; `Unsupported` for another
    /// version of the format and for a tensor type that is not known.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf> {
        Self::new(FileBytes::Owned(bytes))
    }

    fn new(file: FileBytes) -> Result<Gguf> {
        let contents = reader::read(&file)?;
        Ok(Gguf { file, contents })
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.contents.version
    }

    /// The alignment of the tensors' data in bytes.
    pub fn alignment(&self) -> u64 {
        self.contents.alignment
    }

    /// The size of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file.len() as u64
    }

    /// Keys and values, in file order.
    pub fn metadata(&self) -> &Metadata {
        &self.contents.metadata
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.contents.tensors
    }

    /// The tensor of the given name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index(name)
            .map(|index| &self.contents.tensors[index])
    }

    /// The place in [`Gguf::tensors`] of the tensor of the given name.
    pub(crate) fn tensor_index(&self, name: &str) -> Option<usize> {
        self.contents.tensor_index.get(name).copied()
    }

    /// The bytes of a tensor of this file: its rows one after the other, each in blocks of its type.
    /// In memory they may begin at any address.
    ///
    /// # Panics
    /// Where the tensor is of another file and ends beyond the end of this one.
    pub fn tensor_bytes(&self, tensor: &TensorInfo) -> &[u8] {
        let start = tensor.offset as usize;
        &self.file[start..start + tensor.n_bytes as usize]
    }

    /// The XXH64 of a tensor's bytes, by which two files can be compared tensor by tensor. llama.cpp's
    /// `llama-gguf-hash --xxh64` gives the same.
    ///
    /// # Panics
    /// As [`Gguf::tensor_bytes`].
    pub fn tensor_hash(&self, tensor: &TensorInfo) -> u64 {
        xxh64(self.tensor_bytes(tensor), 0)
    }

    /// Tells the operating system that the bytes of a tensor are not needed soon, so that a mapped
    /// file takes no more memory than what is in use. They can be read again as before. Does
    /// nothing for a file from [`Gguf::from_bytes`], and on Windows.
    pub fn release(&self, tensor: &TensorInfo) {
        let end = tensor.offset.saturating_add(tensor.n_bytes);
        self.file.release(tensor.offset as usize..end as usize);
    }
}
