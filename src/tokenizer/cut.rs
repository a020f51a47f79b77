//! Cutting text into words by regexes that look at nothing around them.
//!
//! Most pre-tokenizers end in `\s+(?!\S)|\s+`: whitespace leaves its last character to the word
//! behind it. A regex with a look-ahead needs a backtracking matcher, which is slow and gives up on
//! long runs. Here the regex takes the whole run, and the last character is given back by hand.

use fancy_regex::Regex;

use crate::error::{Error, Result};

/// One step of a pre-tokenizer. A match is a segment and so is what lies between two matches.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cut {
    /// A regex as it stands.
    Pattern(&'static str),
    /// With `|\s+(?!\S)|\s+` behind it; no match of the regex itself ends in whitespace unless it is
    /// one character.
    Words(&'static str),
    /// With `|\s+(?!\S)|\s+` behind it; the regex takes whatever whitespace has a newline in it, and
    /// its matches end in no other whitespace.
    Lines(&'static str),
    /// As `Lines`, and in front of those a `\s{n}(?!\S)` for 512, 256 and so on down to 1.
    Cascade(&'static str),
    /// Runs of digits, in groups of three from the right.
    Threes {
        /// What a run is.
        runs: &'static str,
        /// A run is cut off from what stands around it.
        is_isolated: bool,
    },
}

/// The compiled steps of a pre-tokenizer.
pub(super) struct Cutter {
    steps: Vec<(Cut, Regex)>,
}

impl Cutter {
    pub fn new(cuts: &[Cut]) -> Result<Cutter> {
        let compile = |&cut: &Cut| {
            let regex = match cut {
                Cut::Pattern(regex) | Cut::Threes { runs: regex, .. } => Regex::new(regex),
                Cut::Words(regex) | Cut::Lines(regex) | Cut::Cascade(regex) => {
                    Regex::new(&format!(r"{regex}|\s+"))
                }
            };
            Ok((cut, regex.map_err(regex_error)?))
        };
        Ok(Cutter {
            steps: cuts.iter().map(compile).collect::<Result<_>>()?,
        })
    }

    /// The words of a text, in order and with nothing left out.
    pub fn words<'t>(&self, text: &'t str) -> Result<Vec<&'t str>> {
        let mut words = vec![text];
        for (cut, regex) in &self.steps {
            let mut shorter = Vec::with_capacity(words.len().max(text.len() / 4));
            for word in words {
                cut_word(*cut, regex, word, &mut shorter)?;
            }
            words = shorter;
        }
        Ok(words)
    }
}

fn cut_word<'t>(cut: Cut, regex: &Regex, word: &'t str, words: &mut Vec<&'t str>) -> Result<()> {
    // Up to here the word is in `words`; matching goes on at `at`.
    let (mut end, mut at) = (0, 0);
    while at < word.len() {
        let Some(found) = regex.find_from_pos(word, at).map_err(regex_error)? else {
            break;
        };
        let (start, mut found_end) = (found.start(), found.end());
        if let Cut::Threes { is_isolated, .. } = cut {
            let mut push_to = |place: usize| {
                if end < place {
                    words.push(&word[end..place]);
                    end = place;
                }
            };
            let n_digits = found.as_str().chars().count();
            if is_isolated || n_digits % 3 == 0 {
                push_to(start);
            }
            for (n_before, (offset, _)) in found.as_str().char_indices().enumerate() {
                if n_before > 0 && (n_digits - n_before) % 3 == 0 {
                    push_to(start + offset);
                }
            }
            if is_isolated {
                push_to(found_end);
            }
            at = found_end;
            continue;
        }
        if end < start {
            words.push(&word[end..start]);
        }
        end = start;
        let whitespace = match cut {
            Cut::Pattern(_) | Cut::Threes { .. } => None,
            Cut::Words(_) => last_whitespace(found.as_str()),
            Cut::Lines(_) | Cut::Cascade(_) => {
                last_whitespace(found.as_str()).filter(|c| !matches!(c, '\r' | '\n'))
            }
        };
        if let Some(last) = whitespace {
            if found_end < word.len() && found_end - start > last.len_utf8() {
                found_end -= last.len_utf8();
            }
            if let Cut::Cascade(_) = cut {
                push_powers_of_two(&word[start..found_end], words);
                end = found_end;
            }
        }
        if end < found_end {
            words.push(&word[end..found_end]);
        }
        end = found_end;
        at = found_end;
    }
    if end < word.len() {
        words.push(&word[end..]);
    }
    Ok(())
}

fn last_whitespace(text: &str) -> Option<char> {
    text.chars().next_back().filter(|c| c.is_whitespace())
}

fn push_powers_of_two<'t>(mut spaces: &'t str, words: &mut Vec<&'t str>) {
    let mut n_left = spaces.chars().count();
    while n_left > 0 {
        let n_taken = 1 << n_left.ilog2().min(9);
        let end = spaces
            .char_indices()
            .nth(n_taken)
            .map_or(spaces.len(), |(at, _)| at);
        let (taken, rest) = spaces.split_at(end);
        words.push(taken);
        spaces = rest;
        n_left -= n_taken;
    }
}

fn regex_error(error: fancy_regex::Error) -> Error {
    Error::Tokenizer {
        message: format!("the pre-tokenizer gave up on the text: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPT2: &str = r"'s| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+";
    const LLAMA3: &str =
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+";
    const CASCADE: &str = r"\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";

    fn by_lookahead(regex: &Regex, text: &str) -> Vec<String> {
        let found = regex.find_iter(text).map(|found| found.expect("found"));
        let (mut words, mut end) = (Vec::new(), 0);
        for found in found {
            if end < found.start() {
                words.push(text[end..found.start()].to_owned());
            }
            words.push(found.as_str().to_owned());
            end = found.end();
        }
        if end < text.len() {
            words.push(text[end..].to_owned());
        }
        words
    }

    #[test]
    fn whitespace_is_cut_as_by_the_look_ahead() {
        const PARTS: [&str; 12] = [
            " ", " ", "  ", "\t", "\n", "\r\n", "\u{3000}", "a", "1", "!", "'s", "\u{85}",
        ];
        let tail = r"\s+(?!\S)|\s+";
        let cases = [
            (Cut::Words(GPT2), format!("{GPT2}|{tail}")),
            (Cut::Lines(LLAMA3), format!("{LLAMA3}|{tail}")),
            (Cut::Cascade(LLAMA3), format!("{LLAMA3}|{CASCADE}")),
        ];
        for (cut, regex) in cases {
            let cutter = Cutter::new(&[cut]).expect("valid");
            let regex = Regex::new(&regex).expect("valid");
            let mut state = 5_u64;
            for _ in 0..4000 {
                let mut text = String::new();
                for _ in 0..state % 17 {
                    state = state
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    text.push_str(PARTS[(state >> 33) as usize % PARTS.len()]);
                }
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let found = cutter.words(&text).expect("cut");
                assert_eq!(found, by_lookahead(&regex, &text), "{cut:?} {text:?}");
            }
        }
    }

    #[test]
    fn a_cascade_takes_the_largest_power_of_two_up_to_512() {
        let cutter = Cutter::new(&[Cut::Cascade(LLAMA3)]).expect("valid");
        let text = " ".repeat(1031) + "a";
        let lengths: Vec<usize> = cutter
            .words(&text)
            .expect("cut")
            .iter()
            .map(|w| w.len())
            .collect();
        assert_eq!(lengths, [512, 512, 4, 2, 2]);
    }
}
