//! What a verification says: for people by `Display`, for programs by its fields.

use std::fmt;

/// What [`Engine::verify`](crate::Engine::verify) runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Run as one batch.
    pub prompt: String,
    /// Tokens of that batch, at most those of one batch of the device: the prompt is repeated or cut
    /// to it. More than 64 reach the second tile of every kernel.
    pub prompt_tokens: usize,
    /// Tokens run one at a time behind it, each the most likely one.
    pub decode_tokens: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        VerifyOptions {
            prompt: "The capital of France is".to_owned(),
            prompt_tokens: 70,
            decode_tokens: 2,
        }
    }
}

/// Which kind of batch was running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The prompt, many rows at once.
    Prefill,
    /// One token.
    Decode,
}

/// What is wrong with a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// A value differs from the reference by more than the bound.
    Differs {
        /// The device's value.
        found: f32,
        /// The reference's value.
        expected: f32,
        /// The largest difference that the step's arithmetic explains.
        bound: f32,
    },
    /// A value is infinite or not a number.
    NotFinite {
        /// The device's value.
        found: f32,
    },
    /// The reference itself overflows on the device's inputs: nothing can be said of the step.
    ReferenceNotFinite,
    /// Every value of the step is zero.
    AllZero,
    /// The step gave another number of values.
    Count {
        /// Values given.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// The device left the step out.
    Missing,
    /// Run as usual, without being watched, the device gives other logits than step by step.
    UnobservedDiffers {
        /// The logit of the usual run.
        found: f32,
        /// The logit of the watched one.
        expected: f32,
    },
}

/// The first step that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// The step's name, e.g. `blk.3.attn_norm`.
    pub step: String,
    /// The batch it was found in.
    pub phase: Phase,
    /// Position of the token whose row is wrong.
    pub position: usize,
    /// Row in the batch (behind the keys' rows come the values' rows where a cache store is wrong).
    pub row: usize,
    /// Element in the row.
    pub column: usize,
    /// What was found.
    pub finding: Finding,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Divergence {
            step,
            phase,
            position,
            row,
            column,
            finding,
        } = self;
        let phase = match phase {
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        };
        write!(f, "step `{step}` ({phase}, position {position}): ")?;
        match finding {
            Finding::Differs {
                found,
                expected,
                bound,
            } => write!(
                f,
                "row {row}, column {column} is {found:e}, the reference has {expected:e} \
                 (off by {:e}, bound {bound:e})",
                (found - expected).abs()
            ),
            Finding::NotFinite { found } => write!(f, "row {row}, column {column} is {found}"),
            Finding::ReferenceNotFinite => {
                write!(
                    f,
                    "row {row}, column {column} overflows on the reference as well"
                )
            }
            Finding::AllZero => f.write_str("every value is zero"),
            Finding::Count { found, expected } => {
                write!(f, "{found} values, expected {expected}")
            }
            Finding::Missing => f.write_str("was not run"),
            Finding::UnobservedDiffers { found, expected } => write!(
                f,
                "run as usual, row {row}, column {column} is {found:e}, but step by step {expected:e}"
            ),
        }
    }
}

/// The outcome of a verification.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VerifyReport {
    /// Tokens of the prompt that were verified, in one batch.
    pub prompt_tokens: usize,
    /// Tokens that were verified one at a time.
    pub decode_tokens: usize,
    /// Steps that agreed.
    pub n_steps: usize,
    /// Values that were compared.
    pub n_values: u64,
    /// The step that came nearest to its bound, and the share of the bound that its error took.
    pub nearest_to_bound: Option<(String, f32)>,
    /// The first step that is wrong.
    pub divergence: Option<Divergence>,
}

impl VerifyReport {
    /// Whether every step agreed.
    pub fn passed(&self) -> bool {
        self.divergence.is_none()
    }

    /// The first step that did not.
    pub fn first_divergence(&self) -> Option<&Divergence> {
        self.divergence.as_ref()
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VerifyReport {
            prompt_tokens,
            decode_tokens,
            n_steps,
            n_values,
            ..
        } = self;
        if let Some(divergence) = &self.divergence {
            return write!(f, "WRONG after {n_steps} right steps: {divergence}");
        }
        write!(
            f,
            "right: {n_steps} steps ({n_values} values) agree with the reference, for a batch of \
             {prompt_tokens} tokens and {decode_tokens} one at a time"
        )?;
        match &self.nearest_to_bound {
            Some((step, share)) => {
                write!(
                    f,
                    "; nearest to its bound: `{step}` at {:.1} %",
                    share * 100.0
                )
            }
            None => Ok(()),
        }
    }
}
