//! Where the greedy answers of two engines part, and whether that is more than rounding.
//!
//! [`first_difference`] takes this crate's answer and another engine's, as much as is known of it. Engines
//! round differently, so two right ones part as soon as two candidates are about as probable;
//! [`Difference::is_near_tie`] tells that from a mistake. `examples/compare.rs` asks a server.

use std::fmt;

/// A token of an answer, as far as the engine that chose it tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// Its id; `None` where the engine gives text alone.
    pub id: Option<u32>,
    /// What it stands for; not valid UTF-8 for a part of a character.
    pub bytes: Vec<u8>,
    /// Whether it ends the answer.
    pub is_end: bool,
}

impl Token {
    /// The end of an answer, whichever token said so.
    pub fn end() -> Token {
        Token {
            is_end: true,
            ..Token::default()
        }
    }

    /// Whether both are the same token: by their ids, else by what they stand for.
    pub fn is_same(&self, other: &Token) -> bool {
        match (self.id, other.id) {
            (Some(id), Some(other)) => id == other,
            _ if self.is_end || other.is_end => self.is_end && other.is_end,
            _ => self.bytes == other.bytes,
        }
    }
}

/// The text in quotes, or `the end`, and the id where it is known.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_end {
            true => write!(f, "the end")?,
            false => write!(f, "{:?}", String::from_utf8_lossy(&self.bytes))?,
        }
        match self.id {
            Some(id) => write!(f, " ({id})"),
            None => Ok(()),
        }
    }
}

/// What an engine chose at a position, and what it might have chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// The chosen token.
    pub token: Token,
    /// Tokens with their probabilities, 0 to 1, the chosen one among them where its probability is known.
    pub candidates: Vec<(Token, f64)>,
}

impl Choice {
    /// The probability of a token, 0 to 1; `None` where the engine did not say.
    pub fn probability(&self, token: &Token) -> Option<f64> {
        let found = self
            .candidates
            .iter()
            .find(|(known, _)| known.is_same(token));
        found.map(|&(_, probability)| probability)
    }
}

/// A token with what both engines think of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rated {
    /// The token.
    pub token: Token,
    /// Its probability by this crate, 0 to 1; `None` where it is not known.
    pub by_ours: Option<f64>,
    /// Its probability by the other engine, 0 to 1; `None` where it is not known.
    pub by_theirs: Option<f64>,
}

/// The first token in which two answers differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// How many tokens are the same before it.
    pub position: usize,
    /// What this crate chose.
    pub ours: Rated,
    /// What the other engine chose.
    pub theirs: Rated,
}

impl Difference {
    /// How far rounding may move two logits against each other, a little beyond what was seen: 0.58 at most
    /// where answers first differed from llama.cpp's, which rounds activations to 8 bits (CPU, 32 prompts with
    /// SmolLM2-135M Q4_1 and gemma-3-270m Q4_K_M, 21 differences), 0.36 at most in all but that one.
    pub const NEAR_TIE: f64 = 0.75;

    /// By how much each engine holds its own choice for more probable than the other's, as the difference of
    /// both logits: this crate's, and the other one's. `None` where a probability is not known.
    pub fn margins(&self) -> [Option<f64>; 2] {
        let margin = |chosen: Option<f64>, other: Option<f64>| Some((chosen? / other?).ln());
        [
            margin(self.ours.by_ours, self.theirs.by_ours),
            margin(self.theirs.by_theirs, self.ours.by_theirs),
        ]
    }

    /// Whether rounding explains the difference: both margins, and how far they are apart, are at most
    /// [`Difference::NEAR_TIE`]. This crate's must be known, the other one's is taken for 0 where it is not.
    pub fn is_near_tie(&self) -> bool {
        let [Some(ours), theirs] = self.margins() else {
            return false;
        };
        let theirs = theirs.unwrap_or(0.0);
        let within = |margin: f64| margin.abs() <= Difference::NEAR_TIE;
        within(ours) && within(theirs) && within(ours + theirs)
    }
}

