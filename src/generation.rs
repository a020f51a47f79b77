//! The generate loop: sample, decode, stop; one token at a time, as the caller asks for them.

mod repetition;

use self::repetition::Repetition;
use crate::device::{ChosenToken, Sentinels, TOKENS_AHEAD};
use crate::error::{Error, Result};
use crate::kernels::logit_maxima::ordered;
use crate::sampler::{Sampler, SamplingOptions, StopMatcher};
use crate::session::Session;
use crate::tokenizer::StreamDecoder;
use std::time::{Duration, Instant};

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// How each token is chosen.
    pub sampling: SamplingOptions,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Whether special tokens written out in the prompt (`<|im_start|>`) count as such.
    pub parse_special: bool,
    /// Whether the answer goes on behind a token by which the model ends it, as if it were any other:
    /// for measurements of a fixed length.
    pub ignore_eos: bool,
}

impl Default for GenerateOptions {
    /// 512 tokens, default sampling, no stop strings, special tokens parsed, ends when the model says so.
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 512,
            sampling: SamplingOptions::default(),
            stop: Vec::new(),
            parse_special: true,
            ignore_eos: false,
        }
    }
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The token; `None` for text that was held back and is released at the end.
    pub token: Option<u32>,
    /// Whole characters; empty while a character or a possible stop string is incomplete.
    pub text: String,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said so.
    EndOfGeneration,
    /// This stop string came.
    Stop(String),
    /// [`GenerateOptions::max_tokens`] were generated.
    MaxTokens,
    /// The session holds no more tokens.
    ContextFull,
}

/// Counts and times of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerateStats {
    /// Tokens of the prompt that ran (those in the cache already are not counted).
    pub n_prompt_tokens: usize,
    /// Time for the prompt.
    pub prompt_time: Duration,
    /// Tokens generated.
    pub n_generated: usize,
    /// Time for the generated tokens, the caller's own work between them not included.
    pub generate_time: Duration,
}

impl GenerateStats {
    /// Prompt tokens a second.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        per_second(self.n_prompt_tokens, self.prompt_time)
    }

    /// Generated tokens a second.
    pub fn generated_tokens_per_second(&self) -> f64 {
        per_second(self.n_generated, self.generate_time)
    }
}

fn per_second(count: usize, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        count as f64 / time.as_secs_f64()
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Counts and times.
    pub stats: GenerateStats,
}

/// An answer under way: iterate for its pieces, or collect it with [`Generation::text`] or
/// [`Generation::complete`]. Dropping it stops; what was generated stays in the session.
pub struct Generation<'a> {
    session: &'a mut Session,
    sampler: Sampler,
    /// Of the tokens that the device chooses itself; `None` where the sampler chooses them here.
    ahead: Option<Ahead>,
    decoder: StreamDecoder,
    stop: StopMatcher,
    repetition: Repetition,
    options: GenerateOptions,
    stats: GenerateStats,
    /// Why it ended, or the error that ended it; `None` while it goes on.
    end: Option<Result<FinishReason>>,
}

/// Positions of tokens that the device chooses ahead.
struct Ahead {
    /// The first that is not queued yet.
    next: usize,
    /// No token is needed from here on.
    end: usize,
}

