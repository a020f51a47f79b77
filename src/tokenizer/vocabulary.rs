//! The tokens of a file: spelling, kind, bytes, and which of them have a meaning of their own.

use std::borrow::Cow;
use std::fmt::Display;

use super::byte_level;
use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// What SentencePiece writes for a space, U+2581.
pub(super) const SPACE_MARK: &str = "\u{2581}";

/// The longest token, in bytes: what is looked for at each place of a text. Those of real vocabularies have 256 at most.
const MAX_TOKEN_BYTES: usize = 4096;

/// How a normal token spells its text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum PieceText {
    /// A character for each byte.
    ByteLevel,
    /// As it is, with [`SPACE_MARK`] for a space.
    SpaceMark {
        /// The encoder puts a space in front of a text.
        add_space_prefix: bool,
    },
    /// As it is, with [`SPACE_MARK`] in front of each word, the first one too.
    Words,
}

/// The values of `tokenizer.ggml.token_type`; source: `llama_token_type` in llama.cpp
/// `include/llama.h`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Tokens that end an answer by their spelling alone; source: `special_eog_ids` and the
/// `special_fim_*` tokens that join it in llama.cpp `src/llama-vocab.cpp`.
const END_OF_GENERATION: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// The table of tokens.
pub(super) struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<Kind>,
    piece_text: PieceText,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    /// In ascending order.
    pub end_of_generation: Vec<u32>,
}

impl Vocabulary {
    /// `by_default` are the ids of the unknown token, BOS and EOS where the file does not say them.
    pub fn from_metadata(
        metadata: &Metadata,
        piece_text: PieceText,
        by_default: [Option<u32>; 3],
    ) -> Result<Vocabulary> {
        let tokens = metadata.require_strings("tokenizer.ggml.tokens")?.to_vec();
        Vocabulary::of_tokens(metadata, tokens, piece_text, by_default)
    }

    /// `n_tokens` tokens that stand for no text, since the file does not say which.
    pub fn without_text(metadata: &Metadata, n_tokens: usize) -> Result<Vocabulary> {
        let tokens = vec![String::new(); n_tokens];
        Vocabulary::of_tokens(metadata, tokens, PieceText::ByteLevel, [None; 3])
    }

    fn of_tokens(
        metadata: &Metadata,
        tokens: Vec<String>,
        piece_text: PieceText,
        by_default: [Option<u32>; 3],
    ) -> Result<Vocabulary> {
        if u32::try_from(tokens.len()).is_err() {
            return Err(invalid_key(
                "tokenizer.ggml.tokens",
                "more entries than there are ids",
            ));
        }
        if let Some(id) = tokens.iter().position(|t| t.len() > MAX_TOKEN_BYTES) {
            let n_bytes = tokens[id].len();
            let found =
                format!("entry {id} has {n_bytes} bytes, expected at most {MAX_TOKEN_BYTES}");
            return Err(invalid_key("tokenizer.ggml.tokens", found));
        }
        let kinds = match metadata.i32s("tokenizer.ggml.token_type")? {
            Some(types) => parse_kinds(&types, tokens.len())?,
            None => vec![Kind::Normal; tokens.len()],
        };
        let id_of = |key: &str, default| token_id(metadata, key, default, tokens.len());
        let [unknown, bos, eos] = by_default;
        let unknown = id_of("tokenizer.ggml.unknown_token_id", unknown)?;
        let bos = id_of("tokenizer.ggml.bos_token_id", bos)?;
        let eos = id_of("tokenizer.ggml.eos_token_id", eos)?;
        let end_of_turn = id_of("tokenizer.ggml.eot_token_id", None)?;
        let end_of_message = id_of("tokenizer.ggml.eom_token_id", None)?;

        let mut vocabulary = Vocabulary {
            tokens,
            kinds,
            piece_text,
            bos,
            eos,
            unknown,
            end_of_generation: vec![],
        };
        for id in 0..vocabulary.len() as u32 {
            if vocabulary.kind(id) == Kind::Byte {
                vocabulary.byte(id)?;
            }
        }
        vocabulary.find_end_of_generation([eos, end_of_turn, end_of_message]);
        Ok(vocabulary)
    }

