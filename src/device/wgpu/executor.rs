//! One session on the GPU: a batch is one encoder, one pass, one submit; and so is a token of a chain.

mod capture;
mod stepwise;

use super::Shared;
use super::buffer::Buffer;
use super::chain::Chain;
use super::context::named;
use super::lower::{Dispatch, Lowered, SessionBuffers, lower};
use super::select::{Choice, FEW_ROWS};
use super::sentinels::{SlotReader, check_slots};
use super::timestamps;
use crate::device::memory::Purpose;
use crate::device::sentinel::Sentinels;
use crate::device::{
    BatchTimes, ChosenToken, DispatchTime, Executor, Observer, Stepwise, TokenChain,
};
use crate::error::Result;
use crate::kernels::{BatchParams, row_stride};
use crate::kv_cache::{KvLayout, KvType};
use crate::plan::{Batch, BufferId, Extent, Op, Plan, Step};
use crate::sampler::PlainSampling;
use half::f16;
use std::sync::Arc;
use std::time::Duration;

/// Multiplications of weights and activations that one submission of many rows holds, so that none
/// keeps even a small GPU (1 TFLOP/s) for longer than half a second: systems reset one that hangs.
const SUBMISSION_PRODUCTS: u64 = 1 << 38;

/// Runs a lowered plan.
pub(super) struct GpuExecutor {
    pub(super) shared: Arc<Shared>,
    plan: Arc<Plan>,
    pub(super) kv: KvLayout,
    pub(super) buffers: SessionBuffers,
    pub(super) lowered: Lowered,
    /// `[max_outputs, row_stride(vocab_size)] f32`, where the CPU reads the logits; behind those of a watched
    /// batch are the slots of the sentinels.
    staging: Buffer,
    chain: Chain,
    slots: SlotReader,
    /// Recorded ahead.
    next: Option<(Recording, Vec<wgpu::CommandBuffer>)>,
}

/// All that the commands of a batch depend on.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Recording {
    rows: Rows,
    end: End,
}

/// What becomes of the logits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// They are copied to where the CPU reads them.
    Logits,
    /// The next token is chosen from them; the choice counts from the start of the chain.
    Choice(usize),
}

/// The rows of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rows {
    n_rows: usize,
    n_outputs: usize,
    /// Positions that the last of them sees, itself included.
    n_visible: usize,
    /// Whether sentinels look at the layers.
    is_watched: bool,
}

impl Rows {
    const NONE: Rows = Rows {
        n_rows: 0,
        n_outputs: 0,
        n_visible: 0,
        is_watched: false,
    };

    /// A token at a position.
    fn token(position: usize) -> Rows {
        Rows {
            n_rows: 1,
            n_outputs: 1,
            n_visible: position + 1,
            is_watched: false,
        }
    }

    fn of(batch: &Batch<'_>) -> Rows {
        Rows {
            n_rows: batch.n_rows(),
            n_outputs: batch.n_outputs(),
            n_visible: batch.position + batch.n_rows(),
            is_watched: false,
        }
    }

    fn watched(self, is_watched: bool) -> Rows {
        Rows { is_watched, ..self }
    }
}

impl GpuExecutor {
    pub(super) fn new(shared: Arc<Shared>, plan: Arc<Plan>, kv: &KvLayout) -> Result<Self> {
        let context = &shared.context;
        let choice = Choice::new(context, shared.rounding, kv.ty).tuned(shared.tuning.clone());
        let buffers = SessionBuffers::new(context, &plan, kv, &choice)?;
        let lowered = lower(&shared, &plan, kv, &buffers, &choice)?;
        let stride = row_stride(plan.buffer(plan.logits).width);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let bytes = (plan.max_outputs * stride * 4) as u64 + buffers.sentinels.size();
        let staging = context.create_buffer(Purpose::Staging, "logits staging", bytes, usage)?;
        let chain = Chain::new(context, &plan, &buffers, &choice.plain())?;
        let executor = GpuExecutor {
            shared,
            plan,
            kv: kv.clone(),
            buffers,
            lowered,
            staging,
            chain,
            slots: SlotReader::new(Sentinels::Off),
            next: None,
        };
        #[cfg(test)]
        let executor = executor.tampered();
        Ok(executor)
    }

