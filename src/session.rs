//! A session: the tokens so far, and the loop that generates more.

use crate::chat_template::Message;
use crate::device::{Executor, Observation};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::generation::{GenerateOptions, Generation};
use crate::plan::{Batch, Outputs};

/// One conversation with an engine's model: its tokens and their cache.
pub struct Session {
    engine: Engine,
    executor: Box<dyn Executor>,
    /// All tokens; the first `n_cached` of them are in the cache.
    tokens: Vec<u32>,
    n_cached: usize,
    /// Of the last batch, `[n_outputs, vocab_size]`.
    logits: Vec<f32>,
}

/// The output of one step of the forward pass, see [`Session::observe`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Intermediate<'a> {
    /// The step's name, e.g. `blk.3.attn_norm`.
    pub name: &'a str,
    /// `[n_rows, width] f32`. A step that stores to the cache shows the rows it stored, as the cache
    /// gives them back: first the keys of the batch, then its values.
    pub values: &'a [f32],
    /// Elements in a row.
    pub width: usize,
}

impl Session {
    pub(crate) fn new(engine: Engine, executor: Box<dyn Executor>) -> Self {
        Session {
            engine,
            executor,
            tokens: Vec::new(),
            n_cached: 0,
            logits: Vec::new(),
        }
    }

    /// The engine this session belongs to.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Every token of the session: prompts and answers.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets all tokens behind the first `n_tokens`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the session has fewer.
    pub fn rewind(&mut self, n_tokens: usize) -> Result<()> {
        if n_tokens > self.tokens.len() {
            let message = format!(
                "{n_tokens}, but the session has {} tokens",
                self.tokens.len()
            );
            return Err(Error::InvalidArgument {
                name: "n_tokens",
                message,
            });
        }
        self.tokens.truncate(n_tokens);
        self.n_cached = self.n_cached.min(n_tokens);
        Ok(())
    }