impl<'a> Generation<'a> {
    pub(crate) fn start(
        session: &'a mut Session,
        n_kept: usize,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Self> {
        let tokenizer = session.engine().tokenizer();
        // Rows of the embedding behind the last token stand for nothing.
        let sampler = Sampler::new(&options.sampling, tokenizer.vocab_size())?;
        let stop = StopMatcher::new(&options.stop)?;
        let before = [&session.tokens()[..n_kept], prompt].concat();
        let decoder = tokenizer.decoder_after(&before)?;
        let started = Instant::now();
        // The one place where it is decided who chooses.
        let can_chain = match sampler.plain() {
            Some(plain) => session.start_chain(&plain)?,
            None => false,
        };
        session.replace_tail(n_kept, prompt, Session::run_pending)?;
        let ahead = can_chain.then(|| {
            let next = session.tokens().len();
            // Behind a full session a token is chosen still, as it may be the one that ends the answer.
            let capacity = session.engine().context_length();
            let end = next.saturating_add(options.max_tokens).min(capacity + 1);
            Ahead { next, end }
        });
        let stats = GenerateStats {
            n_prompt_tokens: prompt.len(),
            prompt_time: started.elapsed(),
            ..Default::default()
        };
        let repetition = match session.engine().sentinels() {
            Sentinels::Off => Repetition::off(),
            Sentinels::Every(_) => Repetition::new(session.tokens()),
        };
        let options = options.clone();
        Ok(Generation {
            session,
            sampler,
            ahead,
            decoder,
            stop,
            repetition,
            options,
            stats,
            end: None,
        })
    }

    /// Why the answer ended; `None` while it goes on, and where it failed.
    pub fn finish_reason(&self) -> Option<&FinishReason> {
        self.end.as_ref()?.as_ref().ok()
    }

    /// Counts and times so far.
    pub fn stats(&self) -> GenerateStats {
        self.stats
    }

    /// The seed of the sampler, for asking the same again.
    pub fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// The rest of the answer's text.
    ///
    /// # Errors
    /// As [`Generation::complete`].
    pub fn text(self) -> Result<String> {
        Ok(self.complete()?.text)
    }

    /// The rest of the answer.
    ///
    /// # Errors
    /// The first error of a step, also where it was given as a piece before: [`Error::WrongResult`], also for
    /// an answer that repeats one token 16 times from its start from the same logits, or those of the device.
    pub fn complete(mut self) -> Result<Completion> {
        let (mut text, mut tokens) = (String::new(), Vec::new());
        let finish_reason = loop {
            if let Some(end) = self.end.take() {
                break end?;
            }
            if let Some(piece) = self.next().transpose()? {
                text += &piece.text;
                tokens.extend(piece.token);
            }
        };
        Ok(Completion {
            text,
            tokens,
            finish_reason,
            stats: self.stats,
        })
    }

    /// The next token with its text; `None` where the answer has ended.
    fn step(&mut self) -> Result<Option<Piece>> {
        if self.stats.n_generated == self.options.max_tokens {
            return Ok(self.finish(FinishReason::MaxTokens));
        }
        let ChosenToken {
            token,
            largest_logit,
        } = self.next_token()?;
        let tokenizer = self.session.engine().tokenizer();
        if let Err(error) = self.repetition.see(token, largest_logit, tokenizer) {
            self.session.distrust();
            return Err(error);
        }
        if tokenizer.is_end_of_generation(token) && !self.options.ignore_eos {
            return Ok(self.finish(FinishReason::EndOfGeneration));
        }
        match self.session.push(token) {
            Err(Error::ContextFull { .. }) => return Ok(self.finish(FinishReason::ContextFull)),
            result => result?,
        }
        self.stats.n_generated += 1;
        let text = self.decoder.push(token)?;
        let outcome = self.stop.push(&text);
        if let Some(index) = outcome.stop {
            let stop = self.options.stop[index].clone();
            self.end = Some(Ok(FinishReason::Stop(stop)));
        }
        Ok(Some(Piece {
            token: Some(token),
            text: outcome.text,
        }))
    }

    fn next_token(&mut self) -> Result<ChosenToken> {
        let position = self.session.tokens().len();
        if let Some(ahead) = &mut self.ahead {
            while ahead.next < ahead.end.min(position + 1 + TOKENS_AHEAD) {
                self.session.queue_token(ahead.next, self.sampler.draw())?;
                ahead.next += 1;
            }
            return self.session.read_token();
        }
        // The token before this one runs now, so that the last one of an answer never does in vain.
        self.session.run_pending()?;
        let n_tokens = self.session.engine().tokenizer().vocab_size();
        let logits = &self.session.last_logits()[..n_tokens];
        let largest_logit = match self.repetition.is_open() {
            true => logits.iter().map(|&logit| ordered(logit)).max(),
            false => None,
        };
        Ok(ChosenToken {
            token: self.sampler.sample(logits, self.session.tokens())?,
            largest_logit: largest_logit.unwrap_or(0),
        })
    }

    /// Ends the answer with the text that was held back, if there is any.
    fn finish(&mut self, reason: FinishReason) -> Option<Piece> {
        let rest = self.decoder.finish();
        let outcome = self.stop.push(&rest);
        let (text, reason) = match outcome.stop {
            Some(index) => (
                outcome.text,
                FinishReason::Stop(self.options.stop[index].clone()),
            ),
            None => (outcome.text + &self.stop.finish(), reason),
        };
        self.end = Some(Ok(reason));
        (!text.is_empty()).then_some(Piece { token: None, text })
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.end.is_some() {
            return None;
        }
        let started = Instant::now();
        let result = self.step();
        self.stats.generate_time += started.elapsed();
        if let Err(error) = &result {
            self.end = Some(Err(error.clone()));
        }
        result.transpose()
    }
}