/// The first difference of two answers to one prompt, as far as both go. An answer that ends says so by a
/// token with [`Token::is_end`]. This crate's probabilities are left open.
pub fn first_difference(ours: &[Token], theirs: &[Choice]) -> Option<Difference> {
    let mut pairs = ours.iter().zip(theirs);
    let position = pairs.position(|(ours, theirs)| !ours.is_same(&theirs.token))?;
    let choice = &theirs[position];
    let rated = |token: &Token| Rated {
        token: token.clone(),
        by_ours: None,
        by_theirs: choice.probability(token),
    };
    Some(Difference {
        position,
        ours: rated(&ours[position]),
        theirs: rated(&choice.token),
    })
}

/// An answer of which the text alone is sure, cut into tokens as `ours` is, up to the first difference.
/// `choices` are what is known of its tokens; `has_ended` whether the model ended it.
pub fn cut_like(ours: &[Token], text: &str, choices: &[Choice], has_ended: bool) -> Vec<Choice> {
    // A limit of tokens may have cut a character.
    let text = match has_ended {
        true => text,
        false => text.trim_end_matches(char::REPLACEMENT_CHARACTER),
    };
    let mut rest = text.as_bytes();
    let mut cut = Vec::new();
    for (position, ours) in ours.iter().enumerate() {
        let known = choices.get(position).cloned().unwrap_or_default();
        let bytes = known.token.bytes.as_slice();
        let token = match rest.strip_prefix(ours.bytes.as_slice()) {
            _ if rest.is_empty() && !has_ended => break,
            _ if rest.is_empty() => Token {
                is_end: true,
                ..known.token
            },
            Some(behind) if !ours.is_end => {
                rest = behind;
                ours.clone()
            }
            _ if !bytes.is_empty() && rest.starts_with(bytes) => known.token,
            _ => Token {
                bytes: rest.to_vec(),
                ..Token::default()
            },
        };
        let is_same = token.is_same(ours);
        let candidates = known.candidates;
        cut.push(Choice { token, candidates });
        if !is_same {
            break;
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, text: &str) -> Token {
        Token {
            id: Some(id),
            bytes: text.into(),
            is_end: false,
        }
    }

    fn text(text: &str) -> Token {
        Token {
            id: None,
            ..token(0, text)
        }
    }

    fn end(id: Option<u32>) -> Token {
        Token { id, ..Token::end() }
    }

    fn chosen(tokens: &[Token]) -> Vec<Choice> {
        let choice = |token: &Token| Choice {
            token: token.clone(),
            candidates: vec![(token.clone(), 0.5), (text(" b"), 0.25)],
        };
        tokens.iter().map(choice).collect()
    }

    fn position(ours: &[Token], theirs: &[Token]) -> Option<usize> {
        first_difference(ours, &chosen(theirs)).map(|difference| difference.position)
    }

    #[test]
    fn tokens_are_compared_by_id_else_by_bytes_else_by_their_end() {
        let ours = [token(1, " a"), token(2, " b"), end(Some(0))];
        assert_eq!(position(&ours, &ours), None);
        assert_eq!(position(&ours, &[text(" a"), text(" b"), end(None)]), None);
        assert_eq!(position(&ours, &[token(1, "?"), token(2, "?")]), None);
        assert_eq!(position(&ours, &[token(1, " a"), token(3, " b")]), Some(1));
        assert_eq!(position(&ours, &[text(" a"), text("b")]), Some(1));
        assert_eq!(position(&ours, &[text(" a"), end(None)]), Some(1));
        assert_eq!(
            position(&ours, &[text(" a"), text(" b"), text("")]),
            Some(2)
        );
        assert_eq!(position(&ours, &[]), None);
    }

    #[test]
    fn difference_has_what_the_other_engine_thinks_of_both() {
        let ours = [token(1, " a"), token(2, " b")];
        let theirs = chosen(&[token(1, " a"), token(3, " c")]);
        let difference = first_difference(&ours, &theirs).unwrap();
        assert_eq!(difference.ours.token, ours[1]);
        assert_eq!(difference.theirs.token, theirs[1].token);
        assert_eq!(difference.ours.by_theirs, Some(0.25));
        assert_eq!(difference.theirs.by_theirs, Some(0.5));
        let margins = [None, Some(2.0_f64.ln())];
        assert_eq!(
            (difference.margins(), difference.is_near_tie()),
            (margins, false)
        );
    }

    #[test]
    fn near_tie_is_what_both_engines_hold_for_one() {
        let rated = |by_ours, by_theirs| Rated {
            token: text("x"),
            by_ours,
            by_theirs,
        };
        let is_near_tie = |ours: [Option<f64>; 2], theirs: [Option<f64>; 2]| {
            let difference = Difference {
                position: 0,
                ours: rated(ours[0], ours[1]),
                theirs: rated(theirs[0], theirs[1]),
            };
            difference.is_near_tie()
        };
        assert!(is_near_tie(
            [Some(0.41), Some(0.39)],
            [Some(0.40), Some(0.40)]
        ));
        assert!(is_near_tie([Some(0.41), None], [Some(0.40), None]));
        assert!(is_near_tie([Some(0.4), Some(0.2)], [Some(0.3), Some(0.3)]));
        assert!(!is_near_tie(
            [Some(0.4), Some(0.2)],
            [Some(0.3), Some(0.35)]
        ));
        assert!(!is_near_tie(
            [Some(0.41), Some(0.10)],
            [Some(0.40), Some(0.60)]
        ));
        assert!(!is_near_tie(
            [Some(0.60), Some(0.40)],
            [Some(0.10), Some(0.41)]
        ));
        assert!(!is_near_tie([Some(0.60), None], [Some(0.10), None]));
        // An engine that chose what it holds for far less probable is wrong, whatever it chose.
        assert!(!is_near_tie([Some(0.1), Some(0.1)], [Some(0.6), Some(0.6)]));
        assert!(!is_near_tie([Some(0.1), None], [Some(0.6), None]));
        assert!(!is_near_tie([Some(0.0), None], [Some(0.0), None]));
        assert!(!is_near_tie([None, Some(0.4)], [None, Some(0.4)]));
    }

    #[test]
    fn text_is_cut_as_ours_is_up_to_the_difference() {
        // `é` in two tokens, neither of which is a character.
        let part = |byte: u8| Token {
            bytes: vec![byte],
            ..token(u32::from(byte), "")
        };
        let ours = [
            token(1, " a"),
            part(0xC3),
            part(0xA9),
            token(2, " b"),
            end(Some(0)),
        ];
        let same = |text: &str, has_ended| {
            let cut = cut_like(&ours, text, &[], has_ended);
            (first_difference(&ours, &cut).map(|d| d.position), cut.len())
        };
        assert_eq!(same(" aé b", true), (None, 5));
        assert_eq!(same(" aé b", false), (None, 4));
        assert_eq!(same(" aé", false), (None, 3));
        assert_eq!(same(" a\u{FFFD}", false), (None, 1));
        assert_eq!(same(" a\u{FFFD}", true), (Some(1), 2));
        assert_eq!(same(" aé", true), (Some(3), 4));
        assert_eq!(same(" aé b c", true), (Some(4), 5));
        assert_eq!(same(" aè b", true), (Some(2), 3));
        assert_eq!(same("", true), (Some(0), 1));
        assert_eq!(same("", false), (None, 0));
    }

    #[test]
    fn cut_text_keeps_what_is_known_of_its_tokens() {
        let ours = [token(1, " a"), token(2, " b")];
        let known = chosen(&[text(" a"), text(" ça")]);
        let cut = cut_like(&ours, " a ça va", &known, false);
        assert_eq!(cut[0].candidates, known[0].candidates);
        assert_eq!(cut[1], known[1]);
        let unknown = cut_like(&ours, " a ça va", &known[..1], false);
        assert_eq!(unknown[1].token, text(" ça va"));
    }

    #[test]
    fn token_is_shown_with_its_id() {
        assert_eq!(token(7, " \u{e9}\n").to_string(), "\" é\\n\" (7)");
        assert_eq!(text("x").to_string(), "\"x\"");
        assert_eq!(end(Some(2)).to_string(), "the end (2)");
    }
}
