//! Everything that can go wrong, cut by what the caller can do about it.

use std::path::PathBuf;
use std::sync::Arc;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. The text names the thing at fault, with what was found and what was expected.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<std::io::Error>,
    },
    /// The bytes are not a sound GGUF file: damaged, truncated or not GGUF at all.
    #[error("damaged GGUF file, at byte {offset}: {message}")]
    Gguf {
        /// Byte offset from the start of the file of the field at fault.
        offset: u64,
        /// The name of the key or tensor, what was found and what was expected.
        message: String,
    },
    /// A sound file whose contents do not make a model: a missing key or tensor, a wrong shape,
    /// a tensor that nothing uses, two facts that contradict each other.
    #[error("{message}")]
    InvalidModel {
        /// The key or tensor, what was found and what was expected.
        message: String,
    },
    /// A sound file that needs something this version does not have.
    #[error("{kind} `{name}` is not supported (supported: {supported})")]
    Unsupported {
        /// What kind of thing: "architecture", "weight type", "tokenizer", "pre-tokenizer", ..
        kind: &'static str,
        /// Its name as the file has it.
        name: String,
        /// What would have been accepted.
        supported: String,
    },
    /// Text could not be turned into tokens or back.
    #[error("tokenizer: {message}")]
    Tokenizer {
        /// What failed, and on which token or text.
        message: String,
    },
    /// The model's chat template is absent or failed.
    #[error("chat template: {message}")]
    ChatTemplate {
        /// What failed, with the template's line where it is known.
        message: String,
    },
    /// The session has no room for more tokens: rewind it, or build the engine with a longer context.
    #[error(
        "context full: {length} tokens are held, {requested} more were given, the capacity is {capacity}"
    )]
    ContextFull {
        /// Tokens in the session before the call.
        length: usize,
        /// Tokens that the call would have added.
        requested: usize,
        /// Tokens that the session can hold.
        capacity: usize,
    },
    /// An argument or option outside its range.
    #[error("`{name}`: {message}")]
    InvalidArgument {
        /// The argument's name.
        name: &'static str,
        /// What was found and what was expected.
        message: String,
    },
    /// The device asked for is not there, or lacks what every GPU must have.
    #[error("no such device: {message}")]
    NoDevice {
        /// What was asked for and what there is.
        message: String,
    },
    /// The device's memory does not hold what is needed.
    #[error("out of memory on {device}: {what}{}", of_bytes(*bytes))]
    OutOfMemory {
        /// What was being allocated.
        what: String,
        /// Its size in bytes; 0 where the driver did not say what did not fit.
        bytes: u64,
        /// The device's name.
        device: String,
    },
    /// The GPU failed: it was lost, or refused a command. The engine must be built anew.
    #[error("GPU failure on {device}: {message}")]
    Gpu {
        /// The adapter's name.
        device: String,
        /// What the driver or the validation layer said.
        message: String,
    },
    /// The model computed something that cannot be right (not a number, infinite, far too
    /// large, all zero), or an answer that does not depend on what was asked. The session can be used on.
    #[error("wrong result in step `{step}`: {message}")]
    WrongResult {
        /// The step of the plan, e.g. `blk.3.attn_norm`.
        step: String,
        /// What was found, and where.
        message: String,
    },
}

fn of_bytes(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(" needs {bytes} bytes"),
    }
}