    /// Collects the tokens that end an answer. Those known by their spelling become control tokens
    /// whatever the file says, so that a mistake in its types does not let an answer run on.
    fn find_end_of_generation(&mut self, by_key: [Option<u32>; 3]) {
        let named: Vec<(u32, &str)> = self
            .tokens()
            .filter(|(_, token)| END_OF_GENERATION.contains(token))
            .collect();
        let has = |name: &str| named.iter().any(|&(_, token)| token == name);
        // gpt-oss and solar-open end each part of an answer with `<|end|>`, as llama.cpp knows too.
        let ends_a_part = (has("<|return|>") && has("<|call|>"))
            || ((has("<|call|>") || has("<|calls|>")) && has("<|flush|>"));
        let by_name: Vec<u32> = named
            .into_iter()
            .filter(|&(id, token)| match token {
                "<|end|>" => !ends_a_part,
                // Also a tag of HTML, and as such a common piece of text.
                "</s>" => self.kind(id) == Kind::Control,
                _ => true,
            })
            .map(|(id, _)| id)
            .collect();
        for &id in &by_name {
            self.kinds[id as usize] = Kind::Control;
        }
        self.end_of_generation = by_key.into_iter().flatten().chain(by_name).collect();
        self.end_of_generation.sort_unstable();
        self.end_of_generation.dedup();
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Every token with its id, in the order of the ids.
    pub fn tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..).zip(self.tokens.iter().map(String::as_str))
    }

    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// The kind of a token of this vocabulary.
    pub fn kind(&self, id: u32) -> Kind {
        self.kinds[id as usize]
    }

    pub fn is_special(&self, id: u32) -> bool {
        matches!(
            self.kinds.get(id as usize),
            Some(Kind::Control | Kind::Unknown)
        )
    }

    pub fn is_user_defined(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&Kind::UserDefined)
    }

    pub fn add_space_prefix(&self) -> bool {
        match self.piece_text {
            PieceText::ByteLevel => false,
            PieceText::SpaceMark { add_space_prefix } => add_space_prefix,
            PieceText::Words => true,
        }
    }

    /// The token stands for text that the vocabulary lacks, in the midst of other text.
    pub fn is_gap(&self, id: u32) -> bool {
        self.piece_text == PieceText::Words && self.kinds.get(id as usize) == Some(&Kind::Unknown)
    }

    pub fn require_unknown(&self) -> Result<u32> {
        self.unknown
            .ok_or_else(|| invalid_key("tokenizer.ggml.unknown_token_id", "absent, but needed"))
    }

    /// The byte that a token of the kind [`Kind::Byte`] stands for.
    pub fn byte(&self, id: u32) -> Result<u8> {
        let token = &self.tokens[id as usize];
        token
            .strip_prefix("<0x")
            .and_then(|rest| rest.strip_suffix('>'))
            .filter(|digits| digits.len() == 2 && digits.bytes().all(|c| c.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or_else(|| {
                let found = format!("byte token {id} is `{token}`, expected `<0x00>` to `<0xFF>`");
                invalid_key("tokenizer.ggml.tokens", found)
            })
    }

    /// The bytes that a token stands for.
    pub fn bytes(&self, id: u32) -> Result<Cow<'_, [u8]>> {
        let Some(token) = self.token(id) else {
            let message = format!("token id {id}, expected below {}", self.len());
            return Err(Error::Tokenizer { message });
        };
        Ok(match (self.kind(id), self.piece_text) {
            (Kind::Byte, _) => Cow::Owned(vec![self.byte(id)?]),
            (Kind::Control | Kind::Unknown | Kind::UserDefined, _) => token.as_bytes().into(),
            (Kind::Normal | Kind::Unused, PieceText::ByteLevel) => {
                byte_level::bytes_of(token).map_or(token.as_bytes().into(), Cow::Owned)
            }
            (Kind::Normal | Kind::Unused, PieceText::SpaceMark { .. } | PieceText::Words) => {
                if token.contains(SPACE_MARK) {
                    token.replace(SPACE_MARK, " ").into_bytes().into()
                } else {
                    token.as_bytes().into()
                }
            }
        })
    }
}

/// The token that a key names; `default` where the key is absent and there is such a token.
pub(super) fn token_id(
    metadata: &Metadata,
    key: &str,
    default: Option<u32>,
    n_tokens: usize,
) -> Result<Option<u32>> {
    match metadata.u32(key)? {
        Some(id) if (id as usize) < n_tokens => Ok(Some(id)),
        Some(id) => Err(invalid_key(key, format!("{id}, expected below {n_tokens}"))),
        None => Ok(default.filter(|&id| (id as usize) < n_tokens)),
    }
}

fn parse_kinds(types: &[i32], n_tokens: usize) -> Result<Vec<Kind>> {
    const KEY: &str = "tokenizer.ggml.token_type";
    if types.len() != n_tokens {
        return Err(invalid_key(
            KEY,
            format!("{} entries, expected {n_tokens}", types.len()),
        ));
    }
    let parse = |(id, &number): (usize, &i32)| match number {
        // 0 is "undefined".
        0 | 1 => Ok(Kind::Normal),
        2 => Ok(Kind::Unknown),
        3 => Ok(Kind::Control),
        4 => Ok(Kind::UserDefined),
        5 => Ok(Kind::Unused),
        6 => Ok(Kind::Byte),
        _ => Err(invalid_key(
            KEY,
            format!("entry {id} is {number}, expected 0 to 6"),
        )),
    };
    types.iter().enumerate().map(parse).collect()
}

/// The error of a metadata key that holds what it must not.
pub(super) fn invalid_key(key: &str, found: impl Display) -> Error {
    Error::InvalidModel {
        message: format!("key `{key}`: {found}"),
    }
}
