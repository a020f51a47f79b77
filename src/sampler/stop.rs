//! Stop strings, found in text that arrives in pieces.

use crate::error::{Error, Result};

/// Watches streamed text for stop strings and holds back what may be the start of one.
///
/// A stop string matches as soon as its last character has arrived, so the match that ends first
/// wins, and of several that end together the longest. How the text is cut into pieces makes no
/// difference.
///
/// # Examples
/// ```
/// use trueshot::sampler::StopMatcher;
///
/// let mut stops = StopMatcher::new(&["</s>".into()])?;
/// assert_eq!(stops.push("Paris<").text, "Paris");
/// let outcome = stops.push("/s> and more");
/// assert_eq!((outcome.text.as_str(), outcome.stop), ("", Some(0)));
/// # Ok::<(), trueshot::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    matched: Option<usize>,
}

/// What a piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that can be shown now; it holds no part of a stop string.
    pub text: String,
    /// The index of the stop string that matched, if one did: the text ends here.
    pub stop: Option<usize>,
}

impl StopMatcher {
    /// A matcher for any number of stop strings; with none, all text passes at once.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty stop string.
    pub fn new(stops: &[String]) -> Result<Self> {
        if let Some(index) = stops.iter().position(String::is_empty) {
            let message = format!("string {index} is empty, expected at least one character");
            return Err(Error::InvalidArgument {
                name: "stop",
                message,
            });
        }
        Ok(Self {
            stops: stops.to_vec(),
            held: String::new(),
            matched: None,
        })
    }

    /// Takes the next piece of text. After a match every further piece is dropped and the outcome
    /// names the same stop string with no text.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.matched.is_some() {
            return StopOutcome {
                text: String::new(),
                stop: self.matched,
            };
        }
        let n_seen_bytes = self.held.len();
        self.held.push_str(text);
        for (offset, character) in text.char_indices() {
            let end = n_seen_bytes + offset + character.len_utf8();
            if let Some(stop) = self.stop_ending_at(end) {
                self.matched = Some(stop);
                let mut text = std::mem::take(&mut self.held);
                text.truncate(end - self.stops[stop].len());
                return StopOutcome {
                    text,
                    stop: self.matched,
                };
            }
        }
        let held = self.held.split_off(self.possible_stop_start());
        StopOutcome {
            text: std::mem::replace(&mut self.held, held),
            stop: None,
        }
    }

    /// Ends the text and returns what was held back; nothing after a match.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The longest stop string that ends at byte `end` of the held text.
    fn stop_ending_at(&self, end: usize) -> Option<usize> {
        let ending = |&index: &usize| self.held[..end].ends_with(&self.stops[index]);
        (0..self.stops.len())
            .rev()
            .filter(ending)
            .max_by_key(|&index| self.stops[index].len())
    }

    /// The first byte of the held text from where the rest may become a stop string.
    fn possible_stop_start(&self) -> usize {
        let may_stop = |start: usize| {
            self.stops
                .iter()
                .any(|s| s.starts_with(&self.held[start..]))
        };
        let mut starts = self.held.char_indices().map(|(start, _)| start);
        starts
            .find(|&start| may_stop(start))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::random::SplitMix64;

    fn stop_strings(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|stop| stop.to_string()).collect()
    }

    /// Pushes pieces until one matches: the text that came out, and the stop.
    fn stream(stops: &[String], pieces: &[&str]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops).expect("no stop is empty");
        let mut text = String::new();
        for piece in pieces {
            let outcome = matcher.push(piece);
            text += &outcome.text;
            if outcome.stop.is_some() {
                assert_eq!(matcher.finish(), "", "nothing is held after a match");
                return (text, outcome.stop);
            }
        }
        (text + &matcher.finish(), None)
    }

    /// The stop that ends first in the whole text, the longest of those, the first of equals.
    fn naive_stop(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ending = (0..stops.len()).filter(|&i| text[..end].ends_with(&stops[i]));
            if let Some(stop) = ending.min_by_key(|&i| (usize::MAX - stops[i].len(), i)) {
                return (text[..end - stops[stop].len()].to_string(), Some(stop));
            }
        }
        (text.to_string(), None)
    }

    #[test]
    fn naive_stop_agrees_with_worked_examples() {
        let naive = |stops: &[&str], text| naive_stop(&stop_strings(stops), text);
        assert_eq!(naive(&["b"], "abab"), ("a".into(), Some(0)));
        assert_eq!(naive(&["abcd", "bc"], "xabcd"), ("xa".into(), Some(1)));
        assert_eq!(naive(&["c", "abc", "abc"], "xabc"), ("x".into(), Some(1)));
        assert_eq!(naive(&["é"], "caf\u{e9}s"), ("caf".into(), Some(0)));
        assert_eq!(naive(&["z"], "abc"), ("abc".into(), None));
        assert_eq!(naive(&[], "abc"), ("abc".into(), None));
    }

    #[test]
    fn streamed_stops_agree_with_the_naive_reference_however_the_text_is_cut() {
        // Few letters, two of them of several bytes that share their first, so that stops overlap.
        let letters = ["a", "b", "é", "è", "🙂"];
        let mut n_matches = 0;
        for seed in 0..20_000 {
            let mut random = SplitMix64::new(seed);
            let mut below = |bound: usize| (random.next_u64() % bound as u64) as usize;
            let mut word = |longest: usize, shortest: usize| -> String {
                let len = shortest + below(longest - shortest + 1);
                (0..len).map(|_| letters[below(letters.len())]).collect()
            };
            let text = word(24, 0);
            let stops: Vec<String> = (0..seed % 4).map(|_| word(4, 1)).collect();
            let mut pieces = Vec::new();
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let n_chars = below(4);
                let cut = rest
                    .char_indices()
                    .nth(n_chars)
                    .map_or(rest.len(), |(cut, _)| cut);
                let piece;
                (piece, rest) = rest.split_at(cut);
                pieces.push(piece);
            }
            let expected = naive_stop(&stops, &text);
            n_matches += usize::from(expected.1.is_some());
            let found = stream(&stops, &pieces);
            assert_eq!(
                found, expected,
                "seed {seed}: stops {stops:?}, pieces {pieces:?}"
            );
        }
        assert!(
            (4_000..16_000).contains(&n_matches),
            "{n_matches} matches: a one-sided test"
        );
    }

    #[test]
    fn text_is_held_no_longer_than_needed() {
        let mut matcher = StopMatcher::new(&stop_strings(&["<end>"])).expect("no stop is empty");
        assert_eq!(matcher.push("a < b").text, "a < b");
        assert_eq!(matcher.push(" <e").text, " ");
        assert_eq!(matcher.push("n").text, "");
        assert_eq!(matcher.push("<").text, "<en");
        assert_eq!(matcher.push("").text, "");
        assert_eq!(matcher.finish(), "<");
    }

    #[test]
    fn text_after_a_match_is_dropped() {
        let mut matcher = StopMatcher::new(&stop_strings(&["x", "."])).expect("no stop is empty");
        let outcome = matcher.push("Yes. No.");
        assert_eq!((outcome.text.as_str(), outcome.stop), ("Yes", Some(1)));
        let outcome = matcher.push("more");
        assert_eq!((outcome.text.as_str(), outcome.stop), ("", Some(1)));
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        let result = StopMatcher::new(&stop_strings(&["a", ""]));
        assert!(matches!(
            result,
            Err(Error::InvalidArgument { name: "stop", .. })
        ));
    }
}
