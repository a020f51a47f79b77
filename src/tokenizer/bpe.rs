//! BPE with ranked merges: words cut by a pre-tokenizer, pairs merged by rank.
//!
//! Not on the `tokenizers` crate: it makes a string of every token of every text and keeps three
//! copies of the vocabulary, which costs the larger part of the time to build and to encode.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use rayon::prelude::*;

use super::byte_level::{self, CHAR_OF_BYTE};
use super::cut::Cutter;
use super::pre::PreTokenizer;
use super::vocabulary::{SPACE_MARK, Vocabulary, invalid_key};
use crate::error::Result;

/// Words of more bytes are not remembered while a text is encoded.
const MAX_REMEMBERED_BYTES: usize = 64;

/// The merges of a vocabulary with its pre-tokenizer.
pub(super) struct Bpe {
    cutter: Cutter,
    /// `None` for a byte that the vocabulary lacks.
    bytes: [Option<u32>; 256],
    /// The tokens that single characters of a plainly spelled word begin as; `None` where tokens
    /// spell bytes.
    chars: Option<HashMap<char, u32>>,
    merges: HashMap<(u32, u32), Merge>,
    /// Words that are tokens, where those come before merges.
    whole_words: HashMap<Box<[u8]>, u32>,
}

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// A token so far; a doubly linked list in text order.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    previous: u32,
    next: u32,
}

/// No symbol, and the id of a symbol that has gone into the one on its left.
const NONE: u32 = u32::MAX;

/// Two neighbours that merge: the lowest rank first, the leftmost of equals.
type Candidate = Reverse<(u32, u32, [u32; 3])>;

/// What encoding one text needs, used for all of its words.
#[derive(Default)]
struct Scratch {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
    n_left_out: usize,
}

impl Bpe {
    pub fn new(vocabulary: &Vocabulary, merges: &[String], pre: &PreTokenizer) -> Result<Bpe> {
        let mut ids: HashMap<&str, u32> = HashMap::with_capacity(vocabulary.len());
        for (id, token) in vocabulary.tokens() {
            ids.entry(token).or_insert(id);
        }
        let bytes = std::array::from_fn(|byte| {
            if pre.is_plain {
                ids.get(format!("<0x{byte:02X}>").as_str()).copied()
            } else {
                let mut buffer = [0; 4];
                let spelling: &str = CHAR_OF_BYTE[byte].encode_utf8(&mut buffer);
                ids.get(spelling).copied()
            }
        });
        let single = |(&token, &id): (&&str, &u32)| {
            let mut chars = token.chars();
            chars
                .next()
                .filter(|_| chars.next().is_none())
                .map(|c| (c, id))
        };
        let chars = pre
            .is_plain
            .then(|| ids.iter().filter_map(single).collect());
        let whole_words = vocabulary
            .tokens()
            .filter_map(|(id, token)| match pre.is_plain {
                // Newlines alone are whole words everywhere: see llama.cpp pull request 21343.
                true if token.bytes().all(|byte| byte == b'\n') => Some((token.into(), id)),
                false if pre.ignore_merges => Some((byte_level::bytes_of(token)?, id)),
                _ => None,
            })
            .map(|(bytes, id): (Vec<u8>, u32)| (bytes.into_boxed_slice(), id));
        let whole_words = || {
            let mut by_bytes = HashMap::new();
            for (bytes, id) in whole_words {
                by_bytes.entry(bytes).or_insert(id);
            }
            by_bytes
        };
        let (whole_words, merges) = rayon::join(whole_words, || parse_merges(merges, &ids));
        Ok(Bpe {
            cutter: Cutter::new(pre.cuts)?,
            bytes,
            chars,
            merges: merges?,
            whole_words,
        })
    }