    #[cfg(test)]
    fn tampered(mut self) -> Self {
        let shared = self.shared.clone();
        shared.context.tampering.damage_executor(&mut self);
        self
    }

    #[cfg(test)]
    pub(super) fn step_named(&self, name: &str) -> usize {
        let found = self.plan.steps.iter().position(|step| step.name == name);
        found.unwrap_or_else(|| panic!("no step `{name}`"))
    }

    fn write_batch(&self, batch: &Batch<'_>) -> Result<()> {
        #[cfg(test)]
        self.shared.context.tampering.damage_batch(self, batch);
        let params = BatchParams {
            n_rows: batch.n_rows() as u32,
            position: batch.position as u32,
            n_outputs: batch.n_outputs() as u32,
            random: 0,
        };
        let context = &self.shared.context;
        context.scoped("upload of a batch", || {
            let tokens = bytemuck::cast_slice(batch.tokens);
            context
                .queue
                .write_buffer(&self.buffers.batch, 0, bytemuck::bytes_of(&params));
            context.queue.write_buffer(&self.buffers.tokens, 0, tokens);
        })
    }

    /// Records the dispatches of some steps that a batch needs.
    fn record_steps(&self, pass: &mut wgpu::ComputePass<'_>, steps: &[Vec<Dispatch>], rows: Rows) {
        for (dispatch, grid) in dispatches(steps, rows) {
            dispatch.record(pass, grid);
        }
    }

    /// The steps of a batch, cut into those of each submission. Many rows are cut where products can run
    /// beside each other; a cut costs too much time for few.
    fn submissions(&self, rows: Rows) -> Vec<&[Vec<Dispatch>]> {
        let Lowered { steps, beside, .. } = &self.lowered;
        let products = rows.n_rows as u64 * self.shared.weights.n_elements();
        let n_submissions = products.div_ceil(SUBMISSION_PRODUCTS) as usize;
        let most = steps.len().div_ceil(n_submissions.max(1)).max(1);
        let mut parts = Vec::new();
        let mut start = 0;
        for end in 1..=steps.len() {
            let cuts = rows.n_rows > FEW_ROWS && beside.contains(&end);
            if cuts || end - start == most || end == steps.len() {
                parts.push(&steps[start..end]);
                start = end;
            }
        }
        parts
    }

    /// Records a batch, each submission of it when it is asked for.
    fn record(
        &self,
        Recording { rows, end }: Recording,
    ) -> impl Iterator<Item = wgpu::CommandBuffer> {
        let parts = self.submissions(rows);
        let last = parts.len() - 1;
        parts.into_iter().enumerate().map(move |(index, steps)| {
            let mut encoder = self.shared.context.encoder("batch");
            let mut pass = encoder.begin_compute_pass(&named("batch"));
            self.record_steps(&mut pass, steps, rows);
            let end = (index == last).then_some(end);
            if let Some(End::Choice(_)) = end {
                self.chain.record(&mut pass);
            }
            drop(pass);
            match end {
                Some(End::Logits) => self.copy_logits(&mut encoder, rows),
                Some(End::Choice(index)) => {
                    let seen = rows.is_watched.then_some(&*self.buffers.sentinels);
                    self.chain.record_copy(&mut encoder, index, seen);
                }
                None => {}
            }
            encoder.finish()
        })
    }

    /// Submits a batch, and then records what is likely to come `next`.
    fn submit(&mut self, now: Recording, next: Option<Recording>) -> Result<wgpu::SubmissionIndex> {
        let shared = self.shared.clone();
        let recorded = self.next.take().filter(|(recording, _)| *recording == now);
        shared.context.scoped("run of a batch", || {
            let queue = &shared.context.queue;
            let submit = |command| queue.submit([command]);
            let submission = match recorded {
                Some((_, commands)) => commands.into_iter().map(submit).last(),
                // The GPU works on one while the next is recorded.
                None => self.record(now).map(submit).last(),
            };
            // While the GPU is busy: the commands depend on nothing that the token decides.
            self.next = next.map(|next| (next, self.record(next).collect()));
            submission.unwrap_or_else(|| queue.submit([]))
        })
    }

