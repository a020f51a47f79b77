//! A real prompt on a device, each step checked against the reference on the device's own inputs.
//!
//! The device runs a step; the reference runs the same step on the inputs that the device had, which
//! were themselves checked when they were written. So every bound is that of one step, errors do not
//! add up, and the first step that is named is the one that is wrong. In the end the device runs the
//! same tokens once more as it always does, unwatched, and must give the same logits.

mod compare;
mod depth;
mod file;
mod report;
#[cfg(test)]
mod tests;
mod upload;

pub use depth::Depth;
pub(crate) use file::check_file;
pub use file::{BlockScale, FileReport, TensorFault, TensorReport};
pub use report::{Divergence, Finding, Phase, VerifyOptions, VerifyReport};
pub use upload::UploadReport;
pub(crate) use upload::check_upload;

use crate::device::reference::ReferenceExecutor;
use crate::device::{Executor, Observation, Rounding};
use crate::error::{Error, Result};
use crate::kv_cache::KvLayout;
use crate::model::Weights;
use crate::plan::{Batch, Extent, Op, Outputs, Plan};
use compare::{compare, tolerance};
use std::sync::Arc;

/// Compares every step of `executor` with the reference: `tokens` as one batch, then `decode_tokens`
/// one at a time.
pub(crate) fn verify(
    weights: &Weights,
    plan: &Arc<Plan>,
    kv: &KvLayout,
    rounding: Rounding,
    executor: &mut dyn Executor,
    tokens: &[u32],
    decode_tokens: usize,
) -> Result<VerifyReport> {
    let mut verifier = Verifier {
        reference: ReferenceExecutor::new(weights.clone(), plan.clone(), kv),
        plan: plan.clone(),
        weights: weights.clone(),
        rounding,
        report: VerifyReport::default(),
    };
    let mut tokens = tokens.to_vec();
    let n_prompt = tokens.len();
    let mut watched = Vec::new();
    for n_done in 0..=decode_tokens {
        let batch = batch_of(&tokens, n_prompt, n_done);
        let Some(logits) = verifier.observe(executor, &batch)? else {
            return Ok(verifier.report);
        };
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        tokens.extend(best.map(|token| token as u32));
        watched.push(logits);
    }
    for (n_done, watched) in watched.iter().enumerate() {
        let batch = batch_of(&tokens, n_prompt, n_done);
        let mut logits = Vec::new();
        executor.run(&batch, &mut logits, None)?;
        let differs = |(found, expected): (&f32, &f32)| found.to_bits() != expected.to_bits();
        let (column, finding) = match logits.iter().zip(watched).position(differs) {
            _ if logits.len() != watched.len() => {
                let (found, expected) = (logits.len(), watched.len());
                (0, Finding::Count { found, expected })
            }
            Some(column) => {
                let (found, expected) = (logits[column], watched[column]);
                (column, Finding::UnobservedDiffers { found, expected })
            }
            None => continue,
        };
        verifier.diverge(plan.steps.len() - 1, &batch, (0, column), finding);
        break;
    }
    Ok(verifier.report)
}

/// The prompt as one batch, or the `n_done`-th token behind it.
fn batch_of(tokens: &[u32], n_prompt: usize, n_done: usize) -> Batch<'_> {
    let (position, end) = match n_done {
        0 => (0, n_prompt),
        n => (n_prompt + n - 1, n_prompt + n),
    };
    let tokens = &tokens[position..end];
    Batch {
        tokens,
        position,
        outputs: Outputs::Last,
    }
}

fn phase_of(batch: &Batch<'_>) -> Phase {
    if batch.position == 0 {
        Phase::Prefill
    } else {
        Phase::Decode
    }
}

struct Verifier {
    reference: ReferenceExecutor,
    plan: Arc<Plan>,
    weights: Weights,
    rounding: Rounding,
    report: VerifyReport,
}