    /// Appends the ids of `text`.
    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let marked = self.chars.as_ref().map(|_| text.replace(' ', SPACE_MARK));
        let text = marked.as_deref().unwrap_or(text);
        let mut scratch = Scratch::default();
        // Where in `ids` a word that has come before has its tokens.
        let mut seen: HashMap<&str, (usize, usize)> = HashMap::new();
        for word in self.cutter.words(text)? {
            if let Some(&(start, end)) = seen.get(word) {
                ids.extend_from_within(start..end);
                continue;
            }
            let start = ids.len();
            match self.whole_words.get(word.as_bytes()) {
                Some(&id) => ids.push(id),
                None => self.merge(word, &mut scratch, ids),
            }
            if word.len() <= MAX_REMEMBERED_BYTES {
                seen.insert(word, (start, ids.len()));
            }
        }
        if scratch.n_left_out > 0 {
            let n_words = scratch.n_left_out;
            log::warn!("bytes of {n_words} words are left out: the vocabulary lacks them");
        }
        Ok(())
    }

    fn merge(&self, word: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Scratch {
            symbols,
            candidates,
            n_left_out,
        } = scratch;
        symbols.clear();
        let mut is_whole = true;
        let mut push = |id: Option<u32>| match id {
            Some(id) => {
                let index = symbols.len() as u32;
                symbols.push(Symbol {
                    id,
                    previous: index.wrapping_sub(1),
                    next: index + 1,
                });
            }
            None => is_whole = false,
        };
        let push_bytes = |bytes: &[u8], push: &mut dyn FnMut(Option<u32>)| {
            bytes
                .iter()
                .for_each(|&byte| push(self.bytes[usize::from(byte)]));
        };
        match &self.chars {
            None => push_bytes(word.as_bytes(), &mut push),
            Some(chars) => {
                for c in word.chars() {
                    match chars.get(&c) {
                        Some(&id) => push(Some(id)),
                        None => push_bytes(c.encode_utf8(&mut [0; 4]).as_bytes(), &mut push),
                    }
                }
            }
        }
        *n_left_out += usize::from(!is_whole);
        let Some(last) = symbols.last_mut() else {
            return;
        };
        last.next = NONE;
        for left in 0..symbols.len() as u32 {
            candidates.extend(self.candidate(symbols, left));
        }
        while let Some(Reverse((_, left, [left_id, right_id, id]))) = candidates.pop() {
            let Symbol {
                id: now,
                previous,
                next: right,
            } = symbols[left as usize];
            if now != left_id || right == NONE || symbols[right as usize].id != right_id {
                continue;
            }
            let next = symbols[right as usize].next;
            symbols[right as usize].id = NONE;
            symbols[left as usize] = Symbol { id, previous, next };
            if next != NONE {
                symbols[next as usize].previous = left;
            }
            candidates.extend(self.candidate(symbols, previous));
            candidates.extend(self.candidate(symbols, left));
        }
        ids.extend(
            symbols
                .iter()
                .map(|symbol| symbol.id)
                .filter(|&id| id != NONE),
        );
    }

    /// The merge of a symbol with the one on its right.
    fn candidate(&self, symbols: &[Symbol], left: u32) -> Option<Candidate> {
        let symbol = symbols.get(left as usize)?;
        let right = symbols.get(symbol.next as usize)?;
        let merge = self.merges.get(&(symbol.id, right.id))?;
        Some(Reverse((merge.rank, left, [symbol.id, right.id, merge.id])))
    }
}

fn parse_merges(merges: &[String], ids: &HashMap<&str, u32>) -> Result<HashMap<(u32, u32), Merge>> {
    const KEY: &str = "tokenizer.ggml.merges";
    let id_of = |token: &str| {
        let id = ids.get(token).copied();
        id.ok_or_else(|| invalid_key(KEY, format!("Token `{token}` out of vocabulary")))
    };
    let parse = |(rank, merge): (usize, &String)| {
        let pair = merge
            .split_once(' ')
            .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '));
        let Some((left, right)) = pair else {
            let expected = "expected two tokens with a space between";
            return Err(invalid_key(
                KEY,
                format!("entry {rank} is `{merge}`, {expected}"),
            ));
        };
        Ok((
            (id_of(left)?, id_of(right)?),
            id_of(&[left, right].concat())?,
        ))
    };
    let parsed: Vec<_> = merges.par_iter().enumerate().map(parse).collect();
    let mut by_pair = HashMap::with_capacity(merges.len());
    for (rank, merge) in (0..).zip(parsed) {
        let (pair, id) = merge?;
        by_pair.entry(pair).or_insert(Merge { rank, id });
    }
    Ok(by_pair)
}