    fn copy_logits(&self, encoder: &mut wgpu::CommandEncoder, rows: Rows) {
        let bytes = self.logits_bytes(rows);
        if bytes > 0 {
            let logits = &self.buffers.activations[self.plan.logits.0];
            encoder.copy_buffer_to_buffer(logits, 0, &self.staging, 0, bytes);
            if rows.is_watched {
                let seen = &self.buffers.sentinels;
                encoder.copy_buffer_to_buffer(seen, 0, &self.staging, bytes, seen.size());
            }
        }
    }

    fn logits_bytes(&self, rows: Rows) -> u64 {
        let stride = row_stride(self.plan.buffer(self.plan.logits).width);
        (rows.n_outputs * stride * 4) as u64
    }

    /// Whether sentinels look at the batch that is submitted next.
    fn takes(&mut self, position: usize, n_rows: usize) -> Result<bool> {
        let Self { shared, slots, .. } = self;
        slots.takes(&shared.context, &self.buffers.sentinels, position, n_rows)
    }

    /// Waits for the batch and reads its logits from the staging buffer, with what sentinels have seen in it
    /// and in the batches before it.
    fn read_logits(&mut self, rows: Rows, logits: &mut Vec<f32>) -> Result<()> {
        logits.clear();
        if rows.n_outputs == 0 {
            return self.shared.context.check();
        }
        let context = &self.shared.context;
        let logits_bytes = self.logits_bytes(rows);
        let bytes = match rows.is_watched {
            true => logits_bytes + self.buffers.sentinels.size(),
            false => logits_bytes,
        };
        let view = context.map_staging("read of the logits", &self.staging, bytes)?;
        let (read, seen) = view.split_at(logits_bytes as usize);
        let width = self.plan.buffer(self.plan.logits).width;
        for row in read.chunks_exact(row_stride(width) * 4) {
            logits.extend_from_slice(bytemuck::cast_slice(&row[..width * 4]));
        }
        let sound = match rows.is_watched {
            true => check_slots(&self.plan, seen, self.slots.take_rows()),
            false => Ok(()),
        };
        drop(view);
        self.staging.unmap();
        sound
    }

    fn submit_copy_of_logits(&self, rows: Rows) -> Result<()> {
        let context = &self.shared.context;
        context.scoped("copy of the logits", || {
            let mut encoder = context.encoder("copy of the logits");
            self.copy_logits(&mut encoder, rows);
            context.queue.submit([encoder.finish()]);
        })
    }

    /// What a step has just written, dense, and its width.
    fn written(&self, index: usize, step: &Step, batch: &Batch<'_>) -> Result<(Vec<f32>, usize)> {
        match (&step.op, step.op.dst()) {
            (Op::StoreKv { layer, .. }, _) => {
                let rows = self.keys_and_values(*layer, batch)?;
                Ok((rows, self.kv.layers[*layer].key_width()))
            }
            (_, Some(dst)) => {
                let own = self.lowered.own.get(&index);
                let own = own.filter(|_| batch.n_rows() <= FEW_ROWS);
                let (buffer, offset) = match own {
                    Some(own) => (&own.buffer, own.offset),
                    None => (&self.buffers.activations[dst.0], 0),
                };
                self.activation(dst, buffer, offset, batch)
            }
            (_, None) => Ok((Vec::new(), 0)),
        }
    }

    /// The state that a step keeps, where it keeps one.
    fn state(&self, op: &Op) -> Result<Option<Vec<f32>>> {
        let state = op.state().map(|id| &self.buffers.states[id.0]);
        let read = state.map(|state| self.shared.context.read_buffer(state, 0, state.size()));
        Ok(read
            .transpose()?
            .map(|bytes| bytemuck::pod_collect_to_vec(&bytes)))
    }