impl Verifier {
    /// Verifies one batch step by step; its logits, or `None` after a divergence.
    fn observe(
        &mut self,
        executor: &mut dyn Executor,
        batch: &Batch<'_>,
    ) -> Result<Option<Vec<f32>>> {
        let mut logits = Vec::new();
        let mut next_step = 0;
        let mut observer = |seen: &Observation<'_>| {
            let index = next_step;
            let wrong = if seen.index == index {
                self.step(batch, seen)
            } else {
                Some((0, 0, Finding::Missing))
            };
            next_step = index + 1;
            let Some((row, column, finding)) = wrong else {
                return Ok(());
            };
            self.diverge(index, batch, (row, column), finding);
            Err(Error::WrongResult {
                step: self.plan.steps[index].name.clone(),
                message: "verification stops at the first divergence".to_owned(),
            })
        };
        let result = executor.run(batch, &mut logits, Some(&mut observer));
        if self.report.divergence.is_some() {
            return Ok(None);
        }
        result?;
        if next_step != self.plan.steps.len() {
            self.diverge(next_step, batch, (0, 0), Finding::Missing);
            return Ok(None);
        }
        // The logits that the caller gets are those that the last step wrote.
        let expected = self.reference.buffer(self.plan.logits);
        if let Some((row, column, finding)) =
            compare(&logits, expected, logits.len().max(1), 0.0).wrong
        {
            self.diverge(next_step - 1, batch, (row, column), finding);
            return Ok(None);
        }
        match phase_of(batch) {
            Phase::Prefill => self.report.prompt_tokens += batch.n_rows(),
            Phase::Decode => self.report.decode_tokens += 1,
        }
        Ok(Some(logits))
    }

    fn diverge(
        &mut self,
        index: usize,
        batch: &Batch<'_>,
        (row, column): (usize, usize),
        finding: Finding,
    ) {
        let step = &self.plan.steps[index];
        let is_of_outputs = step
            .op
            .dst()
            .is_some_and(|dst| self.plan.buffer(dst).extent == Extent::Outputs);
        let first = if is_of_outputs {
            batch.n_rows() - batch.n_outputs()
        } else {
            0
        };
        self.report.divergence = Some(Divergence {
            step: step.name.clone(),
            phase: phase_of(batch),
            position: batch.position + (first + row) % batch.n_rows(),
            row,
            column,
            finding,
        });
    }

    /// Runs a step on the reference, compares, and takes the device's values over as inputs of later
    /// steps.
    fn step(
        &mut self,
        batch: &Batch<'_>,
        seen: &Observation<'_>,
    ) -> Option<(usize, usize, Finding)> {
        self.reference.step(seen.index, batch);
        let plan = self.plan.clone();
        let op = &plan.steps[seen.index].op;
        let expected = match (op, op.dst()) {
            (Op::StoreKv { layer, .. }, _) => self.reference.cached_rows(*layer, batch),
            (_, Some(dst)) => self.reference.buffer(dst).to_vec(),
            (_, None) => Vec::new(),
        };
        let tolerance = match (op, op.dst()) {
            (Op::MatMul { weight, .. }, Some(dst)) => {
                let n_rows = plan.rows_of(dst, batch);
                let ty = self.weights.get(*weight).ty;
                tolerance(op, self.rounding.is_f16(ty, n_rows))
            }
            (Op::Attention { .. }, _) => {
                tolerance(op, self.rounding.is_f16_attention(batch.n_rows()))
            }
            _ => tolerance(op, false),
        };
        let outcome = compare(seen.values, &expected, seen.width.max(1), tolerance);
        if outcome.wrong.is_some() {
            return outcome.wrong;
        }
        self.report.n_steps += 1;
        self.report.n_values += seen.values.len() as u64;
        let nearest = self.report.nearest_to_bound.as_ref();
        if nearest.is_none_or(|(_, share)| outcome.share > *share) {
            self.report.nearest_to_bound = Some((seen.step.name.clone(), outcome.share));
        }
        match (op, op.dst()) {
            (Op::StoreKv { layer, .. }, _) => {
                self.reference.set_cached_rows(*layer, batch, seen.values);
            }
            (_, Some(dst)) => self.reference.set_buffer(dst, seen.values),
            (_, None) => {}
        }
        None
    }
}
