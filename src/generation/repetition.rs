//! Notices an answer that cannot depend on what was asked.

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// So many equal choices from the start are a finding.
const N_EQUAL: usize = 16;
/// So many tokens in front of the answer are looked at.
const CONTEXT: usize = 32;

/// Watches the first tokens of an answer. A finding is the same token [`N_EQUAL`] times from the start, and from
/// the second on always the same largest logit, to the bit (the first has another token in front of it).
///
/// A repeated token alone is no fault, nor is one of which the model is certain: a sound model that is asked to
/// repeat something does that. But its logits change a little with each position, as each sees one more token
/// than the one before, at other distances. Only where nearly all tokens are the same may they not change: all
/// rows are equal then, and so is each weighted mean of them. So nothing is said where more than half of the
/// last [`CONTEXT`] tokens in front of the answer are the one that it repeats.
pub(crate) struct Repetition {
    /// The last tokens in front of the answer; `None` once there is nothing to find.
    context: Option<Vec<u32>>,
    token: u32,
    largest_logit: u32,
    n_equal: usize,
}

impl Repetition {
    /// For an answer behind `tokens`.
    pub(crate) fn new(tokens: &[u32]) -> Repetition {
        Repetition {
            context: Some(tokens[tokens.len().saturating_sub(CONTEXT)..].to_vec()),
            token: 0,
            largest_logit: 0,
            n_equal: 0,
        }
    }

    /// Looks at nothing.
    pub(crate) fn off() -> Repetition {
        Repetition {
            context: None,
            ..Repetition::new(&[])
        }
    }

    /// Whether there may be something to find still.
    pub(crate) fn is_open(&self) -> bool {
        self.context.is_some()
    }

    /// Looks at the next token of the answer. Logits are compared as the integers they are given as.
    ///
    /// # Errors
    /// [`Error::WrongResult`] for the last of [`N_EQUAL`].
    pub(crate) fn see(
        &mut self,
        token: u32,
        largest_logit: u32,
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        let Some(context) = &self.context else {
            return Ok(());
        };
        let is_equal = match self.n_equal {
            0 => true,
            1 => token == self.token,
            _ => token == self.token && largest_logit == self.largest_logit,
        };
        let n_alike = context.iter().filter(|&&other| other == token).count();
        if !is_equal || n_alike * 2 > context.len() {
            self.context = None;
            return Ok(());
        }
        (self.token, self.largest_logit) = (token, largest_logit);
        self.n_equal += 1;
        if self.n_equal < N_EQUAL {
            return Ok(());
        }
        let text = tokenizer.token(token).unwrap_or_default();
        Err(Error::WrongResult {
            step: "result_output".to_owned(),
            message: format!(
                "token {token} (`{text}`) {N_EQUAL} times from the start of the answer, from the same logits \
                 at every position, expected them to change with what is in front of them"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::WeightType;
    use crate::tiny;

    const PROMPT: [u32; 4] = [1, 260, 261, 262];

    /// The number of the token of an answer that is refused.
    fn refused(
        mut repetition: Repetition,
        answer: impl Iterator<Item = (u32, u32)>,
    ) -> Option<usize> {
        let gguf = tiny::gguf(WeightType::F32, None);
        let tokenizer = Tokenizer::from_metadata(gguf.metadata()).unwrap();
        let mut answer = answer.take(100);
        answer.position(|(token, logit)| repetition.see(token, logit, &tokenizer).is_err())
    }

    #[test]
    fn token_from_always_the_same_logits_is_refused_at_the_16th() {
        let after = |prompt: &[u32]| Repetition::new(prompt);
        let same = || std::iter::repeat((0, 77));
        assert_eq!(refused(after(&PROMPT), same()), Some(15));
        // The first logits have another token in front of them than those behind.
        let first = || std::iter::once((0, 5)).chain(same());
        assert_eq!(refused(after(&PROMPT), first()), Some(15));
        let gguf = tiny::gguf(WeightType::F32, None);
        let tokenizer = Tokenizer::from_metadata(gguf.metadata()).unwrap();
        let mut repetition = after(&PROMPT);
        let results = same().map(|(token, logit)| repetition.see(token, logit, &tokenizer));
        let error = results.take(16).last().unwrap().unwrap_err().to_string();
        let is_named = error.contains("`result_output`") && error.contains("token 0 (`<unk>`)");
        assert!(is_named, "{error}");
    }

    #[test]
    fn sound_answers_are_not_refused() {
        let after = |prompt: &[u32]| Repetition::new(prompt);
        // Another token, or other logits, at any place; and what comes later counts for nothing.
        for at in 0..15 {
            let token = (0..).map(|i| (u32::from(i == at), 77));
            assert_eq!(refused(after(&PROMPT), token), None, "{at}");
        }
        for at in 2..15 {
            let logits = (0..).map(|i| (0, 77 + u32::from(i == at)));
            assert_eq!(refused(after(&PROMPT), logits), None, "{at}");
        }
        // A prompt of which more than half is the token, at its end; elsewhere it does not count.
        let alike = [vec![260; 40], vec![0; 17], vec![260; 15]].concat();
        let same = || std::iter::repeat((0, 77));
        assert_eq!(refused(after(&alike), same()), None);
        assert_eq!(refused(after(&alike[..56]), same()), Some(15));
        assert_eq!(
            refused(after(&[vec![0; 40], vec![260; 16]].concat()), same()),
            Some(15)
        );
        assert_eq!(refused(Repetition::off(), same()), None);
    }
}
