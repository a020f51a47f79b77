//! A batch run by a device and the reference together, each some steps of it.

use crate::device::reference::ReferenceExecutor;
use crate::device::{Executor, Observation, Stepwise};
use crate::diagnostics::verify::Verified;
use crate::error::Result;
use crate::plan::{Batch, Op, Plan};
use std::ops::Range;
use std::sync::Arc;

pub(crate) struct Mixed {
    plan: Arc<Plan>,
    executor: Box<dyn Executor>,
    reference: ReferenceExecutor,
}

impl Mixed {
    pub(crate) fn new(verified: &Verified, executor: Box<dyn Executor>) -> Mixed {
        Mixed {
            plan: verified.plan.clone(),
            executor,
            reference: verified.reference(),
        }
    }

    /// What the device can run apart, in batches of as many rows.
    pub(crate) fn parts(&self, batch: &Batch<'_>) -> Vec<Range<usize>> {
        self.executor.parts(batch)
    }

    /// Runs a batch, the parts that have steps in `on_reference` by the reference; its logits,
    /// `[n_outputs, vocab_size]`.
    pub(crate) fn run(
        &mut self,
        batch: &Batch<'_>,
        on_reference: &Range<usize>,
    ) -> Result<Vec<f32>> {
        let Mixed {
            executor,
            reference,
            ..
        } = self;
        for part in executor.parts(batch) {
            let overlaps = part.start < on_reference.end && on_reference.start < part.end;
            if overlaps && !on_reference.is_empty() {
                for index in part {
                    reference.step(index, batch);
                    give(
                        &self.plan.steps[index].op,
                        reference,
                        batch,
                        executor.as_mut(),
                    )?;
                }
            } else {
                executor.run_steps(batch, part, &mut |seen: &Observation<'_>| {
                    reference.follow(batch, seen);
                    Ok(())
                })?;
            }
        }
        Ok(reference.buffer(self.plan.logits).to_vec())
    }
}

/// Gives a device what the reference has just computed.
fn give(
    op: &Op,
    reference: &ReferenceExecutor,
    batch: &Batch<'_>,
    executor: &mut dyn Stepwise,
) -> Result<()> {
    if let (Some(id), Some(state)) = (op.state(), reference.state(op)) {
        executor.set_state(id, state)?;
    }
    match (op, op.dst()) {
        (Op::StoreKv { layer, .. }, _) => {
            let rows = reference.cached_rows(*layer, batch);
            executor.set_cached_rows(*layer, batch.position, &rows)
        }
        (_, Some(dst)) => executor.set_buffer(dst, reference.buffer(dst)),
        (_, None) => Ok(()),
    }
}
