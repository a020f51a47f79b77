//! The choice of tokens on the GPU: the kernels behind the logits, and a ring of buffers in which the host
//! reads what they chose while later tokens run.

use super::buffer::Buffer;
use super::context::Context;
use super::lower::SessionBuffers;
use super::mapping::Mapping;
use super::pipelines::Pipeline;
use super::sentinels::check_slots;
use crate::device::memory::Purpose;
use crate::device::{ChosenToken, TOKENS_AHEAD};
use crate::error::{Error, Result};
use crate::kernels::logit_maxima;
use crate::kernels::sample::{self, Chosen};
use crate::kernels::sentinel::Wrong;
use crate::kernels::{Kernel, Variant};
use crate::plan::Plan;
use crate::sampler::PlainSampling;
use std::sync::Arc;

/// Choices that may be queued before the oldest is read.
const N_SLOTS: usize = TOKENS_AHEAD + 1;

const CHOSEN_BYTES: u64 = size_of::<Chosen>() as u64;

/// What a [`Chain`] runs, in one variant.
pub(super) const KERNELS: [&Kernel; 2] = [&logit_maxima::KERNEL, &sample::KERNEL];

/// What chooses tokens behind the forward pass of one session.
pub(super) struct Chain {
    n_logits: usize,
    maxima: Stage,
    sample: Stage,
    chosen: Buffer,
    /// [`N_SLOTS`] of them, used in turn.
    slots: Vec<Slot>,
    /// Since the start.
    n_queued: usize,
    n_read: usize,
    n_tokens: usize,
}

/// A kernel with all that it is given.
struct Stage {
    pipeline: Arc<Pipeline>,
    bind_group: wgpu::BindGroup,
    params: Buffer,
    grid: [u32; 3],
}

/// Where the host reads a choice.
struct Slot {
    /// [`Chosen`], and behind it the slots of the sentinels where the token was watched.
    staging: Buffer,
    queued: Option<Queued>,
}

/// A choice that was submitted and not read.
struct Queued {
    position: usize,
    /// Whether sentinels have looked at the token before it, which ran for the choice.
    is_watched: bool,
    mapping: Mapping,
}

impl Chain {
    pub(super) fn new(
        context: &Context,
        plan: &Plan,
        buffers: &SessionBuffers,
        variant: &Variant,
    ) -> Result<Chain> {
        use wgpu::BufferUsages as Usage;
        let n_logits = plan.buffer(plan.logits).width;
        let maxima_bytes = logit_maxima::n_words(n_logits) as u64 * 4;
        let maxima = context.create_buffer(
            Purpose::Scratch,
            "logit maxima",
            maxima_bytes,
            Usage::STORAGE,
        )?;
        let usage = Usage::STORAGE | Usage::COPY_SRC;
        let chosen =
            context.create_buffer(Purpose::Scratch, "chosen token", CHOSEN_BYTES, usage)?;
        let slot = |index| -> Result<Slot> {
            let usage = Usage::MAP_READ | Usage::COPY_DST;
            let bytes = CHOSEN_BYTES + buffers.sentinels.size();
            Ok(Slot {
                staging: context.create_buffer(
                    Purpose::Staging,
                    &format!("token staging {index}"),
                    bytes,
                    usage,
                )?,
                queued: None,
            })
        };
        let logits = &buffers.activations[plan.logits.0];
        let stage = |kernel, storage: &[&Buffer], grid| {
            Stage::new(context, kernel, variant, &buffers.batch, storage, grid)
        };
        let grid = logit_maxima::grid(n_logits);
        let [of_maxima, of_sample] = KERNELS;
        Ok(Chain {
            n_logits,
            maxima: stage(of_maxima, &[logits, &maxima], grid)?,
            sample: stage(
                of_sample,
                &[logits, &maxima, &buffers.tokens, &chosen],
                sample::GRID,
            )?,
            chosen,
            slots: (0..N_SLOTS).map(slot).collect::<Result<Vec<_>>>()?,
            n_queued: 0,
            n_read: 0,
            n_tokens: 0,
        })
    }

    /// Forgets what was queued, and chooses as `sampling` says from now on; false where it cannot.
    pub(super) fn start(&mut self, context: &Context, sampling: &PlainSampling) -> Result<bool> {
        let Some(params) = sample::Params::new(self.n_logits, sampling) else {
            return Ok(false);
        };
        for slot in &mut self.slots {
            if slot.queued.take().is_some() {
                slot.staging.unmap();
            }
        }
        self.n_queued = 0;
        self.n_read = 0;
        self.n_tokens = sampling.n_tokens;
        let maxima_params = logit_maxima::Params::new(self.n_logits, sampling.n_tokens);
        context.scoped("options of sampling", || {
            let queue = &context.queue;
            queue.write_buffer(&self.maxima.params, 0, bytemuck::bytes_of(&maxima_params));
            queue.write_buffer(&self.sample.params, 0, bytemuck::bytes_of(&params));
        })?;
        Ok(true)
    }

    /// Choices queued since the start.
    pub(super) fn n_queued(&self) -> usize {
        self.n_queued
    }

