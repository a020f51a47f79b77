//! SentencePiece unigram: of all ways to spell a normalised text, the one of the best total score.
//!
//! Source: T. Kudo, "Subword regularization", 2018. Ties, the score of unknown characters and the
//! normaliser are those of llama.cpp `src/llama-vocab.cpp` (`llm_tokenizer_ugm`).

use super::charsmap::CharsMap;
use super::trie::Trie;
use super::vocabulary::{Kind, SPACE_MARK, Vocabulary, invalid_key};
use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// How much worse than the worst piece an unknown character is.
const UNKNOWN_PENALTY: f64 = 10.0;

/// The scored pieces of a `t5` vocabulary with their normaliser.
pub(super) struct Unigram {
    /// Its numbers are the indices of `pieces`.
    trie: Trie,
    pieces: Vec<Piece>,
    unknown: u32,
    unknown_score: f64,
    chars_map: Option<CharsMap>,
    add_space_prefix: bool,
    merges_spaces: bool,
}

struct Piece {
    id: u32,
    score: f64,
}

/// The best way to spell a text up to some byte.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    id: u32,
    start: usize,
}

impl Unigram {
    pub fn new(metadata: &Metadata, vocabulary: &Vocabulary, unknown: u32) -> Result<Unigram> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let scores = metadata.require_f32s(SCORES)?;
        if scores.len() != vocabulary.len() {
            let found = format!("{} entries, expected {}", scores.len(), vocabulary.len());
            return Err(invalid_key(SCORES, found));
        }
        let (mut pieces, mut spellings) = (Vec::new(), Vec::new());
        let mut worst = f64::INFINITY;
        for ((id, token), score) in vocabulary.tokens().zip(scores) {
            if !score.is_finite() {
                return Err(invalid_key(SCORES, format!("entry {id} is {score}")));
            }
            let score = match vocabulary.kind(id) {
                Kind::Normal => {
                    worst = worst.min(f64::from(score));
                    f64::from(score)
                }
                Kind::UserDefined => 0.0,
                Kind::Unused => f64::from(score),
                Kind::Control | Kind::Unknown | Kind::Byte => continue,
            };
            if !token.is_empty() {
                pieces.push(Piece { id, score });
                spellings.push(token);
            }
        }
        let option = |key: &str| Ok::<_, Error>(metadata.bool(key)?.unwrap_or(false));
        Ok(Unigram {
            trie: Trie::new(&spellings),
            pieces,
            unknown,
            unknown_score: if worst.is_finite() { worst } else { 0.0 } - UNKNOWN_PENALTY,
            chars_map: CharsMap::from_metadata(metadata)?,
            add_space_prefix: metadata
                .bool("tokenizer.ggml.add_space_prefix")?
                .unwrap_or(true),
            merges_spaces: option("tokenizer.ggml.remove_extra_whitespaces")?,
        })
    }

    /// Appends the ids of `text`.
    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let text = self.normalize(text);
        let none = Best {
            score: f64::NEG_INFINITY,
            id: self.unknown,
            start: 0,
        };
        let mut best = vec![none; text.len() + 1];
        best[0].score = 0.0;
        // Whatever ends at a character has been seen when the walk comes to it.
        for (start, c) in text.char_indices() {
            let so_far = best[start].score;
            let mut improve = |end: usize, id: u32, score: f64| {
                let score = so_far + score;
                if score > best[end].score {
                    best[end] = Best { score, id, start };
                }
            };
            let mut is_piece = false;
            for (length, index) in self.trie.prefixes(&text[start..]) {
                let piece = &self.pieces[index as usize];
                is_piece |= length == c.len_utf8();
                improve(start + length, piece.id, piece.score);
            }
            if !is_piece {
                improve(start + c.len_utf8(), self.unknown, self.unknown_score);
            }
        }
        let (n_before, mut end) = (ids.len(), text.len());
        while end > 0 {
            let Best { id, start, .. } = best[end];
            // Unknown characters beside each other are one token.
            if id != self.unknown || ids.len() == n_before || ids.last() != Some(&id) {
                ids.push(id);
            }
            end = start;
        }
        ids[n_before..].reverse();
    }

    /// The text as the model's own normaliser leaves it, with marks for spaces. User-defined tokens, which it passes
    /// over, have been cut out already.
    fn normalize(&self, text: &str) -> String {
        let mut normalized = String::with_capacity(text.len() + text.len() / 4);
        let (mut in_word, mut has_space_in_front) = (false, false);
        let mut push = |part: &str| {
            for c in part.chars() {
                if c == ' ' {
                    in_word = false;
                    if !self.merges_spaces {
                        normalized.push_str(SPACE_MARK);
                    }
                    continue;
                }
                if !in_word {
                    in_word = true;
                    if self.merges_spaces || (self.add_space_prefix && !has_space_in_front) {
                        normalized.push_str(SPACE_MARK);
                        has_space_in_front = true;
                    }
                }
                normalized.push(c);
            }
        };
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let chars_map = self.chars_map.as_ref();
            let (n_taken, part) = chars_map
                .and_then(|map| map.replacement(rest))
                .unwrap_or((c.len_utf8(), &rest[..c.len_utf8()]));
            push(part);
            rest = &rest[n_taken..];
        }
        normalized
    }
}
