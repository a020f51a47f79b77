//! GGUF files: metadata, the tensor table and the tensors' bytes.
//!
//! [`Gguf::open`] maps a file and validates all of it before anything is used; [`Writer`] makes
//! files. [`WeightType`] knows how the weights that the engine computes with are packed in blocks.

mod blocks;
mod cursor;
mod map;
mod metadata;
mod reader;
mod split;
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

use crate::error::{Error, Result};
use map::FileBytes;
use reader::Contents;
use split::Split;
use xxhash_rust::xxh64::xxh64;

/// A GGUF file, opened and validated; or the files of a model that is split into several.
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
    /// One for each part of the model.
    files: Vec<FileBytes>,
    contents: Contents,
}

impl Gguf {
    /// Maps a file into memory and validates it. Where it is a part of a split model
    /// (`model-00001-of-00003.gguf`), whichever, all parts are opened.
    ///
    /// The files must not be changed or shortened while they are open: changed bytes show up as
    /// changed weights, and the operating system ends a program that reads beyond a shortened file.
    ///
    /// # Errors
    /// `Io` where a file cannot be read, a part that is missing too; otherwise as
    /// [`Gguf::from_parts`].
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        let path = path.as_ref();
        let file = FileBytes::map(path)?;
        let contents = reader::read(&file)?;
        let Some(split) = Split::from_metadata(&contents.metadata)? else {
            return Ok(Gguf {
                files: vec![file],
                contents,
            });
        };
        let mut opened = Some((file, contents));
        let (mut names, mut files, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for (number, path) in split.paths(path)?.enumerate() {
            let name = split::quoted(&path);
            let is_opened = number == split.number;
            let (file, contents) = match opened.take_if(|_| is_opened) {
                Some(part) => part,
                None => {
                    let file = FileBytes::map(&path)?;
                    let contents = read_part(&file, &name)?;
                    (file, contents)
                }
            };
            names.push(name);
            files.push(file);
            parts.push(contents);
        }
        let contents = split::join(&names, parts)?;
        Ok(Gguf { files, contents })
    }

    /// Validates a file that is in memory.
    ///
    /// # Errors
    /// As [`Gguf::from_parts`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf> {
        Gguf::from_parts(vec![bytes])
    }

    /// Validates the parts of a split model that are in memory, in order.
    ///
    /// # Errors
    /// `Gguf` with offset and name where the bytes are not a sound file; `Unsupported` for another
    /// version of the format and for a tensor type that is not known; `InvalidModel` where the parts
    /// are not all of one model: one is absent or at another's place, two have the same tensor or
    /// different values of a key, or a later one has a key that the first has not; `InvalidArgument`
    /// for no parts.
    pub fn from_parts(parts: Vec<Vec<u8>>) -> Result<Gguf> {
        let files: Vec<FileBytes> = parts.into_iter().map(FileBytes::Owned).collect();
        let names: Vec<String> = (1..=files.len()).map(|n| format!("part {n}")).collect();
        let contents = match files.as_slice() {
            [file] => vec![reader::read(file)?],
            _ => {
                let parts = files.iter().zip(&names);
                parts
                    .map(|(file, name)| read_part(file, name))
                    .collect::<Result<_>>()?
            }
        };
        let contents = split::join(&names, contents)?;
        Ok(Gguf { files, contents })
    }

    /// The number of files: more than 1 for a split model.
    pub fn n_parts(&self) -> usize {
        self.files.len()
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.contents.version
    }

    /// The alignment of the tensors' data in bytes.
    pub fn alignment(&self) -> u64 {
        self.contents.alignment
    }

    /// The size of the file in bytes, of all files of a split model together.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len() as u64).sum()
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
        &self.files[tensor.part][start..start + tensor.n_bytes as usize]
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
        if let Some(file) = self.files.get(tensor.part) {
            file.release(tensor.offset as usize..end as usize);
        }
    }
}

/// Reads a part; what is wrong with it names it.
fn read_part(file: &FileBytes, name: &str) -> Result<Contents> {
    reader::read(file).map_err(|error| match error {
        Error::Gguf { offset, message } => Error::Gguf {
            offset,
            message: format!("{name}: {message}"),
        },
        error => error,
    })
}
