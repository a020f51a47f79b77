//! Finds special tokens in a text before anything else looks at it.

use aho_corasick::{AhoCorasick, MatchKind};

use super::vocabulary::Vocabulary;
use crate::error::{Error, Result};

/// A part of a text to encode.
#[derive(Clone, Copy)]
pub(super) enum Fragment<'t> {
    /// The spelling of a special or user-defined token stood here.
    Special(u32),
    /// Plain text, never empty.
    Text(&'t str),
}

/// Cuts a text at the spellings of special tokens.
///
/// Of the tokens that match, the leftmost wins, and of those the longest, as in SentencePiece and
/// the `tokenizers` crate. User-defined tokens are found always, control tokens only on demand.
pub(super) struct Splitter {
    all: Option<Matcher>,
    user_defined: Option<Matcher>,
}

struct Matcher {
    automaton: AhoCorasick,
    tokens: Vec<SpecialToken>,
}

struct SpecialToken {
    id: u32,
    /// Whitespace behind the token belongs to it.
    strips_right: bool,
}

impl Splitter {
    pub fn new(vocabulary: &Vocabulary, model_name: &str) -> Result<Splitter> {
        let strips_right = strips_whitespace(model_name);
        let matcher = |wanted: &dyn Fn(u32) -> bool| {
            let (tokens, spellings): (Vec<_>, Vec<_>) = vocabulary
                .tokens()
                .filter(|&(id, token)| wanted(id) && !token.is_empty())
                .map(|(id, token)| {
                    let strips_right =
                        strips_right && !matches!(token, "<unk>" | "<s>" | "<|endoftext|>");
                    (SpecialToken { id, strips_right }, token)
                })
                .unzip();
            Matcher::new(tokens, &spellings)
        };
        Ok(Splitter {
            all: matcher(&|id| vocabulary.is_special(id) || vocabulary.is_user_defined(id))?,
            user_defined: matcher(&|id| vocabulary.is_user_defined(id))?,
        })
    }

    /// The fragments of a text in order; with `parse_special` control tokens count too.
    pub fn split<'t>(&self, text: &'t str, parse_special: bool) -> Vec<Fragment<'t>> {
        self.split_unmarked(text, parse_special, None)
    }

    /// As [`Splitter::split`]; what stands behind `mark` is no token.
    pub fn split_unmarked<'t>(
        &self,
        text: &'t str,
        parse_special: bool,
        mark: Option<char>,
    ) -> Vec<Fragment<'t>> {
        let matcher = if parse_special {
            &self.all
        } else {
            &self.user_defined
        };
        let mut fragments = Vec::new();
        let mut start = 0;
        for (found, token) in matcher.iter().flat_map(|matcher| matcher.find(text)) {
            // Whitespace that the token before has taken may itself be a token.
            if found.start < start {
                continue;
            }
            if mark.is_some_and(|mark| text[..found.start].ends_with(mark)) {
                continue;
            }
            if start < found.start {
                fragments.push(Fragment::Text(&text[start..found.start]));
            }
            fragments.push(Fragment::Special(token.id));
            start = found.end;
            if token.strips_right {
                start = text.len() - text[start..].trim_ascii_start().len();
            }
        }
        if start < text.len() {
            fragments.push(Fragment::Text(&text[start..]));
        }
        fragments
    }

    /// Where a text spells out special and user-defined tokens, and which.
    pub fn find(&self, text: &str) -> impl Iterator<Item = (usize, u32)> {
        let matcher = self.all.iter();
        matcher
            .flat_map(move |matcher| matcher.find(text))
            .map(|(found, token)| (found.start, token.id))
    }
}

impl Matcher {
    fn new(tokens: Vec<SpecialToken>, spellings: &[&str]) -> Result<Option<Matcher>> {
        if tokens.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(spellings)
            .map_err(|error| Error::Tokenizer {
                message: format!("special tokens: {error}"),
            })?;
        Ok(Some(Matcher { automaton, tokens }))
    }

    fn find(&self, text: &str) -> impl Iterator<Item = (std::ops::Range<usize>, &SpecialToken)> {
        self.automaton
            .find_iter(text)
            .map(|found| (found.range(), &self.tokens[found.pattern().as_usize()]))
    }
}

/// Phi-3 wants the whitespace behind its special tokens gone. GGUF has no key for that: the model's
/// name decides, as in llama.cpp `src/llama-vocab.cpp` ("set attributes by model name").
fn strips_whitespace(model_name: &str) -> bool {
    let name = model_name.to_lowercase();
    name.contains("phi-3") || name.contains("phi3")
}
