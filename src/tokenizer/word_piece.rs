//! WordPiece of BERT: normalised words, each the longest pieces that spell it.
//!
//! Source: `BasicTokenizer` and `WordpieceTokenizer` in google-research/bert `tokenization.py`. GGUF
//! files spell a piece that begins a word with U+2581 in front and one inside a word as it is.

use std::borrow::Cow;

use fancy_regex::Regex;
use tokenizers::NormalizedString;

use super::trie::Trie;
use super::vocabulary::{Kind, SPACE_MARK, Vocabulary};
use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// A word: one character of punctuation or of Chinese, or a run of other characters. The range that
/// begins at U+2B920 is that of the `tokenizers` crate, not U+2B820.
const ALONE: &str = r"\p{P}$+<=>^`|~\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{20000}-\u{2A6DF}\u{2A700}-\u{2B73F}\u{2B740}-\u{2B81F}\u{2B920}-\u{2CEAF}\u{F900}-\u{FAFF}\u{2F800}-\u{2FA1F}";

/// What is no text: control, format and private characters, and U+FFFD.
const DROPPED: &str = r"[[\p{Cc}\p{Cf}\p{Co}\u{FFFD}]--[\t\n\r]]+";

const ACCENTS: &str = r"\p{Mn}+";

/// The pieces of a `bert` vocabulary.
pub(super) struct WordPiece {
    /// Its numbers are the indices of `pieces`.
    trie: Trie,
    /// Their ids.
    pieces: Vec<u32>,
    unknown: u32,
    words: Regex,
    dropped: Regex,
    accents: Option<Regex>,
    lowercase: bool,
}

impl WordPiece {
    pub fn new(metadata: &Metadata, vocabulary: &Vocabulary, unknown: u32) -> Result<WordPiece> {
        let option = |name: &str, default: bool| {
            let key = format!("tokenizer.ggml.normalizer.{name}");
            Ok::<_, Error>(metadata.bool(&key)?.unwrap_or(default))
        };
        let lowercase = option("lowercase", true)?;
        let strips_accents = option("strip_accents", lowercase)?;
        let (pieces, spellings): (Vec<u32>, Vec<&str>) = vocabulary
            .tokens()
            .filter(|&(id, _)| !matches!(vocabulary.kind(id), Kind::Control | Kind::Unknown))
            .unzip();
        Ok(WordPiece {
            trie: Trie::new(&spellings),
            pieces,
            unknown,
            words: compile(&format!(r"[{ALONE}]|[^\s{ALONE}]+"))?,
            dropped: compile(DROPPED)?,
            accents: strips_accents.then(|| compile(ACCENTS)).transpose()?,
            lowercase,
        })
    }

    /// Appends the ids of `text`.
    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let text = self.normalize(text);
        let mut marked = String::new();
        for word in self.words.find_iter(&text) {
            marked.clear();
            marked.extend([SPACE_MARK, word.map_err(regex_error)?.as_str()]);
            self.append(&marked, ids);
        }
        Ok(())
    }

    /// The text without controls and accents and in lower case, as far as the file asks for that.
    fn normalize(&self, text: &str) -> String {
        let mut normalized = String::with_capacity(text.len());
        let text = self.dropped.replace_all(text, "");
        // No combination reaches across a space.
        for part in text.split_inclusive(' ') {
            let part = match &self.accents {
                Some(accents) if !part.is_ascii() => {
                    let mut decomposed = NormalizedString::from(part);
                    decomposed.nfd();
                    Cow::Owned(accents.replace_all(decomposed.get(), "").into_owned())
                }
                _ => Cow::Borrowed(part),
            };
            if self.lowercase {
                normalized.extend(part.chars().flat_map(char::to_lowercase));
            } else {
                normalized.push_str(&part);
            }
        }
        normalized
    }

    /// Words may have any length, as in llama.cpp: `tokenization.py` takes those above 200 characters for unknown, the
    /// `tokenizers` crate those above 100, and models were trained with one or the other.
    fn append(&self, word: &str, ids: &mut Vec<u32>) {
        let n_before = ids.len();
        let mut rest = word;
        while !rest.is_empty() {
            let Some((end, index)) = self.trie.prefixes(rest).last() else {
                ids.truncate(n_before);
                ids.push(self.unknown);
                return;
            };
            ids.push(self.pieces[index as usize]);
            rest = &rest[end..];
        }
    }
}

fn compile(regex: &str) -> Result<Regex> {
    Regex::new(regex).map_err(regex_error)
}

fn regex_error(error: fancy_regex::Error) -> Error {
    Error::Tokenizer {
        message: format!("words of the text: {error}"),
    }
}
