//! A real prompt on a device, each step checked against the reference on the device's own inputs.
//!
//! The device runs a step; the reference runs the same step on the inputs that the device had, which
//! were themselves checked when they were written. So every bound is that of one step, errors do not
//! add up, and the first step that is named is the one that is wrong.

#[cfg(test)]
mod tests;

use crate::device::reference::ReferenceExecutor;
use crate::device::{Executor, Observation};
use crate::error::{Error, Result};
use crate::kv_cache::{KvLayout, KvType};
use crate::model::Weights;
use crate::plan::{Batch, Op, Outputs, Plan};
use std::fmt;
use std::sync::Arc;

/// What [`Engine::verify`](crate::Engine::verify) runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Run as one batch.
    pub prompt: String,
    /// Tokens run one at a time behind it, each the most likely one.
    pub decode_tokens: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        VerifyOptions {
            prompt: "The capital of France is".to_owned(),
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
            Finding::AllZero => f.write_str("every value is zero"),
            Finding::Count { found, expected } => {
                write!(f, "{found} values, expected {expected}")
            }
            Finding::Missing => f.write_str("was not run"),
        }
    }
}

/// The outcome of a verification.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyReport {
    n_tokens: usize,
    n_steps: usize,
    n_values: u64,
    worst: Option<(String, f32)>,
    divergence: Option<Divergence>,
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

    /// Steps that were compared.
    pub fn n_steps(&self) -> usize {
        self.n_steps
    }

    /// The step that came nearest to its bound, and how near: 1 is at the bound.
    pub fn nearest_to_bound(&self) -> Option<(&str, f32)> {
        self.worst
            .as_ref()
            .map(|(step, share)| (step.as_str(), *share))
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VerifyReport {
            n_tokens,
            n_steps,
            n_values,
            worst,
            divergence,
        } = self;
        match divergence {
            Some(divergence) => write!(f, "WRONG after {n_steps} right steps: {divergence}"),
            None => {
                write!(
                    f,
                    "right: {n_steps} steps ({n_values} values, {n_tokens} tokens) agree "
                )?;
                f.write_str("with the reference")?;
                match worst {
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
    }
}

/// Compares every step of `executor` with the reference: `tokens` as one batch, then `decode_tokens`
/// one at a time.
pub(crate) fn verify(
    weights: &Weights,
    plan: &Arc<Plan>,
    kv: &KvLayout,
    executor: &mut dyn Executor,
    tokens: &[u32],
    decode_tokens: usize,
) -> Result<VerifyReport> {
    let mut verifier = Verifier {
        reference: ReferenceExecutor::new(weights.clone(), plan.clone(), kv),
        plan: plan.clone(),
        kv_type: kv.ty,
        report: VerifyReport {
            n_tokens: 0,
            n_steps: 0,
            n_values: 0,
            worst: None,
            divergence: None,
        },
    };
    if tokens.is_empty() {
        let message = "no tokens, expected at least one".to_owned();
        return Err(Error::InvalidArgument {
            name: "prompt",
            message,
        });
    }
    let prompt = &tokens[..tokens.len().min(kv.capacity).min(plan.max_rows)];
    let mut next = verifier.batch(executor, prompt, 0, Phase::Prefill)?;
    let n_decode = decode_tokens.min(kv.capacity - prompt.len());
    for position in prompt.len()..prompt.len() + n_decode {
        let Some(token) = next else { break };
        next = verifier.batch(executor, &[token], position, Phase::Decode)?;
    }
    Ok(verifier.report)
}

struct Verifier {
    reference: ReferenceExecutor,
    plan: Arc<Plan>,
    kv_type: KvType,
    report: VerifyReport,
}

/// Ends an observed run whose divergence is already in the report.
const STOP: &str = "verification stops at the first divergence";

impl Verifier {
    /// Verifies one batch; the most likely next token, or `None` after a divergence.
    fn batch(
        &mut self,
        executor: &mut dyn Executor,
        tokens: &[u32],
        position: usize,
        phase: Phase,
    ) -> Result<Option<u32>> {
        let batch = Batch {
            tokens,
            position,
            outputs: Outputs::Last,
        };
        let mut logits = Vec::new();
        let mut next_step = 0;
        let mut observer = |seen: &Observation<'_>| {
            let missing = (seen.index != next_step).then_some(next_step);
            next_step = seen.index + 1;
            let wrong = match missing {
                Some(_) => Some((0, 0, Finding::Missing)),
                None => self.step(&batch, seen),
            };
            match wrong {
                Some((row, column, finding)) => {
                    let index = missing.unwrap_or(seen.index);
                    self.diverge(index, &batch, phase, (row, column), finding);
                    Err(Error::WrongResult {
                        step: self.plan.steps[index].name.clone(),
                        message: STOP.to_owned(),
                    })
                }
                None => Ok(()),
            }
        };
        let result = executor.run(&batch, &mut logits, Some(&mut observer));
        if self.report.divergence.is_some() {
            return Ok(None);
        }
        result?;
        if next_step != self.plan.steps.len() {
            self.diverge(next_step, &batch, phase, (0, 0), Finding::Missing);
            return Ok(None);
        }
        self.report.n_tokens += tokens.len();
        let last = self.plan.steps.len() - 1;
        let expected = self.reference.buffer(self.plan.logits);
        if let Some((row, column, finding)) = compare(&logits, expected, |_| 0.0).wrong {
            self.diverge(last, &batch, phase, (row, column), finding);
            return Ok(None);
        }
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        Ok(best.map(|(token, _)| token as u32))
    }

    fn diverge(
        &mut self,
        index: usize,
        batch: &Batch<'_>,
        phase: Phase,
        (row, column): (usize, usize),
        finding: Finding,
    ) {
        let step = &self.plan.steps[index];
        let is_output = step
            .op
            .dst()
            .is_some_and(|dst| self.plan.buffer(dst).extent == crate::plan::Extent::Outputs);
        let first = if is_output {
            batch.n_rows() - batch.n_outputs()
        } else {
            0
        };
        self.report.divergence = Some(Divergence {
            step: step.name.clone(),
            phase,
            position: batch.position + (first + row) % batch.n_rows(),
            row,
            column,
            finding,
        });
    }

    /// Runs a step on the reference, compares, and takes the device's values over as inputs of later steps.
    fn step(
        &mut self,
        batch: &Batch<'_>,
        seen: &Observation<'_>,
    ) -> Option<(usize, usize, Finding)> {
        self.reference.step(seen.index, batch);
        let op = &self.plan.steps[seen.index].op;
        let expected = match (op, op.dst()) {
            (Op::StoreKv { layer, .. }, _) => self.reference.cached_rows(*layer, batch),
            (_, Some(dst)) => self.reference.buffer(dst).to_vec(),
            (_, None) => Vec::new(),
        };
        let tolerance = tolerance(op, self.kv_type);
        let bound = |row: &[f32]| tolerance * rms(row);
        let width = seen.width.max(1);
        let outcome = compare_rows(seen.values, &expected, width, bound);
        self.report.n_steps += usize::from(outcome.wrong.is_none());
        self.report.n_values += seen.values.len() as u64;
        if self
            .report
            .worst
            .as_ref()
            .is_none_or(|(_, share)| outcome.share > *share)
        {
            self.report.worst = Some((seen.step.name.clone(), outcome.share));
        }
        match (op, op.dst()) {
            (Op::StoreKv { layer, .. }, _) if outcome.wrong.is_none() => {
                self.reference.set_cached_rows(*layer, batch, seen.values);
            }
            (_, Some(dst)) => self.reference.set_buffer(dst, seen.values),
            _ => {}
        }
        outcome.wrong
    }
}

/// The error of one step, as a share of the row's root mean square, that its arithmetic in `f32`
/// explains. Measured on lavapipe, an NVIDIA H200 and the CPU (docs/KERNELS.md), times about ten.
fn tolerance(op: &Op, kv: KvType) -> f32 {
    match op {
        Op::Embed { .. } | Op::Add { .. } | Op::SelectOutputs { .. } => 2e-6,
        Op::RmsNorm { .. } | Op::Rope { .. } | Op::GatedActivation { .. } => 2e-5,
        Op::MatMul { .. } => 1e-4,
        Op::Attention { .. } => 1e-4,
        // One unit in the last place, where the device rounds the other way.
        Op::StoreKv { .. } => match kv {
            KvType::F32 => 1e-7,
            KvType::F16 => 1e-3,
        },
    }
}

fn rms(values: &[f32]) -> f32 {
    let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
    (squares / values.len().max(1) as f64).sqrt() as f32
}

/// What a comparison found: the first wrong place, and the largest share of its bound that an error took.
struct Outcome {
    wrong: Option<(usize, usize, Finding)>,
    share: f32,
}

fn compare(found: &[f32], expected: &[f32], bound: impl Fn(&[f32]) -> f32) -> Outcome {
    compare_rows(found, expected, expected.len().max(1), bound)
}

/// Compares rows of `width` elements; an element may differ by `bound(row)` and by what its own size
/// makes of that.
fn compare_rows(
    found: &[f32],
    expected: &[f32],
    width: usize,
    bound: impl Fn(&[f32]) -> f32,
) -> Outcome {
    let wrong = |row, column, finding| Outcome {
        wrong: Some((row, column, finding)),
        share: 1.0,
    };
    if found.len() != expected.len() {
        let finding = Finding::Count {
            found: found.len(),
            expected: expected.len(),
        };
        return wrong(0, 0, finding);
    }
    if let Some(index) = found.iter().position(|value| !value.is_finite()) {
        let finding = Finding::NotFinite {
            found: found[index],
        };
        return wrong(index / width, index % width, finding);
    }
    if !found.is_empty() && found.iter().all(|&value| value == 0.0) {
        return wrong(0, 0, Finding::AllZero);
    }
    let mut share = 0.0f32;
    let rows = found.chunks(width).zip(expected.chunks(width)).enumerate();
    for (row, (found, expected)) in rows {
        let of_row = bound(expected);
        let relative = of_row / rms(expected).max(f32::MIN_POSITIVE);
        for (column, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let bound = of_row.max(relative * expected.abs());
            let error = (found - expected).abs();
            if !(error <= bound) {
                return wrong(
                    row,
                    column,
                    Finding::Differs {
                        found,
                        expected,
                        bound,
                    },
                );
            }
            if bound > 0.0 {
                share = share.max(error / bound);
            }
        }
    }
    Outcome { wrong: None, share }
}
