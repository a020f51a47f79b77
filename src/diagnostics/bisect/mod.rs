//! Which steps of a device make the answer wrong, and which optional feature.

mod features;
mod mixed;
#[cfg(test)]
mod tests;

pub use features::{FeatureReport, FeatureTrial, TrialOutcome, find_feature};

use super::relative_error;
use super::verify::{Phase, Verified, VerifyOptions, prompt_tokens, verified};
use crate::device::{Executor, Rounding};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::kv_cache::KvType;
use crate::plan::{Batch, Outputs};
use mixed::Mixed;
use serde::Serialize;
use std::fmt;
use std::ops::Range;

/// The steps of a device that turn a right answer into a wrong one.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Culprit {
    /// Where the answer turns wrong: `blk.3.attn_norm`, .. One dispatch may compute several.
    pub steps: Vec<String>,
    /// In which batch.
    pub phase: Phase,
    /// The relative error of the logits where the device runs all up to these, and the reference the rest.
    pub error: f64,
    /// The same where the device runs all but these, and the reference these.
    pub error_without: f64,
}

/// What a search for wrong steps came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BisectReport {
    /// The largest relative error of the logits (their means taken off) that rounding explains.
    pub bound: f64,
    /// The relative error of the logits of the device against the reference: of the prompt as one batch, and
    /// of a token behind it.
    pub errors: Vec<(Phase, f64)>,
    /// Runs that were compared with the reference.
    pub n_runs: usize,
    /// The first steps that make the answer wrong.
    pub culprit: Option<Culprit>,
}

impl Culprit {
    /// Whether the answer is right with these steps alone on the reference.
    pub fn is_only_one(&self, bound: f64) -> bool {
        self.error_without <= bound
    }
}

impl fmt::Display for BisectReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BisectReport {
            bound,
            errors,
            n_runs,
            culprit,
        } = self;
        for (phase, error) in errors {
            writeln!(
                f,
                "logits ({phase}): relative error {error:.1e} against the reference, bound {bound:.1e}"
            )?;
        }
        let Some(culprit) = culprit else {
            return f.write_str("right: the device's answer is that of the reference");
        };
        let Culprit {
            steps,
            phase,
            error,
            error_without,
        } = culprit;
        let steps = match &steps[..] {
            [step] => format!("step `{step}`"),
            [first, .., last] => format!("steps `{first}` to `{last}`, which run together,"),
            [] => String::new(),
        };
        write!(
            f,
            "WRONG: {steps} ({phase}): with all up to it on the device the error is {error:.1e}; with it alone on \
             the reference {error_without:.1e}, so that it is {} ({n_runs} runs)",
            if culprit.is_only_one(*bound) {
                "the only one"
            } else {
                "not the only one"
            },
        )
    }
}

/// The relative error of logits, their means taken off, that a device may have against the reference, which rounds
/// as it does: what docs/NUMERICS.md allows, 16-bit floats twice that (seen: 2e-2 of int8, 3e-3, 5e-6).
fn bound(rounding: Rounding, kv: KvType) -> f64 {
    if rounding.int8_rows > 0 {
        0.065
    } else if rounding.f16_above.is_some() || kv == KvType::F16 {
        1e-2
    } else {
        2e-4
    }
}

/// Searches the first steps that make the answer to the prompt wrong.
///
/// # Errors
/// Those of the device and the tokenizer.
pub(crate) fn bisect(engine: &Engine, options: &VerifyOptions) -> Result<BisectReport> {
    let tokens = prompt_tokens(engine, options, 1)?;
    let (verified, executor) = verified(engine, tokens.len() + 1)?;
    search(&verified, executor, &tokens)
}

