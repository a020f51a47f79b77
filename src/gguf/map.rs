//! The bytes of a file: mapped into memory, or held in a vector.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// The bytes of a whole file.
#[derive(Debug)]
pub(super) enum FileBytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Maps a file for reading.
    #[expect(unsafe_code, reason = "a map of a file cannot be made in safe Rust")]
    pub(super) fn map(path: &Path) -> Result<FileBytes> {
        let io_error = |source: std::io::Error| Error::Io {
            path: path.to_owned(),
            source: source.into(),
        };
        let file = File::open(path).map_err(io_error)?;
        // SAFETY: the map is read-only and only ever seen as plain bytes, so every content is valid.
        // That no other process changes or shortens the file meanwhile is asked of the caller
        // (see `Gguf::open`), as everywhere that a file is mapped.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
        Ok(FileBytes::Mapped(map))
    }

    /// Lets the operating system take back the pages of `range`. They are read again when needed.
    #[cfg(unix)]
    #[expect(
        unsafe_code,
        reason = "advice that drops pages is unsafe for maps with private changes"
    )]
    pub(super) fn release(&self, range: Range<usize>) {
        let FileBytes::Mapped(map) = self else { return };
        if range.start > range.end || range.end > map.len() {
            return;
        }
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the range lies within the map (checked above), which is shared and read-only: a
        // dropped page holds nothing that the file does not, and the next access reads it again.
        let advised = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
        if let Err(error) = advised {
            log::debug!("the pages {range:?} of a mapped file stay in memory: {error}");
        }
    }

    /// Does nothing: there is no such advice on this operating system.
    #[cfg(not(unix))]
    pub(super) fn release(&self, _range: Range<usize>) {}
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::Owned(bytes) => bytes,
        }
    }
}
