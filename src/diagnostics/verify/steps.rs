//! A real prompt on a device, each step checked against the reference on the device's own inputs.
//!
//! The device runs a step; the reference runs the same step on the inputs that the device had, which
//! were themselves checked when they were written. So every bound is that of one step, errors do not
//! add up, and the first step that is named is the one that is wrong. In the end the device runs the
//! same tokens once more as it always does, unwatched, and must give the same logits.

use super::compare::compare;
use super::depth::Depth;
use super::divergence::{Divergence, Finding, Phase};
use super::judge::{Agreed, Judge, Verified};
use crate::device::{Executor, Observation};
use crate::error::Result;
use crate::plan::{Batch, Outputs};
use std::fmt;

/// What the steps of a device came to.
#[derive(Debug, Default)]
pub(super) struct StepReport {
    /// Tokens of the prompt, in one batch.
    pub(super) prompt_tokens: usize,
    /// Tokens that were run one at a time.
    pub(super) decode_tokens: usize,
    pub(super) agreed: Agreed,
    /// Layers that were left out.
    pub(super) n_unseen_layers: usize,
    pub(super) divergence: Option<Divergence>,
}

impl fmt::Display for StepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StepReport {
            prompt_tokens,
            decode_tokens,
            agreed,
            n_unseen_layers,
            ..
        } = self;
        let Agreed {
            n_steps, n_values, ..
        } = agreed;
        write!(
            f,
            "{n_steps} steps ({n_values} values) agree with the reference, for a batch of \
             {prompt_tokens} tokens and {decode_tokens} one at a time{}",
            agreed.nearest()
        )?;
        match n_unseen_layers {
            0 => Ok(()),
            n => write!(f, "; {n} layers were not looked at"),
        }
    }
}

/// Compares the steps of `executor` with the reference: `tokens` as one batch, then `decode_tokens`
/// one at a time.
pub(super) fn check_steps(
    verified: &Verified,
    executor: &mut dyn Executor,
    tokens: &[u32],
    decode_tokens: usize,
    depth: Depth,
) -> Result<StepReport> {
    let n_layer = verified.plan.layer_outputs.len();
    let looked_at = |layer: usize| match depth {
        Depth::Full => true,
        Depth::Quick => [0, n_layer / 2, n_layer - 1].contains(&layer),
    };
    let steps = verified.plan.steps.iter();
    let mut checker = StepChecker {
        judge: Judge::new(verified),
        looks_at: steps
            .map(|step| step.layer().is_none_or(looked_at))
            .collect(),
        verified,
        report: StepReport::default(),
    };
    checker.report.n_unseen_layers = (0..n_layer).filter(|&layer| !looked_at(layer)).count();
    checker.check(executor, tokens, decode_tokens)?;
    Ok(StepReport {
        agreed: checker.judge.agreed,
        ..checker.report
    })
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

struct StepChecker<'a> {
    judge: Judge,
    /// By step.
    looks_at: Vec<bool>,
    verified: &'a Verified,
    report: StepReport,
}

impl StepChecker<'_> {
    fn check(
        &mut self,
        executor: &mut dyn Executor,
        prompt: &[u32],
        decode_tokens: usize,
    ) -> Result<()> {
        let mut tokens = prompt.to_vec();
        let mut watched = Vec::new();
        for n_done in 0..=decode_tokens {
            let batch = batch_of(&tokens, prompt.len(), n_done);
            let Some(logits) = self.observe(executor, &batch)? else {
                return Ok(());
            };
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            tokens.extend(best.map(|token| token as u32));
            watched.push(logits);
        }
        for (n_done, watched) in watched.iter().enumerate() {
            let batch = batch_of(&tokens, prompt.len(), n_done);
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
            self.diverge(
                self.verified.plan.steps.len() - 1,
                &batch,
                (0, column),
                finding,
            );
            break;
        }
        Ok(())
    }

    /// Verifies one batch step by step; its logits, or `None` after a divergence.
    fn observe(
        &mut self,
        executor: &mut dyn Executor,
        batch: &Batch<'_>,
    ) -> Result<Option<Vec<f32>>> {
        let plan = &self.verified.plan;
        let mut logits = Vec::new();
        let mut next_step = 0;
        let mut observer = |seen: &Observation<'_>| {
            let index = next_step;
            next_step = index + 1;
            if seen.index != index {
                self.diverge(index, batch, (0, 0), Finding::Missing);
            } else if self.looks_at[index] {
                self.report.divergence = self.judge.step(batch, phase_of(batch), seen);
            } else {
                self.judge.reference.follow(batch, seen);
            }
            Divergence::end_run(self.report.divergence.as_ref())
        };
        let result = executor.run(batch, &mut logits, Some(&mut observer));
        if self.report.divergence.is_some() {
            return Ok(None);
        }
        result?;
        if next_step != plan.steps.len() {
            self.diverge(next_step, batch, (0, 0), Finding::Missing);
            return Ok(None);
        }
        // The logits that the caller gets are those that the last step wrote.
        let expected = self.judge.reference.buffer(plan.logits);
        if let Some((row, column, finding)) =
            compare(&logits, expected, logits.len().max(1), 0.0).wrong
        {
            self.diverge(next_step - 1, batch, (row, column), finding);
            return Ok(None);
        }
        match phase_of(batch) {
            Phase::Prefill => self.report.prompt_tokens += batch.n_rows(),
            _ => self.report.decode_tokens += 1,
        }
        Ok(Some(logits))
    }

    fn diverge(&mut self, index: usize, batch: &Batch<'_>, at: (usize, usize), finding: Finding) {
        let phase = phase_of(batch);
        self.report.divergence = Some(self.judge.divergence(index, batch, phase, at, finding));
    }
}