    /// Records a choice from the logits that the steps in front of it wrote.
    pub(super) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        for stage in [&self.maxima, &self.sample] {
            let [x, y, z] = stage.grid;
            pass.set_pipeline(&stage.pipeline.compiled);
            pass.set_bind_group(0, &stage.bind_group, &[]);
            pass.dispatch_workgroups(x, y, z);
        }
    }

    /// Records the copy of the choice, and of what sentinels have seen, to the slot of the `index`th since the
    /// start.
    pub(super) fn record_copy(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        index: usize,
        sentinels: Option<&wgpu::Buffer>,
    ) {
        let staging = &self.slots[index % N_SLOTS].staging;
        encoder.copy_buffer_to_buffer(&self.chosen, 0, staging, 0, CHOSEN_BYTES);
        if let Some(seen) = sentinels {
            encoder.copy_buffer_to_buffer(seen, 0, staging, CHOSEN_BYTES, seen.size());
        }
    }

    /// Notes that the choice of the token at `position` was submitted.
    pub(super) fn submitted(
        &mut self,
        context: &Context,
        position: usize,
        is_watched: bool,
        submission: wgpu::SubmissionIndex,
    ) -> Result<()> {
        let slot = &mut self.slots[self.n_queued % N_SLOTS];
        let mapping = Mapping::new(
            context,
            "read of a token",
            wgpu::MapMode::Read,
            &slot.staging,
            slot.staging.size(),
            Some(submission),
        )?;
        slot.queued = Some(Queued {
            position,
            is_watched,
            mapping,
        });
        self.n_queued += 1;
        Ok(())
    }

    /// Waits for the oldest choice that was not read.
    pub(super) fn read(&mut self, context: &Context, plan: &Plan) -> Result<ChosenToken> {
        let slot = &mut self.slots[self.n_read % N_SLOTS];
        let queued = slot.queued.take();
        let queued = queued.ok_or_else(|| context.error("no token was queued"))?;
        self.n_read += 1;
        let view = queued.mapping.read(context)?;
        let (chosen, seen) = view.split_at(CHOSEN_BYTES as usize);
        let chosen: Chosen = bytemuck::pod_read_unaligned(chosen);
        // The layers first: they say where it began.
        let sound = match queued.is_watched {
            true => check_slots(plan, seen, 1),
            false => Ok(()),
        };
        drop(view);
        slot.staging.unmap();
        sound?;
        check(&chosen, queued.position, self.n_tokens)?;
        Ok(ChosenToken {
            token: chosen.token,
            largest_logit: chosen.best,
        })
    }
}

impl Stage {
    fn new(
        context: &Context,
        kernel: &'static Kernel,
        variant: &Variant,
        batch: &Buffer,
        storage: &[&Buffer],
        grid: [u32; 3],
    ) -> Result<Stage> {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let params = context.create_buffer(
            Purpose::Scratch,
            &format!("{} params", kernel.name),
            kernel.params_bytes as u64,
            usage,
        )?;
        let pipeline = context.pipeline(kernel, variant)?;
        let bindings: Vec<_> = [batch, &params]
            .into_iter()
            .chain(storage.iter().copied())
            .map(|buffer| buffer.as_entire_buffer_binding())
            .collect();
        let bind_group = context.bind_group(kernel.name, &pipeline, &bindings)?;
        Ok(Stage {
            pipeline,
            bind_group,
            params,
            grid,
        })
    }
}

/// The last line of defence: a choice from logits that cannot be right is an error, and so is what an earlier
/// one has left.
fn check(chosen: &Chosen, position: usize, n_tokens: usize) -> Result<()> {
    let message = if chosen.position as usize != position {
        format!("no token for position {position} was chosen")
    } else if let Some(wrong) = Wrong::of(chosen.largest) {
        // Logits are of the token before the one they are for.
        let (position, what) = (position.saturating_sub(1), wrong.what());
        format!("the row of position {position} has {what}")
    } else if chosen.token as usize >= n_tokens {
        let token = chosen.token;
        format!("token {token} for position {position}, expected less than {n_tokens}")
    } else {
        return Ok(());
    };
    Err(Error::WrongResult {
        step: "result_output".to_owned(),
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_that_cannot_be_right_are_an_error() {
        let good = Chosen {
            token: 4,
            largest: 1.5f32.to_bits(),
            position: 7,
            n_candidates: 1,
            best: 1,
        };
        assert!(check(&good, 7, 5).is_ok());
        let nothing_written: Chosen = bytemuck::Zeroable::zeroed();
        let with_largest = |logit: f32| Chosen {
            largest: logit.to_bits(),
            ..good
        };
        for (wrong, message) in [
            (
                Chosen {
                    position: 6,
                    ..good
                },
                "no token for position 7",
            ),
            (with_largest(f32::NAN), "position 6 has a value that is not"),
            (
                with_largest(f32::INFINITY),
                "position 6 has an infinite value",
            ),
            (with_largest(1e17), "position 6 has a value of 2^56"),
            (with_largest(0.0), "position 6 has nothing but zeros"),
            (Chosen { token: 5, ..good }, "token 5 for position 7"),
            (nothing_written, "no token"),
        ] {
            let error = check(&wrong, 7, 5).unwrap_err().to_string();
            assert!(
                error.contains("result_output") && error.contains(message),
                "{error}"
            );
        }
    }
}