    /// Copies of all states, or these put back.
    fn copy_states(&self, from: &[Buffer], to: &[Buffer]) -> Result<()> {
        let context = &self.shared.context;
        context.scoped("copy of the states", || {
            let mut encoder = context.encoder("copy of the states");
            for (from, to) in from.iter().zip(to) {
                encoder.copy_buffer_to_buffer(from, 0, to, 0, from.size());
            }
            context.queue.submit([encoder.finish()]);
        })
    }

    /// Room for copies of all states.
    fn room_for_states(&self) -> Result<Vec<Buffer>> {
        let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let copy = |(index, state): (usize, &Buffer)| {
            let label = format!("copy of state {index}");
            let context = &self.shared.context;
            context.create_buffer(Purpose::Scratch, &label, state.size(), usage)
        };
        self.buffers.states.iter().enumerate().map(copy).collect()
    }

    fn activation(
        &self,
        id: BufferId,
        buffer: &wgpu::Buffer,
        offset: u64,
        batch: &Batch<'_>,
    ) -> Result<(Vec<f32>, usize)> {
        let width = self.plan.buffer(id).width;
        let row_bytes = row_stride(width) * 4;
        let bytes = (self.plan.rows_of(id, batch) * row_bytes) as u64;
        let padded = self.shared.context.read_buffer(buffer, offset, bytes)?;
        let rows = padded.chunks_exact(row_bytes);
        let values = rows.flat_map(|row| bytemuck::pod_collect_to_vec(&row[..width * 4]));
        Ok((values.collect(), self.plan.token_width(id)))
    }

    /// The cache rows of a batch: keys, then values.
    fn keys_and_values(&self, layer: usize, batch: &Batch<'_>) -> Result<Vec<f32>> {
        let ([keys, values], shape) = (&self.buffers.caches[layer], self.kv.layers[layer]);
        let mut rows = self.rows_of_cache(shape.key_width(), keys, batch)?;
        rows.extend(self.rows_of_cache(shape.value_width(), values, batch)?);
        Ok(rows)
    }

    fn rows_of_cache(
        &self,
        width: usize,
        cache: &wgpu::Buffer,
        batch: &Batch<'_>,
    ) -> Result<Vec<f32>> {
        let row_bytes = (width * self.kv.ty.bytes()) as u64;
        let offset = batch.position as u64 * row_bytes;
        let bytes = batch.n_rows() as u64 * row_bytes;
        let bytes = self.shared.context.read_buffer(cache, offset, bytes)?;
        Ok(match self.kv.ty {
            KvType::F32 => bytemuck::pod_collect_to_vec(&bytes),
            KvType::F16 => {
                let halves: Vec<f16> = bytemuck::pod_collect_to_vec(&bytes);
                halves.into_iter().map(f16::to_f32).collect()
            }
        })
    }
}

/// The dispatches of some steps that a batch needs, each with its grid.
fn dispatches(steps: &[Vec<Dispatch>], rows: Rows) -> impl Iterator<Item = (&Dispatch, [u32; 3])> {
    steps.iter().flatten().filter_map(move |dispatch| {
        let (of_batch, n_rows) = match dispatch.extent {
            Extent::Tokens => (rows.n_rows, rows.n_rows),
            Extent::Outputs => (rows.n_outputs, rows.n_outputs),
            Extent::Chosen(n) => (rows.n_rows, rows.n_rows * n),
        };
        let is_needed = n_rows > 0
            && (rows.is_watched || !dispatch.is_sentinel)
            && dispatch.rows.covers(of_batch)
            && dispatch.visible.contains(&rows.n_visible);
        is_needed.then(|| (dispatch, (dispatch.grid)(n_rows)))
    })
}

