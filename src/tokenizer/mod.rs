//! Text to token ids and back, built from the metadata of a GGUF file alone.
//!
//! ```text
//! text -> special::Splitter -> fragments: special tokens | plain text
//!                          -> bpe | sentence_piece | unigram | word_piece -> ids
//! ids  -> vocabulary (bytes of a token) -> decoder (whole characters) -> text
//! ```
//!
//! `tokenizer.ggml.model` says which algorithm a file needs: `gpt2` is byte-level BPE, `gemma4` BPE on
//! characters, `llama` SentencePiece BPE, `t5` SentencePiece unigram and `bert` WordPiece. The rules on what stands around them (BOS, the
//! space in front, which tokens end an answer) are those of llama.cpp, whose files these are.

mod bpe;
mod byte_level;
mod charsmap;
mod cut;
mod decoder;
mod pre;
mod sentence_piece;
mod special;
mod trie;
mod unigram;
mod vocabulary;
mod word_piece;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

pub use decoder::StreamDecoder;

use crate::error::{Error, Result};
use crate::gguf::Metadata;
use bpe::Bpe;
use pre::PreTokenizer;
use sentence_piece::SentencePiece;
use special::{Fragment, Splitter};
use unigram::Unigram;
use vocabulary::{PieceText, Vocabulary, invalid_key, token_id};
use word_piece::WordPiece;

/// The tokenizer of a model; clones share their tables.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> trueshot::Result<()> {
/// let gguf = trueshot::gguf::Gguf::open("model.gguf")?;
/// let tokenizer = trueshot::Tokenizer::from_metadata(gguf.metadata())?;
/// let ids = tokenizer.encode("The capital of France is", true, false)?;
/// assert_eq!(tokenizer.decode(&ids)?, "The capital of France is");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    vocabulary: Arc<Vocabulary>,
    splitter: Arc<Splitter>,
    model: Model,
    /// Goes in front of a text.
    begin: Option<u32>,
    /// Goes behind a text.
    end: Option<u32>,
}

/// How plain text becomes ids.
#[derive(Clone)]
enum Model {
    Bpe(Arc<Bpe>),
    SentencePiece(Arc<SentencePiece>),
    Unigram(Arc<Unigram>),
    WordPiece(Arc<WordPiece>),
    /// The file does not say.
    Absent,
}

impl Tokenizer {
    /// Builds the tokenizer that the file's metadata (`tokenizer.ggml.*`) describes.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a tokenizer model or pre-tokenizer that is not known,
    /// [`Error::InvalidModel`] where a key is absent or contradicts another.
    pub fn from_metadata(metadata: &Metadata) -> Result<Tokenizer> {
        match metadata.require_str("tokenizer.ggml.model")? {
            "gpt2" => Tokenizer::bpe(metadata, PreTokenizer::from_metadata(metadata)?),
            "gemma4" => Tokenizer::bpe(metadata, PreTokenizer::by_name("gemma4")?),
            "llama" => Tokenizer::sentence_piece(metadata),
            "t5" => Tokenizer::unigram(metadata),
            "bert" => Tokenizer::word_piece(metadata),
            none @ ("none" | "no_vocab") => Err(invalid_key(
                "tokenizer.ggml.model",
                format!("`{none}`: the file has no tokenizer"),
            )),
            other => Err(Error::Unsupported {
                kind: "tokenizer",
                name: other.to_owned(),
                supported: "gpt2, gemma4, llama, t5, bert".to_owned(),
            }),
        }
    }

    /// As [`Tokenizer::from_metadata`]. A file that has no tokenizer, and says so or has not one key of
    /// it, gets one that knows `n_tokens` ids and no text.
    pub(crate) fn of_model(metadata: &Metadata, n_tokens: usize) -> Result<Tokenizer> {
        let is_absent = match metadata.str("tokenizer.ggml.model")? {
            Some(model) => ["none", "no_vocab"].contains(&model),
            None => metadata.get("tokenizer.ggml.tokens").is_none(),
        };
        if !is_absent {
            return Tokenizer::from_metadata(metadata);
        }
        let vocabulary = Vocabulary::without_text(metadata, n_tokens)?;
        Tokenizer::new(metadata, vocabulary, Model::Absent, [false, false])
    }

    /// Whether the file has no tokenizer: its model takes ids, and text is an error.
    pub fn is_absent(&self) -> bool {
        matches!(self.model, Model::Absent)
    }

    fn bpe(metadata: &Metadata, pre: &PreTokenizer) -> Result<Tokenizer> {
        let piece_text = if pre.is_plain {
            PieceText::SpaceMark {
                add_space_prefix: false,
            }
        } else {
            PieceText::ByteLevel
        };
        let vocabulary = Vocabulary::from_metadata(metadata, piece_text, [None; 3])?;
        let merges = metadata.require_strings("tokenizer.ggml.merges")?;
        let model = Model::Bpe(Arc::new(Bpe::new(&vocabulary, merges, pre)?));
        Tokenizer::new(metadata, vocabulary, model, [pre.add_bos, false])
    }