    /// Continues the session by `prompt` and then by what the model makes of it. Nothing runs for
    /// the answer until the [`Generation`] is iterated.
    ///
    /// # Errors
    /// [`Error::ContextFull`] where the prompt has no room, [`Error::InvalidArgument`] for an option
    /// out of range or an empty prompt in an empty session, and those of the device.
    pub fn generate(&mut self, prompt: &str, options: &GenerateOptions) -> Result<Generation<'_>> {
        let is_first = self.tokens.is_empty();
        let tokenizer = self.engine.tokenizer();
        let prompt = tokenizer.encode(prompt, is_first, options.parse_special)?;
        Generation::start(self, &prompt, options)
    }

    /// Answers a conversation through the model's chat template. Messages that the session has
    /// already seen are not run again: pass the whole conversation each time.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] where the file has no template or it fails, else as
    /// [`Session::generate`].
    pub fn chat(
        &mut self,
        messages: &[Message],
        options: &GenerateOptions,
    ) -> Result<Generation<'_>> {
        let template = self.engine.chat_template()?;
        let text = template.render(messages, true)?;
        let tokenizer = self.engine.tokenizer();
        // A template may write the begin-of-text token itself.
        let begins = tokenizer.bos().and_then(|id| tokenizer.token(id));
        let has_begin = begins.is_some_and(|begin| text.starts_with(begin));
        let wanted = tokenizer.encode(&text, !has_begin, true)?;

        let known = self
            .tokens
            .iter()
            .zip(&wanted)
            .take_while(|(a, b)| a == b)
            .count();
        // The last token runs again where all are known: its logits are needed.
        let known = known.min(wanted.len().saturating_sub(1));
        self.rewind(known)?;
        Generation::start(self, &wanted[known..], options)
    }

    /// Runs `tokens` behind those of the session; returns the logits of the last, `[vocab_size] f32`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no tokens or one beyond the vocabulary, [`Error::ContextFull`],
    /// [`Error::WrongResult`] for logits that cannot be right, and those of the device.
    pub fn eval(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.append(tokens)?;
        self.run_pending()?;
        Ok(&self.logits)
    }

    /// As [`Session::eval`], with the logits of every token: `[n_tokens, vocab_size] f32`.
    ///
    /// # Errors
    /// As [`Session::eval`].
    pub fn eval_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if self.n_cached < self.tokens.len() {
            self.run_pending()?;
        }
        self.append(tokens)?;
        let max_rows = self.engine.plan().max_outputs;
        let mut all = Vec::with_capacity(tokens.len() * self.engine.spec().vocab_size);
        while self.n_cached < self.tokens.len() {
            self.run_batch(max_rows, |_| Outputs::All, &mut None)?;
            all.extend_from_slice(&self.logits);
        }
        Ok(all)
    }

    /// Runs `tokens` as one batch and shows the output of every step to `observer`. Slow: each step
    /// is waited for and read back.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for more tokens than one batch has, else as [`Session::eval`].
    pub fn observe(
        &mut self,
        tokens: &[u32],
        observer: &mut dyn FnMut(Intermediate<'_>),
    ) -> Result<()> {
        if self.n_cached < self.tokens.len() {
            self.run_pending()?;
        }
        let max_rows = self.engine.plan().max_rows;
        if tokens.len() > max_rows {
            let message = format!("{} tokens, expected at most {max_rows}", tokens.len());
            return Err(Error::InvalidArgument {
                name: "tokens",
                message,
            });
        }
        self.append(tokens)?;
        let mut show = |seen: &Observation<'_>| {
            let Observation {
                step,
                values,
                width,
                ..
            } = *seen;
            observer(Intermediate {
                name: &step.name,
                values,
                width,
            });
            Ok(())
        };
        self.run_batch(max_rows, |_| Outputs::Last, &mut Some(&mut show))
    }

    /// Appends tokens without running them yet.
    pub(crate) fn append(&mut self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() && self.n_cached == self.tokens.len() {
            let message = "no tokens, expected at least one".to_owned();
            return Err(Error::InvalidArgument {
                name: "tokens",
                message,
            });
        }
        let vocab_size = self.engine.spec().vocab_size;
        if let Some(bad) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            let message = format!("token {bad}, expected less than {vocab_size}");
            return Err(Error::InvalidArgument {
                name: "tokens",
                message,
            });
        }
        self.engine
            .kv_layout()
            .check_room(self.tokens.len(), tokens.len())?;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Runs every token that is not in the cache yet; the logits of the last are kept.
    pub(crate) fn run_pending(&mut self) -> Result<()> {
        let max_rows = self.engine.plan().max_rows;
        let last = |is_last| {
            if is_last {
                Outputs::Last
            } else {
                Outputs::None
            }
        };
        while self.n_cached < self.tokens.len() {
            self.run_batch(max_rows, last, &mut None)?;
        }
        Ok(())
    }

    /// Runs the next at most `max_rows` tokens; `outputs` is told whether they are the last ones.
    fn run_batch(
        &mut self,
        max_rows: usize,
        outputs: impl Fn(bool) -> Outputs,
        observer: &mut Option<&mut crate::device::Observer<'_>>,
    ) -> Result<()> {
        let end = self.tokens.len().min(self.n_cached + max_rows);
        let batch = Batch {
            tokens: &self.tokens[self.n_cached..end],
            position: self.n_cached,
            outputs: outputs(end == self.tokens.len()),
        };
        let result = self
            .executor
            .run(&batch, &mut self.logits, observer.as_deref_mut())
            .and_then(|()| check_logits(&self.logits, batch.position));
        match result {
            Ok(()) => self.n_cached = end,
            // What did not run is not part of the session.
            Err(_) => self.tokens.truncate(self.n_cached),
        }
        result
    }

    /// The logits of the last token that ran, `[vocab_size] f32`.
    pub(crate) fn last_logits(&self) -> &[f32] {
        let vocab_size = self.engine.spec().vocab_size;
        &self.logits[self.logits.len().saturating_sub(vocab_size)..]
    }
}

/// The last line of defence: logits that are all zero, or not numbers, are an error and not an answer.
fn check_logits(logits: &[f32], position: usize) -> Result<()> {
    let wrong = |message: String| {
        Err(Error::WrongResult {
            step: "result_output".to_owned(),
            message,
        })
    };
    if let Some(index) = logits.iter().position(|logit| !logit.is_finite()) {
        return wrong(format!(
            "element {index} of the batch at position {position} is {}",
            logits[index]
        ));
    }
    if !logits.is_empty() && logits.iter().all(|&logit| logit == 0.0) {
        return wrong(format!(
            "every logit of the batch at position {position} is zero"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_that_cannot_be_right_are_an_error() {
        assert!(check_logits(&[0.0, 1.0], 0).is_ok());
        assert!(check_logits(&[], 0).is_ok());
        for wrong in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            let error = check_logits(&wrong, 7).unwrap_err().to_string();
            assert!(
                error.contains("result_output") && error.contains("position 7"),
                "{error}"
            );
        }
    }
}
