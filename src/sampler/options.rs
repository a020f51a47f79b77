//! The options of a sampler.

use crate::error::{Error, Result};

/// How the next token is chosen. The [module](crate::sampler) has the formulas and their order.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Above 1 the choice is wilder, below 1 tamer; 0 takes the most probable token (greedy).
    pub temperature: f32,
    /// Only this many of the most probable tokens can be chosen; 0 is off.
    pub top_k: usize,
    /// Only the most probable tokens that hold this share of the probability can be chosen, in
    /// 0..=1; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this many times as probable as the most probable one can be chosen, in
    /// 0..=1; 0 is off.
    pub min_p: f32,
    /// Above 1 a recent token becomes less likely; 1 is off.
    pub repetition_penalty: f32,
    /// Taken from the logit of a recent token for each time it occurs; 0 is off.
    pub frequency_penalty: f32,
    /// Taken once from the logit of a recent token; 0 is off.
    pub presence_penalty: f32,
    /// How many of the last tokens count as recent for the three penalties; 0 turns them off.
    pub penalty_window: usize,
    /// Token ids with what is added to their logits; −∞ bans a token. Entries of one token add up.
    pub logit_bias: Vec<(u32, f32)>,
    /// Fixes the random sequence; without it each sampler draws its own seed.
    pub seed: Option<u64>,
}

impl Default for SamplingOptions {
    /// The defaults of llama.cpp: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalty (a
    /// window of 64 tokens once there is one), no bias and no seed.
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 64,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// Sampling that depends on nothing but the logits and a random number, so that a device can do it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PlainSampling {
    /// The logits in front that stand for tokens.
    pub(crate) n_tokens: usize,
    pub(crate) temperature: f32,
    pub(crate) top_k: usize,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
}

impl SamplingOptions {
    /// The most probable token each time, everything else off.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            ..Self::default()
        }
    }

    /// Checks every option for a vocabulary of `vocab_size` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the name of the first option outside its range.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        let finite = "a finite number";
        let share = "a number from 0 to 1";
        let numbers = [
            (
                "temperature",
                self.temperature,
                self.temperature >= 0.0,
                "a finite number from 0",
            ),
            (
                "top_p",
                self.top_p,
                (0.0..=1.0).contains(&self.top_p),
                share,
            ),
            (
                "min_p",
                self.min_p,
                (0.0..=1.0).contains(&self.min_p),
                share,
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
                "a finite number above 0",
            ),
            ("frequency_penalty", self.frequency_penalty, true, finite),
            ("presence_penalty", self.presence_penalty, true, finite),
        ];
        for (name, value, in_range, expected) in numbers {
            if !(in_range && value.is_finite()) {
                let message = format!("{value}, expected {expected}");
                return Err(Error::InvalidArgument { name, message });
            }
        }
        for &(token_id, bias) in &self.logit_bias {
            let name = "logit_bias";
            if token_id as usize >= vocab_size {
                let message = format!("token {token_id}, expected one below {vocab_size}");
                return Err(Error::InvalidArgument { name, message });
            }
            if bias.is_nan() || bias == f32::INFINITY {
                let message = format!("{bias} for token {token_id}, expected {finite} or -inf");
                return Err(Error::InvalidArgument { name, message });
            }
        }
        Ok(())
    }

    /// Whether any of the three penalties changes a logit.
    pub(super) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }
}
