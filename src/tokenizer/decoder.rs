//! Tokens one by one to text, whole characters only.

use std::fmt;
use std::sync::Arc;

use super::vocabulary::Vocabulary;
use crate::error::Result;

/// Turns tokens into text as they arrive and never emits half a character.
///
/// Made by [`Tokenizer::decoder`](super::Tokenizer::decoder).
#[derive(Clone)]
pub struct StreamDecoder {
    vocabulary: Arc<Vocabulary>,
    /// The beginning of a character whose other bytes are still to come.
    pending: Vec<u8>,
    /// The next text begins a fragment: its first space was put there by the encoder.
    starts_text: bool,
}

impl StreamDecoder {
    pub(super) fn new(vocabulary: Arc<Vocabulary>) -> StreamDecoder {
        StreamDecoder {
            vocabulary,
            pending: Vec::new(),
            starts_text: true,
        }
    }

    /// Takes the next token and returns the text that is complete with it, which may be empty.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) for an id beyond the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let bytes = self.vocabulary.bytes(id)?;
        if self.vocabulary.is_special(id) {
            self.starts_text |= !self.vocabulary.is_gap(id);
            return Ok(String::new());
        }
        let strips_space = self.starts_text && self.vocabulary.add_space_prefix();
        let is_user_defined = self.vocabulary.is_user_defined(id);
        self.starts_text = is_user_defined;
        let text = match bytes.strip_prefix(b" ") {
            Some(rest) if strips_space && !is_user_defined => rest,
            _ => &bytes,
        };
        self.pending.extend_from_slice(text);
        Ok(self.take_complete())
    }

    /// Ends the text: what is left of an unfinished character comes out as U+FFFD.
    pub fn finish(&mut self) -> String {
        self.starts_text = true;
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::with_capacity(self.pending.len());
        let mut n_taken = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            n_taken += chunk.valid().len();
            let invalid = chunk.invalid();
            let is_last = n_taken + invalid.len() == self.pending.len();
            if invalid.is_empty() || (is_last && is_unfinished(invalid)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            n_taken += invalid.len();
        }
        self.pending.drain(..n_taken);
        text
    }
}

impl fmt::Debug for StreamDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamDecoder")
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

/// Whether more bytes could make these a character.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