impl Executor for GpuExecutor {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        logits: &mut Vec<f32>,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<()> {
        let mut rows = Rows::of(batch);
        match observer {
            None => {
                self.write_batch(batch)?;
                let recording = |rows| Recording {
                    rows,
                    end: End::Logits,
                };
                rows = rows.watched(self.takes(batch.position, rows.n_rows)?);
                let position = rows.n_visible;
                let next = Rows::token(position).watched(self.slots.would_take(position));
                // Behind a text of an encoder comes none.
                let next = self.plan.is_causal().then(|| recording(next));
                self.submit(recording(rows), next)?;
            }
            Some(observer) => {
                self.run_steps(batch, 0..self.plan.steps.len(), observer)?;
                self.submit_copy_of_logits(rows)?;
            }
        }
        self.read_logits(rows, logits)
    }

    fn profile(&mut self, batch: &Batch<'_>, logits: &mut Vec<f32>) -> Result<BatchTimes> {
        let context = &self.shared.context;
        let clock = timestamps::clock(context)?;
        let rows = Rows::of(batch);
        self.write_batch(batch)?;
        // The batch runs twice.
        let states = self.room_for_states()?;
        self.copy_states(&self.buffers.states, &states)?;
        let mut total = Duration::ZERO;
        for steps in self.submissions(rows) {
            total += timestamps::time_all(context, &dispatches(steps, rows).collect::<Vec<_>>())?;
        }
        self.copy_states(&states, &self.buffers.states)?;
        let mut times = Vec::new();
        for steps in self.submissions(rows) {
            let timed: Vec<_> = dispatches(steps, rows).collect();
            let found = timestamps::time_each(context, clock, &timed)?;
            times.extend(
                timed
                    .iter()
                    .zip(found)
                    .map(|((dispatch, _), time)| DispatchTime {
                        step: dispatch.step,
                        writes: dispatch.writes.clone(),
                        kernel: Some(dispatch.kernel.name),
                        time,
                    }),
            );
        }
        self.submit_copy_of_logits(rows)?;
        self.read_logits(rows, logits)?;
        Ok(BatchTimes::new(clock, times, total))
    }

    fn watch(&mut self, sentinels: Sentinels) {
        self.slots = SlotReader::new(sentinels);
    }

    fn capture(&mut self, batch: &Batch<'_>, logits: &mut Vec<f32>) -> Result<bool> {
        self.run_captured(batch, logits)
    }

    fn chain(&mut self) -> Option<&mut dyn TokenChain> {
        // Tokens that run in vain would go into the states.
        self.plan.states.is_empty().then_some(self)
    }
}

impl TokenChain for GpuExecutor {
    fn start(&mut self, sampling: &PlainSampling) -> Result<bool> {
        self.chain.start(&self.shared.context, sampling)
    }

    fn queue(&mut self, position: usize, random: u32) -> Result<()> {
        let index = self.chain.n_queued();
        let context = &self.shared.context;
        context.scoped("upload of a position", || {
            if index > 0 {
                let params = BatchParams {
                    n_rows: 1,
                    position: position as u32 - 1,
                    n_outputs: 1,
                    random,
                };
                let params = bytemuck::bytes_of(&params);
                context.queue.write_buffer(&self.buffers.batch, 0, params);
            } else {
                // The first choice goes by the last batch.
                let offset = std::mem::offset_of!(BatchParams, random) as u64;
                let random = bytemuck::bytes_of(&random);
                context
                    .queue
                    .write_buffer(&self.buffers.batch, offset, random);
            }
        })?;
        let recording = |index: usize, rows| Recording {
            rows,
            end: End::Choice(index),
        };
        let rows = match index {
            0 => Rows::NONE,
            _ => Rows::token(position - 1).watched(self.takes(position - 1, 1)?),
        };
        // Each choice reads the slots of its own token.
        self.slots.take_rows();
        let next = Rows::token(position).watched(self.slots.would_take(position));
        let submission = self.submit(recording(index, rows), Some(recording(index + 1, next)))?;
        let context = &self.shared.context;
        self.chain
            .submitted(context, position, rows.is_watched, submission)
    }

    fn read(&mut self) -> Result<ChosenToken> {
        self.chain.read(&self.shared.context, &self.plan)
    }
}