/// Searches the first steps of a device that make the logits of `tokens` wrong, as one batch and then one more.
fn search(
    verified: &Verified,
    executor: Box<dyn Executor>,
    tokens: &[u32],
) -> Result<BisectReport> {
    let mut search = Search {
        mixed: Mixed::new(verified, executor),
        verified,
        report: BisectReport {
            bound: bound(verified.rounding, verified.kv.ty),
            errors: Vec::new(),
            n_runs: 0,
            culprit: None,
        },
    };
    let all: Vec<u32> = tokens.iter().chain(&tokens[..1]).copied().collect();
    for (phase, range) in [
        (Phase::Prefill, 0..tokens.len()),
        (Phase::Decode, tokens.len()..all.len()),
    ] {
        let batch = Batch {
            tokens: &all[range.clone()],
            position: range.start,
            outputs: Outputs::Last,
        };
        // Behind a text of an encoder there is none.
        if search.batch(&batch, phase)? || !verified.plan.is_causal() {
            break;
        }
    }
    Ok(search.report)
}

/// The logits of the last of `tokens`, run as one batch from position 0, with some steps on the reference.
///
/// # Errors
/// Those of the device; [`Error::InvalidArgument`] for tokens or steps that there are not.
pub(crate) fn logits_with_reference(
    engine: &Engine,
    tokens: &[u32],
    on_reference: Range<usize>,
) -> Result<Vec<f32>> {
    let plan = engine.plan();
    engine.check_batch(tokens)?;
    engine.check_tokens(tokens)?;
    if on_reference.start > on_reference.end || on_reference.end > plan.steps.len() {
        let message = format!("{on_reference:?}, the plan has {} steps", plan.steps.len());
        return Err(Error::InvalidArgument {
            name: "on_reference",
            message,
        });
    }
    engine.kv_layout().check_room(0, tokens.len())?;
    let (verified, executor) = verified(engine, tokens.len())?;
    let batch = Batch {
        tokens,
        position: 0,
        outputs: Outputs::Last,
    };
    Mixed::new(&verified, executor).run(&batch, &on_reference)
}

struct Search<'a> {
    mixed: Mixed,
    verified: &'a Verified,
    report: BisectReport,
}

impl Search<'_> {
    /// Searches one batch, whose cache is right when it begins and ends; true where it found something.
    fn batch(&mut self, batch: &Batch<'_>, phase: Phase) -> Result<bool> {
        let plan = &self.verified.plan;
        let n_steps = plan.steps.len();
        let expected = self.mixed.run(batch, &(0..n_steps))?;
        let parts = self.mixed.parts(batch);
        let end_of = |n_parts: usize| parts[..n_parts].last().map_or(0, |part| part.end);

        let all = self.error(batch, n_steps..n_steps, &expected)?;
        self.report.errors.push((phase, all));
        let is_wrong = |error: f64, bound: f64| !(error <= bound);
        let bound = self.report.bound;
        if !is_wrong(all, bound) {
            self.mixed.run(batch, &(0..n_steps))?;
            return Ok(false);
        }
        // The answer is right with the first `right` parts on the device, and wrong with the first `wrong`.
        let (mut right, mut wrong) = (0, parts.len());
        let mut error_of_wrong = all;
        while wrong - right > 1 {
            let middle = right + (wrong - right) / 2;
            let error = self.error(batch, end_of(middle)..n_steps, &expected)?;
            if is_wrong(error, bound) {
                (wrong, error_of_wrong) = (middle, error);
            } else {
                right = middle;
            }
        }
        let part = parts[right].clone();
        let error_without = self.error(batch, part.clone(), &expected)?;
        let names = plan.steps[part].iter().map(|step| step.name.clone());
        self.report.culprit = Some(Culprit {
            steps: names.collect(),
            phase,
            error: error_of_wrong,
            error_without,
        });
        Ok(true)
    }

    fn error(
        &mut self,
        batch: &Batch<'_>,
        on_reference: Range<usize>,
        expected: &[f32],
    ) -> Result<f64> {
        self.report.n_runs += 1;
        let found = self.mixed.run(batch, &on_reference)?;
        Ok(relative_error(&found, expected))
    }
}
