//! From logits to the next token's id, and from text to the place where it must stop.
//!
//! [`Sampler::sample`] runs these stages in this order, which is the default order of llama.cpp
//! (`common/sampling.cpp` and the `samplers` list of `common/common.h`; its stages that have no
//! option here are off by default there too). With *l* a token's logit and *l_max* the largest:
//!
//! 1. **logit bias**: *l* + bias;
//! 2. **penalties** on each token among the last `penalty_window`, which occurs there *c* times:
//!    first repetition, *l* / θ where *l* > 0 and *l* · θ elsewhere (Keskar et al. 2019,
//!    arXiv:1909.05858, section 4.1, divides in both cases, which would favour a repeated token
//!    whose logit is negative; llama.cpp and transformers multiply there), then
//!    *l* − *c* · frequency − presence (OpenAI's API reference);
//! 3. at temperature 0 the largest logit wins, the lowest id among equals, and the rest is skipped;
//! 4. **top-k**: the k largest logits (Fan et al. 2018, arXiv:1805.04833);
//! 5. **top-p**: of what is left, the fewest most probable tokens whose probabilities add up to at
//!    least p (Holtzman et al. 2019, arXiv:1904.09751, section 3.1);
//! 6. **min-p**: the tokens at least min_p times as probable as the most probable one (Nguyen et
//!    al. 2024, arXiv:2407.01082), that is exp(*l* − *l_max*) ≥ min_p;
//! 7. **temperature** T: one token is drawn with a probability proportional to
//!    exp((*l* − *l_max*) / T).
//!
//! Top-p and min-p thus see the probabilities at temperature 1. Equal logits rank by id, lowest
//! first. The same options, seed and logits give the same tokens on every platform: nothing here
//! calls the platform's mathematics library.

mod options;
pub(crate) mod random;
mod stages;
mod stop;

pub(crate) use options::PlainSampling;
pub use options::SamplingOptions;
pub use stop::{StopMatcher, StopOutcome};

use std::hash::{BuildHasher, RandomState};

use crate::error::{Error, Result};
use random::SplitMix64;
use stages::Candidate;

/// Chooses tokens as [`SamplingOptions`] say, with a random sequence and scratch memory of its own.
///
/// # Examples
/// ```
/// use trueshot::sampler::{Sampler, SamplingOptions};
///
/// let mut sampler = Sampler::new(&SamplingOptions::greedy(), 3)?;
/// assert_eq!(sampler.sample(&[0.1, 2.0, 0.3], &[])?, 1);
/// # Ok::<(), trueshot::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    vocab_size: usize,
    seed: u64,
    random: SplitMix64,
    // Scratch, kept from token to token.
    adjusted: Vec<f32>,
    window: Vec<u32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for logits of `vocab_size` tokens. Without a seed in `options` the operating
    /// system's randomness gives one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] as [`SamplingOptions::validate`].
    pub fn new(options: &SamplingOptions, vocab_size: usize) -> Result<Self> {
        options.validate(vocab_size)?;
        let seed = options
            .seed
            .unwrap_or_else(|| RandomState::new().hash_one(0_u8));
        Ok(Self {
            options: options.clone(),
            vocab_size,
            seed,
            random: SplitMix64::new(seed),
            adjusted: Vec::new(),
            window: Vec::new(),
            candidates: Vec::new(),
        })
    }

    /// The seed in use: the one given, or the one drawn where none was given.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What a choice depends on where that is the logits and one random number alone; `None` with
    /// penalties or a bias.
    pub(crate) fn plain(&self) -> Option<PlainSampling> {
        let options = &self.options;
        let has_penalties = options.has_penalties() && options.penalty_window > 0;
        (!has_penalties && options.logit_bias.is_empty()).then_some(PlainSampling {
            n_tokens: self.vocab_size,
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
        })
    }

    /// The random number of the next choice, for a device that makes it: the upper half of that
    /// which [`Sampler::sample`] would draw.
    pub(crate) fn draw(&mut self) -> u32 {
        (self.random.next_u64() >> 32) as u32
    }

    /// Chooses the next token.
    ///
    /// `logits` is `[vocab_size] f32`, where −∞ masks a token out. `recent` is the tokens so far,
    /// the oldest first; only the last [`penalty_window`](SamplingOptions::penalty_window) count.
    /// A call draws one random number at a temperature above 0, and none at 0 or on an error.
    ///
    /// # Errors
    /// [`Error::WrongResult`] for step `result_output` where a logit is NaN or +∞ or all are −∞;
    /// [`Error::InvalidArgument`] for `logits` of another length, for a token in `recent` outside
    /// the vocabulary, and for a `logit_bias` that bans every token.
    pub fn sample(&mut self, logits: &[f32], recent: &[u32]) -> Result<u32> {
        if logits.len() != self.vocab_size {
            return Err(Error::InvalidArgument {
                name: "logits",
                message: format!("length {}, expected {}", logits.len(), self.vocab_size),
            });
        }
        let mut best = check_logits(logits)?;
        let options = &self.options;
        let window = &recent[recent.len().saturating_sub(options.penalty_window)..];
        let adjusts =
            options.has_penalties() && !window.is_empty() || !options.logit_bias.is_empty();
        let logits = if adjusts {
            self.adjusted.clear();
            self.adjusted.extend_from_slice(logits);
            stages::add_bias(&mut self.adjusted, &options.logit_bias);
            if options.has_penalties() {
                self.window.clear();
                self.window.extend_from_slice(window);
                self.window.sort_unstable();
                check_window(&self.window, self.vocab_size)?;
                stages::penalise(&mut self.adjusted, &self.window, options);
            }
            best = stages::largest(&self.adjusted);
            if best == f32::NEG_INFINITY {
                return Err(Error::InvalidArgument {
                    name: "logit_bias",
                    message: "no token is left, expected at least one that is not banned".into(),
                });
            }
            &self.adjusted
        } else {
            logits
        };
        if options.temperature == 0.0 {
            let token_id = logits.iter().position(|&logit| logit == best);
            return Ok(token_id.expect("the largest logit is among the logits") as u32);
        }
        let candidates = &mut self.candidates;
        stages::keep_top_k(logits, options.top_k, candidates);
        stages::keep_top_p(candidates, best, options.top_p);
        stages::keep_min_p(candidates, best, options.min_p);
        Ok(stages::draw(
            candidates,
            best,
            options.temperature,
            self.random.next_unit(),
        ))
    }
}

/// The largest of logits that can be sampled from.
fn check_logits(logits: &[f32]) -> Result<f32> {
    let wrong = |message| Error::WrongResult {
        step: "result_output".into(),
        message,
    };
    if !stages::all_below_infinity(logits)
        && let Some(token_id) = logits
            .iter()
            .position(|l| l.is_nan() || *l == f32::INFINITY)
    {
        let found = logits[token_id];
        return Err(wrong(format!(
            "the logit of token {token_id} is {found}, expected a number"
        )));
    }
    let best = stages::largest(logits);
    if best == f32::NEG_INFINITY {
        return Err(wrong(format!(
            "all {} logits are -inf, expected a number",
            logits.len()
        )));
    }
    Ok(best)
}

/// Refuses a sorted window that holds a token outside the vocabulary.
fn check_window(sorted_window: &[u32], vocab_size: usize) -> Result<()> {
    match sorted_window.last() {
        Some(&token_id) if token_id as usize >= vocab_size => Err(Error::InvalidArgument {
            name: "recent",
            message: format!("token {token_id}, expected one below {vocab_size}"),
        }),
        _ => Ok(()),
    }
}
