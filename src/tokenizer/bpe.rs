//! Byte-level BPE: words cut by regexes, bytes spelled as characters, pairs merged by rank.

use fancy_regex::Regex;
use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::byte_level::CHAR_OF_BYTE;
use super::pre::PreTokenizer;
use super::vocabulary::{Vocabulary, invalid_key};
use crate::error::{Error, Result};

/// The merges of a `gpt2` vocabulary with its pre-tokenizer.
pub(super) struct Bpe {
    /// Run here and not through the `tokenizers` crate, which drops a regex's run-time error and
    /// with it the cuts in the rest of the text.
    regexes: Vec<Regex>,
    /// `None` for a byte that the vocabulary lacks.
    alphabet: [Option<char>; 256],
    merges: BPE,
}

impl Bpe {
    pub fn new(vocabulary: &Vocabulary, merges: &[String], pre: &PreTokenizer) -> Result<Bpe> {
        let compile = |regex: &&str| Regex::new(regex).map_err(regex_error);
        let regexes = pre.regexes.iter().map(compile).collect::<Result<_>>()?;
        let mut ids = Vocab::with_capacity(vocabulary.len());
        for (id, token) in vocabulary.tokens() {
            ids.entry(token.to_owned()).or_insert(id);
        }
        let alphabet = CHAR_OF_BYTE.map(|c| {
            ids.contains_key(c.encode_utf8(&mut [0; 4]) as &str)
                .then_some(c)
        });
        let merges = BPE::builder()
            .vocab_and_merges(ids, parse_merges(merges)?)
            .ignore_merges(pre.ignore_merges)
            .build()
            .map_err(|error| invalid_key("tokenizer.ggml.merges", error))?;
        Ok(Bpe {
            regexes,
            alphabet,
            merges,
        })
    }

    /// Appends the ids of `text`.
    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let mut spelling = String::new();
        let mut n_left_out = 0;
        for word in self.words(text)? {
            spelling.clear();
            for byte in word.bytes() {
                match self.alphabet[usize::from(byte)] {
                    Some(c) => spelling.push(c),
                    None => n_left_out += 1,
                }
            }
            let tokens = self
                .merges
                .tokenize(&spelling)
                .map_err(|error| Error::Tokenizer {
                    message: error.to_string(),
                })?;
            ids.extend(tokens.iter().map(|token| token.id));
        }
        if n_left_out > 0 {
            log::warn!("{n_left_out} bytes of the text are left out: the vocabulary lacks them");
        }
        Ok(())
    }

    fn words<'t>(&self, text: &'t str) -> Result<Vec<&'t str>> {
        let mut words = vec![text];
        for regex in &self.regexes {
            let mut cut = Vec::with_capacity(words.len().max(text.len() / 4));
            for word in words {
                let mut end = 0;
                for found in regex.find_iter(word) {
                    let found = found.map_err(regex_error)?;
                    if end < found.start() {
                        cut.push(&word[end..found.start()]);
                    }
                    cut.push(found.as_str());
                    end = found.end();
                }
                if end < word.len() {
                    cut.push(&word[end..]);
                }
            }
            words = cut;
        }
        Ok(words)
    }
}

fn parse_merges(merges: &[String]) -> Result<Merges> {
    let parse = |(index, merge): (usize, &String)| match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left.to_owned(), right.to_owned()))
        }
        _ => Err(invalid_key(
            "tokenizer.ggml.merges",
            format!("entry {index} is `{merge}`, expected two tokens with a space between"),
        )),
    };
    merges.iter().enumerate().map(parse).collect()
}

fn regex_error(error: fancy_regex::Error) -> Error {
    Error::Tokenizer {
        message: format!("the pre-tokenizer gave up on the text: {error}"),
    }
}