    fn sentence_piece(metadata: &Metadata) -> Result<Tokenizer> {
        let add_space_prefix = metadata
            .bool("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true);
        let piece_text = PieceText::SpaceMark { add_space_prefix };
        let by_default = [Some(0), Some(1), Some(2)];
        let vocabulary = Vocabulary::from_metadata(metadata, piece_text, by_default)?;
        let scores = metadata.require_f32s("tokenizer.ggml.scores")?;
        let model = Model::SentencePiece(Arc::new(SentencePiece::new(&vocabulary, scores)?));
        Tokenizer::new(metadata, vocabulary, model, [true, false])
    }

    fn unigram(metadata: &Metadata) -> Result<Tokenizer> {
        let by_default = [Some(2), None, Some(1)];
        let vocabulary = Vocabulary::from_metadata(metadata, PieceText::Words, by_default)?;
        let unknown = vocabulary.require_unknown()?;
        let model = Model::Unigram(Arc::new(Unigram::new(metadata, &vocabulary, unknown)?));
        Tokenizer::new(metadata, vocabulary, model, [false, true])
    }

    fn word_piece(metadata: &Metadata) -> Result<Tokenizer> {
        const SEPARATOR: &str = "tokenizer.ggml.seperator_token_id";
        let by_default = [Some(100), Some(101), None];
        let vocabulary = Vocabulary::from_metadata(metadata, PieceText::Words, by_default)?;
        let unknown = vocabulary.require_unknown()?;
        let separator = token_id(metadata, SEPARATOR, Some(102), vocabulary.len())?;
        let model = Model::WordPiece(Arc::new(WordPiece::new(metadata, &vocabulary, unknown)?));
        let mut tokenizer = Tokenizer::new(metadata, vocabulary, model, [true, false])?;
        tokenizer.end = separator;
        Ok(tokenizer)
    }

    /// `adds_by_default` is whether BOS and EOS are added where the file does not say.
    fn new(
        metadata: &Metadata,
        vocabulary: Vocabulary,
        model: Model,
        adds_by_default: [bool; 2],
    ) -> Result<Tokenizer> {
        let added = |name: &str, id: Option<u32>, by_default: bool| {
            let key = format!("tokenizer.ggml.add_{name}_token");
            if !metadata.bool(&key)?.unwrap_or(by_default) {
                return Ok(None);
            }
            let absent = || absent_but_added(&format!("tokenizer.ggml.{name}_token_id"));
            id.map(Some).ok_or_else(absent)
        };
        let begin = added("bos", vocabulary.bos, adds_by_default[0])?;
        let end = added("eos", vocabulary.eos, adds_by_default[1])?;
        let splitter = Splitter::new(&vocabulary, metadata.str("general.name")?.unwrap_or(""))?;
        Ok(Tokenizer {
            vocabulary: Arc::new(vocabulary),
            splitter: Arc::new(splitter),
            model,
            begin,
            end,
        })
    }

    /// The ids of a text.
    ///
    /// `add_special` puts BOS in front and EOS behind where the file asks for them. `parse_special`
    /// turns the spelling of a special token (`<|im_end|>`) into its id; without it such text is
    /// plain text, which is what text from a user should be. A byte that a byte-level vocabulary
    /// has no token for is left out with a warning in the log, as the model's own tokenizer does.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] for a character that the vocabulary cannot express at all, and for any text where
    /// the file has no tokenizer.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        if add_special {
            ids.extend(self.begin);
        }
        self.encode_behind(text, parse_special, &mut ids)?;
        if add_special {
            ids.extend(self.end);
        }
        Ok(ids)
    }

    /// The ids of a prompt that goes on where `previous` ends: with BOS where it is the first and the
    /// file asks for it, never with EOS, since an answer follows.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(
        &self,
        text: &str,
        previous: &[u32],
        parse_special: bool,
    ) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        match previous.last() {
            None => ids.extend(self.begin),
            // What stands in front decides whether a word starts the text.
            Some(&last) => ids.push(last),
        }
        self.encode_behind(text, parse_special, &mut ids)?;
        if !previous.is_empty() {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The ids of a prompt in which control tokens count, but for those behind `mark`; the marks are
    /// not part of it.
    pub(crate) fn encode_marked(&self, text: &str, mark: char) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        ids.extend(self.begin);
        self.encode_fragments(text, true, Some(mark), &mut ids)?;
        Ok(ids)
    }

    /// Whether a text spells out a control token.
    pub(crate) fn spells_control(&self, text: &str) -> bool {
        self.splitter.find(text).any(|(_, id)| self.is_special(id))
    }

    /// A text with `mark` in front of each control token that it spells out.
    pub(crate) fn mark_control(&self, text: &str, mark: char) -> String {
        let mut marked = String::with_capacity(text.len());
        let mut copied = 0;
        for (start, _) in self
            .splitter
            .find(text)
            .filter(|&(_, id)| self.is_special(id))
        {
            marked.push_str(&text[copied..start]);
            marked.push(mark);
            copied = start;
        }
        marked.push_str(&text[copied..]);
        marked
    }

    /// Appends the ids of a text; it goes on behind `ids` unless those end in a special token.
    fn encode_behind(&self, text: &str, parse_special: bool, ids: &mut Vec<u32>) -> Result<()> {
        self.encode_fragments(text, parse_special, None, ids)
    }

    fn encode_fragments(
        &self,
        text: &str,
        parse_special: bool,
        mark: Option<char>,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        if self.is_absent() {
            return Err(no_tokenizer());
        }
        ids.reserve(text.len() / 3 + 2);
        let mut starts_text = ids.last().is_none_or(|&id| self.is_special(id));
        for fragment in self.splitter.split_unmarked(text, parse_special, mark) {
            match (fragment, mark) {
                (Fragment::Text(text), Some(mark)) if text.contains(mark) => {
                    for fragment in self.splitter.split(&text.replace(mark, ""), false) {
                        self.encode_fragment(fragment, &mut starts_text, ids)?;
                    }
                }
                _ => self.encode_fragment(fragment, &mut starts_text, ids)?,
            }
        }
        Ok(())
    }

    fn encode_fragment(
        &self,
        fragment: Fragment<'_>,
        starts_text: &mut bool,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        match fragment {
            Fragment::Special(id) => ids.push(id),
            Fragment::Text(text) => match &self.model {
                Model::Bpe(bpe) => bpe.encode(text, ids)?,
                Model::SentencePiece(pieces) => pieces.encode(
                    text,
                    *starts_text && self.vocabulary.add_space_prefix(),
                    ids,
                )?,
                Model::Unigram(pieces) => pieces.encode(text, ids),
                Model::WordPiece(pieces) => pieces.encode(text, ids)?,
                Model::Absent => return Err(no_tokenizer()),
            },
        }
        *starts_text = matches!(fragment, Fragment::Special(_));
        Ok(())
    }

    /// The text of a sequence of ids, from its beginning.
    ///
    /// Control tokens are left out. What `t5` and `bert` encode is normalised text, and this gives
    /// that back, for `bert` with a space between all words. Bytes that are not UTF-8 become U+FFFD, one for each invalid
    /// sequence, as in [`String::from_utf8_lossy`].
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] for an id beyond the vocabulary, and where the file has no tokenizer.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if self.is_absent() {
            return Err(no_tokenizer());
        }
        let mut decoder = self.decoder();
        let mut text = String::new();
        for &id in ids {
            text.push_str(&decoder.push(id)?);
        }
        text.push_str(&decoder.finish());
        Ok(text)
    }

    /// A decoder for tokens that arrive one by one, from the beginning of a text.
    pub fn decoder(&self) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(&self.vocabulary))
    }

    /// A decoder for the tokens that follow `previous`, the prompt of a generation for example: a
    /// space in front of the first new word is kept where it stands inside a text.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] for an id beyond the vocabulary.
    pub fn decoder_after(&self, previous: &[u32]) -> Result<StreamDecoder> {
        let mut decoder = self.decoder();
        for &id in previous {
            decoder.push(id)?;
        }
        Ok(decoder)
    }

    /// The bytes that a token stands for; for a control token its spelling, for a part of a
    /// character not valid UTF-8.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] for an id beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Result<Cow<'_, [u8]>> {
        self.vocabulary.bytes(id)
    }

    /// The token as the file spells it, `Ġthe` or `▁the` for " the"; `None` beyond the vocabulary.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.vocabulary.token(id)
    }

    /// The number of tokens; every id is below it.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.vocabulary.bos
    }

    /// The token that ends a text; [`Tokenizer::is_end_of_generation`] knows more of them.
    pub fn eos(&self) -> Option<u32> {
        self.vocabulary.eos
    }

    /// Whether an answer ends with this token: EOS, end of turn, end of message and their like.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.vocabulary.end_of_generation.binary_search(&id).is_ok()
    }

    /// Every token that ends an answer, in ascending order.
    pub fn end_of_generation_ids(&self) -> &[u32] {
        &self.vocabulary.end_of_generation
    }

    /// Whether the token is a control token (or the unknown token), which stands for no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

fn no_tokenizer() -> Error {
    Error::Tokenizer {
        message: "the file has none (key `tokenizer.ggml.model`): its model takes token ids"
            .to_owned(),
    }
}

fn absent_but_added(key: &str) -> Error {
    invalid_key(key, "absent, but the token is to be added to every text")
}
