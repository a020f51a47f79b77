//! SentencePiece BPE: neighbouring pieces merge into the piece with the best score.
//!
//! Not on the `tokenizers` crate: its BPE orders merges by the rank of the pair, SentencePiece by
//! the score of the result and from the left on a tie, and with many pairs making one piece no list
//! of ranked pairs says the same. It would also need every such pair spelled out at load, and
//! 262 144 pieces have several each.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::vocabulary::{Kind, SPACE_MARK, Vocabulary, invalid_key};
use crate::error::{Error, Result};

/// Words of more bytes are not remembered while a text is encoded.
const MAX_REMEMBERED_BYTES: usize = 64;

/// The scored pieces of a `llama` vocabulary.
pub(super) struct SentencePiece {
    pieces: HashMap<Box<str>, Piece>,
    /// The tokens `<0x00>` to `<0xFF>`.
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
    /// Characters that stand in front of a space inside some piece: elsewhere a space begins a new
    /// word, and words can be merged one by one.
    joins_space: HashSet<char>,
}

#[derive(Clone, Copy)]
struct Piece {
    id: u32,
    score: f32,
}

/// A run of characters that are one piece so far; a doubly linked list in text order.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// Equal to `start` once the symbol went into the one on its left.
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
    /// `None` for a character that is no piece.
    id: Option<u32>,
}

/// Two neighbouring symbols that make a piece.
struct Bigram {
    piece: Piece,
    left: usize,
    right: usize,
    /// Where the right one ends, unless it has grown since.
    end: usize,
}

/// The best score first, the leftmost on a tie.
impl Ord for Bigram {
    fn cmp(&self, other: &Bigram) -> Ordering {
        let by_score = self.piece.score.total_cmp(&other.piece.score);
        by_score.then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Bigram {
    fn partial_cmp(&self, other: &Bigram) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Bigram {
    fn eq(&self, other: &Bigram) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Bigram {}

impl SentencePiece {
    pub fn new(vocabulary: &Vocabulary, scores: Vec<f32>) -> Result<SentencePiece> {
        if scores.len() != vocabulary.len() {
            return Err(invalid_key(
                "tokenizer.ggml.scores",
                format!("{} entries, expected {}", scores.len(), vocabulary.len()),
            ));
        }
        let mut pieces = HashMap::with_capacity(vocabulary.len());
        let mut bytes = [None; 256];
        let mut joins_space = HashSet::new();
        for ((id, token), score) in vocabulary.tokens().zip(scores) {
            if score.is_nan() {
                return Err(invalid_key(
                    "tokenizer.ggml.scores",
                    format!("entry {id} is NaN"),
                ));
            }
            match vocabulary.kind(id) {
                Kind::Byte => bytes[usize::from(vocabulary.byte(id)?)] = Some(id),
                // Their spellings in plain text are plain text.
                Kind::Control | Kind::Unknown => {}
                Kind::Normal | Kind::UserDefined | Kind::Unused => {
                    joins_space.extend(chars_before_space(token));
                    // Adding zero makes -0.0 tie with 0.0.
                    let piece = Piece {
                        id,
                        score: score + 0.0,
                    };
                    pieces.entry(token.into()).or_insert(piece);
                }
            }
        }
        Ok(SentencePiece {
            pieces,
            bytes,
            unknown: vocabulary.unknown,
            joins_space,
        })
    }

    /// Appends the ids of `text`, with a space in front if asked for.
    pub fn encode(&self, text: &str, space_in_front: bool, ids: &mut Vec<u32>) -> Result<()> {
        let mut marked = text.replace(' ', SPACE_MARK);
        if space_in_front {
            marked.insert_str(0, SPACE_MARK);
        }
        let mut symbols = Vec::new();
        let mut bigrams = BinaryHeap::new();
        // Where in `ids` a word that has come before has its tokens.
        let mut seen: HashMap<&str, (usize, usize)> = HashMap::new();
        let mut rest = marked.as_str();
        while !rest.is_empty() {
            let (word, after) = rest.split_at(self.word_length(rest));
            rest = after;
            if let Some(&(start, end)) = seen.get(word) {
                ids.extend_from_within(start..end);
                continue;
            }
            let start = ids.len();
            self.merge(word, &mut symbols, &mut bigrams);
            self.append(word, &symbols, ids)?;
            if word.len() <= MAX_REMEMBERED_BYTES {
                seen.insert(word, (start, ids.len()));
            }
        }
        Ok(())
    }

    /// The bytes up to the first place that no piece reaches across.
    fn word_length(&self, text: &str) -> usize {
        let is_boundary = |&(at, _): &(usize, &str)| {
            let before = text[..at].chars().next_back();
            before.is_some_and(|c| !SPACE_MARK.starts_with(c) && !self.joins_space.contains(&c))
        };
        let boundary = text.match_indices(SPACE_MARK).find(is_boundary);
        boundary.map_or(text.len(), |(at, _)| at)
    }

    fn merge(&self, word: &str, symbols: &mut Vec<Symbol>, bigrams: &mut BinaryHeap<Bigram>) {
        symbols.clear();
        for (index, (start, c)) in word.char_indices().enumerate() {
            let end = start + c.len_utf8();
            symbols.push(Symbol {
                start,
                end,
                previous: index.checked_sub(1),
                next: (end < word.len()).then_some(index + 1),
                id: self.pieces.get(&word[start..end]).map(|piece| piece.id),
            });
        }
        for right in 1..symbols.len() {
            bigrams.extend(self.bigram(word, symbols, Some(right - 1), Some(right)));
        }
        while let Some(Bigram {
            piece,
            left,
            right,
            end,
        }) = bigrams.pop()
        {
            if symbols[left].next != Some(right) || symbols[right].end != end {
                continue;
            }
            let next = symbols[right].next.take();
            symbols[right].end = symbols[right].start;
            symbols[left] = Symbol {
                end,
                next,
                id: Some(piece.id),
                ..symbols[left]
            };
            if let Some(next) = next {
                symbols[next].previous = Some(left);
            }
            bigrams.extend(self.bigram(word, symbols, symbols[left].previous, Some(left)));
            bigrams.extend(self.bigram(word, symbols, Some(left), next));
        }
    }

    fn bigram(
        &self,
        word: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
    ) -> Option<Bigram> {
        let (left, right) = (left?, right?);
        let end = symbols[right].end;
        let piece = *self.pieces.get(&word[symbols[left].start..end])?;
        Some(Bigram {
            piece,
            left,
            right,
            end,
        })
    }

    fn append(&self, word: &str, symbols: &[Symbol], ids: &mut Vec<u32>) -> Result<()> {
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            let text = &word[symbol.start..symbol.end];
            if let Some(id) = symbol.id {
                ids.push(id);
            } else if text
                .bytes()
                .all(|byte| self.bytes[usize::from(byte)].is_some())
            {
                ids.extend(
                    text.bytes()
                        .filter_map(|byte| self.bytes[usize::from(byte)]),
                );
            } else if let Some(unknown) = self.unknown {
                ids.push(unknown);
            } else {
                let message = format!(
                    "`{text}` is no piece, its bytes are no tokens, and there is no unknown token"
                );
                return Err(Error::Tokenizer { message });
            }
        }
        Ok(())
    }
}

fn chars_before_space(token: &str) -> impl Iterator<Item = char> {
    token
        .match_indices(SPACE_MARK)
        .filter_map(|(at, _)| token[..at].chars().next_back())
        .filter(|&c| !SPACE_MARK.starts_with(c))
}
