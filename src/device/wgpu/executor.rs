//! One session on the GPU: a batch is one encoder, one pass, one submit.

use super::Shared;
use super::lower::{Dispatch, SessionBuffers, lower};
use super::select::Choice;
use crate::device::{Executor, Observation, Observer};
use crate::error::Result;
use crate::kernels::{BatchParams, row_stride};
use crate::kv_cache::{KvLayout, KvType};
use crate::plan::{Batch, BufferId, Extent, Op, Plan, Step};
use half::f16;
use std::sync::Arc;

/// Multiplications of weights and activations that one submission of many rows holds, so that none
/// keeps even a small GPU (1 TFLOP/s) for longer than half a second: systems reset one that hangs.
const SUBMISSION_PRODUCTS: u64 = 1 << 38;

/// Runs a lowered plan.
pub(super) struct GpuExecutor {
    shared: Arc<Shared>,
    plan: Arc<Plan>,
    kv: KvLayout,
    buffers: SessionBuffers,
    steps: Vec<Vec<Dispatch>>,
    /// `[max_outputs, row_stride(vocab_size)] f32`, where the CPU reads the logits.
    staging: wgpu::Buffer,
    /// The commands of the next token, recorded ahead.
    next_token: Option<Vec<wgpu::CommandBuffer>>,
}

/// The rows of a batch, which are all that its commands depend on.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rows {
    n_rows: usize,
    n_outputs: usize,
}

impl Rows {
    const NEXT_TOKEN: Rows = Rows {
        n_rows: 1,
        n_outputs: 1,
    };

    fn of(batch: &Batch<'_>) -> Rows {
        Rows {
            n_rows: batch.n_rows(),
            n_outputs: batch.n_outputs(),
        }
    }
}

impl GpuExecutor {
    pub(super) fn new(shared: Arc<Shared>, plan: Arc<Plan>, kv: &KvLayout) -> Result<Self> {
        let context = &shared.context;
        let choice = Choice::new(context, shared.rounding, kv.ty);
        let buffers = SessionBuffers::new(context, &plan, kv, &choice)?;
        let steps = lower(&shared, &plan, kv, &buffers, &choice)?;
        let stride = row_stride(plan.buffer(plan.logits).width);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let bytes = (plan.max_outputs * stride * 4) as u64;
        let staging = context.create_buffer("logits staging", bytes, usage)?;
        Ok(GpuExecutor {
            shared,
            plan,
            kv: kv.clone(),
            buffers,
            steps,
            staging,
            next_token: None,
        })
    }

