//! A step that is not what the reference says, and how.

use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt;

/// What was running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The prompt, many rows at once.
    Prefill,
    /// One token.
    Decode,
    /// Steps by themselves, on values made for them.
    Probe {
        /// Which values.
        input: Input,
        /// Rows of the batch.
        n_rows: usize,
    },
}

/// Values that steps are tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// Between -1 and 1, and a few of 20 times that.
    Random,
    /// So small that an epsilon matters.
    Tiny,
    /// Beyond what 16-bit floats hold.
    Huge,
    /// Zeros.
    Zero,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Phase::Prefill => f.write_str("prefill"),
            Phase::Decode => f.write_str("decode"),
            Phase::Probe { input, n_rows } => {
                let input = match input {
                    Input::Random => "random",
                    Input::Tiny => "tiny",
                    Input::Huge => "huge",
                    Input::Zero => "zero",
                };
                write!(f, "{input} values, {n_rows} rows")
            }
        }
    }
}

/// What is wrong with a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
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
#[derive(Clone, Debug, PartialEq, Serialize)]
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

impl Divergence {
    /// Ends an observed run where there is something to say.
    pub(super) fn end_run(divergence: Option<&Divergence>) -> Result<()> {
        divergence.map_or(Ok(()), |found| {
            Err(Error::WrongResult {
                step: found.step.clone(),
                message: "verification stops at the first divergence".to_owned(),
            })
        })
    }
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