    fn write_batch(&self, batch: &Batch<'_>) -> Result<()> {
        let params = BatchParams {
            n_rows: batch.n_rows() as u32,
            position: batch.position as u32,
            n_outputs: batch.n_outputs() as u32,
            padding: 0,
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

    /// Records the dispatches of some steps that a batch needs, in one pass.
    fn record_steps(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        steps: &[Vec<Dispatch>],
        rows: Rows,
    ) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for dispatch in steps.iter().flatten() {
            let n_rows = match dispatch.extent {
                Extent::Tokens => rows.n_rows,
                Extent::Outputs => rows.n_outputs,
            };
            if n_rows == 0 || !dispatch.rows.covers(n_rows) {
                continue;
            }
            let [x, y, z] = (dispatch.grid)(n_rows);
            pass.set_pipeline(&dispatch.pipeline.compiled);
            pass.set_bind_group(0, &dispatch.bind_group, &[]);
            pass.dispatch_workgroups(x, y, z);
        }
    }

    /// Records a batch, each submission of it.
    fn record(&self, rows: Rows) -> Vec<wgpu::CommandBuffer> {
        let products = rows.n_rows as u64 * self.shared.weights.n_elements();
        let n_submissions = products.div_ceil(SUBMISSION_PRODUCTS) as usize;
        let a_submission = self.steps.len().div_ceil(n_submissions.max(1)).max(1);
        let mut groups = self.steps.chunks(a_submission).peekable();
        let mut commands = Vec::with_capacity(n_submissions);
        while let Some(steps) = groups.next() {
            let device = &self.shared.context.device;
            let mut encoder = device.create_command_encoder(&Default::default());
            self.record_steps(&mut encoder, steps, rows);
            if groups.peek().is_none() {
                self.copy_logits(&mut encoder, rows);
            }
            commands.push(encoder.finish());
        }
        commands
    }

    fn submit(&mut self, rows: Rows) -> Result<()> {
        let shared = self.shared.clone();
        let next_token = self.next_token.take().filter(|_| rows == Rows::NEXT_TOKEN);
        shared.context.scoped("run of a batch", || {
            let commands = next_token.unwrap_or_else(|| self.record(rows));
            for command in commands {
                shared.context.queue.submit([command]);
            }
            // While the GPU is busy: the commands depend on nothing that the token decides.
            self.next_token = Some(self.record(Rows::NEXT_TOKEN));
        })
    }

    fn copy_logits(&self, encoder: &mut wgpu::CommandEncoder, rows: Rows) {
        let bytes = self.logits_bytes(rows);
        if bytes > 0 {
            let logits = &self.buffers.activations[self.plan.logits.0];
            encoder.copy_buffer_to_buffer(logits, 0, &self.staging, 0, bytes);
        }
    }

    fn logits_bytes(&self, rows: Rows) -> u64 {
        let stride = row_stride(self.plan.buffer(self.plan.logits).width);
        (rows.n_outputs * stride * 4) as u64
    }

    /// Waits for the batch and reads its logits from the staging buffer.
    fn read_logits(&self, batch: &Batch<'_>, logits: &mut Vec<f32>) -> Result<()> {
        logits.clear();
        if batch.n_outputs() == 0 {
            return self.shared.context.check();
        }
        let context = &self.shared.context;
        let bytes = self.logits_bytes(Rows::of(batch));
        let view = context.map_staging("read of the logits", &self.staging, bytes)?;
        let width = self.plan.buffer(self.plan.logits).width;
        for row in view.chunks_exact(row_stride(width) * 4) {
            logits.extend_from_slice(bytemuck::cast_slice(&row[..width * 4]));
        }
        drop(view);
        self.staging.unmap();
        Ok(())
    }

    /// Runs step by step, waiting for each, and shows what it wrote.
    fn run_observed(&self, batch: &Batch<'_>, observer: &mut Observer<'_>) -> Result<()> {
        let context = &self.shared.context;
        for (index, (step, dispatches)) in self.plan.steps.iter().zip(&self.steps).enumerate() {
            context.scoped(&step.name, || {
                let mut encoder = context.device.create_command_encoder(&Default::default());
                self.record_steps(
                    &mut encoder,
                    std::slice::from_ref(dispatches),
                    Rows::of(batch),
                );
                context.queue.submit([encoder.finish()]);
            })?;
            let (values, width) = self.written(step, batch)?;
            observer(&Observation {
                index,
                step,
                values: &values,
                width,
            })?;
        }
        context.scoped("copy of the logits", || {
            let mut encoder = context.device.create_command_encoder(&Default::default());
            self.copy_logits(&mut encoder, Rows::of(batch));
            context.queue.submit([encoder.finish()]);
        })
    }

    /// What a step has just written, dense, and its width.
    fn written(&self, step: &Step, batch: &Batch<'_>) -> Result<(Vec<f32>, usize)> {
        match (&step.op, step.op.dst()) {
            (Op::StoreKv { layer, .. }, _) => {
                let [keys, values] = &self.buffers.caches[*layer];
                let mut rows = self.cached_rows(*layer, keys, batch)?;
                rows.extend(self.cached_rows(*layer, values, batch)?);
                Ok((rows, self.kv.layers[*layer].width()))
            }
            (_, Some(dst)) => self.activation(dst, batch),
            (_, None) => Ok((Vec::new(), 0)),
        }
    }

    fn activation(&self, id: BufferId, batch: &Batch<'_>) -> Result<(Vec<f32>, usize)> {
        let width = self.plan.buffer(id).width;
        let row_bytes = row_stride(width) * 4;
        let bytes = (self.plan.rows_of(id, batch) * row_bytes) as u64;
        let padded = self
            .shared
            .context
            .read_buffer(&self.buffers.activations[id.0], 0, bytes)?;
        let rows = padded.chunks_exact(row_bytes);
        let values = rows.flat_map(|row| bytemuck::pod_collect_to_vec(&row[..width * 4]));
        Ok((values.collect(), width))
    }

    fn cached_rows(
        &self,
        layer: usize,
        cache: &wgpu::Buffer,
        batch: &Batch<'_>,
    ) -> Result<Vec<f32>> {
        let row_bytes = (self.kv.layers[layer].width() * self.kv.ty.bytes()) as u64;
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

impl Executor for GpuExecutor {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        logits: &mut Vec<f32>,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<()> {
        self.write_batch(batch)?;
        match observer {
            None => self.submit(Rows::of(batch))?,
            Some(observer) => self.run_observed(batch, observer)?,
        }
        self.read_logits(batch, logits)
    }
}
