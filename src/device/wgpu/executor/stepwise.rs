//! Steps of a plan by themselves, for diagnostics.

use super::{GpuExecutor, Rows, dispatches};
use crate::device::stepwise::joined_parts;
use crate::device::wgpu::context::named;
use crate::device::wgpu::select::FEW_ROWS;
use crate::device::{Observation, Observer, Stepwise};
use crate::error::Result;
use crate::kernels::row_stride;
use crate::kv_cache::KvType;
use crate::plan::{Batch, BufferId, Op, StateId, Step};
use half::f16;
use std::collections::BTreeSet;
use std::ops::Range;

impl Stepwise for GpuExecutor {
    fn parts(&self, batch: &Batch<'_>) -> Vec<Range<usize>> {
        let steps = &self.plan.steps;
        let fused = dispatches(&self.lowered.steps, Rows::of(batch)).map(|(dispatch, _)| {
            let last = dispatch.writes.iter().fold(dispatch.step, |a, &b| a.max(b));
            [dispatch.step, last]
        });
        // The kernel that wrote a buffer may have written its rounded form too, or have left it to the product.
        let rounded = steps.iter().enumerate().filter_map(|(product, step)| {
            let (src, weight, int8_rows, n_rows) = match step.op {
                Op::MatMul {
                    src,
                    weight,
                    int8_rows,
                    dst,
                    ..
                } => (src, weight, int8_rows, self.plan.rows_of(dst, batch)),
                Op::ExpertMatMul {
                    src,
                    weight,
                    int8_rows,
                    ..
                } => (src, weight, int8_rows, batch.n_rows()),
                _ => return None,
            };
            let ty = self.shared.weights.get(weight).ty;
            let rounds = int8_rows >= n_rows || self.shared.rounding.is_f16(ty, n_rows);
            let writes = |step: &usize| steps[*step].op.dst() == Some(src);
            let writer = (0..product).rev().find(writes);
            writer.filter(|_| rounds).map(|writer| [writer, product])
        });
        // The first product with experts has made the table of tiles for those behind it.
        let tiled = steps.iter().enumerate().filter_map(|(product, step)| {
            let Op::ExpertMatMul { chosen, .. } = step.op else {
                return None;
            };
            let is_earlier = |step: &Step| matches!(step.op, Op::ExpertMatMul { chosen: ids, .. } if ids == chosen);
            let writes = |step: &Step| step.op.dst() == Some(chosen);
            let start = steps[..product].iter().rposition(writes).unwrap_or(0);
            let first = start + steps[start..product].iter().position(is_earlier)?;
            (batch.n_rows() > FEW_ROWS).then_some([first, product])
        });
        joined_parts(steps.len(), fused.chain(rounded).chain(tiled))
    }

    fn turns(&self) -> Vec<usize> {
        let dispatches = self.lowered.steps.iter().flatten();
        let starts: BTreeSet<usize> = dispatches.map(|dispatch| dispatch.rows.start()).collect();
        starts.into_iter().filter(|&start| start > 1).collect()
    }

    /// Waits for each step.
    fn run_steps(
        &mut self,
        batch: &Batch<'_>,
        steps: Range<usize>,
        observer: &mut Observer<'_>,
    ) -> Result<()> {
        self.write_batch(batch)?;
        let context = &self.shared.context;
        for index in steps {
            let step = &self.plan.steps[index];
            context.scoped(&step.name, || {
                let mut encoder = context.encoder(&step.name);
                let mut pass = encoder.begin_compute_pass(&named(&step.name));
                let steps = std::slice::from_ref(&self.lowered.steps[index]);
                self.record_steps(&mut pass, steps, Rows::of(batch));
                drop(pass);
                context.queue.submit([encoder.finish()]);
            })?;
            let (values, width) = self.written(index, step, batch)?;
            let state = self.state(&step.op)?;
            observer(&Observation {
                index,
                step,
                values: &values,
                width,
                state: state.as_deref(),
            })?;
        }
        Ok(())
    }

    fn set_buffer(&mut self, id: BufferId, rows: &[f32]) -> Result<()> {
        let width = self.plan.buffer(id).width;
        let mut padded = vec![0.0; rows.len().div_ceil(width) * row_stride(width)];
        for (padded, row) in padded.chunks_mut(row_stride(width)).zip(rows.chunks(width)) {
            padded[..row.len()].copy_from_slice(row);
        }
        let context = &self.shared.context;
        context.scoped("upload of a buffer", || {
            let buffer = self.buffers.activation(id);
            context
                .queue
                .write_buffer(buffer, 0, bytemuck::cast_slice(&padded));
        })
    }

    fn cached_rows(&self, layer: usize, batch: &Batch<'_>) -> Result<Vec<f32>> {
        self.keys_and_values(layer, batch)
    }

    fn set_state(&mut self, id: StateId, values: &[f32]) -> Result<()> {
        let context = &self.shared.context;
        context.scoped("upload of a state", || {
            let state = &self.buffers.states[id.0];
            context
                .queue
                .write_buffer(state, 0, bytemuck::cast_slice(values));
        })
    }

    fn set_cached_rows(&mut self, layer: usize, position: usize, rows: &[f32]) -> Result<()> {
        let shape = self.kv.layers[layer];
        let (keys, values) = shape.split(rows);
        let parts = [(keys, shape.key_width()), (values, shape.value_width())];
        let context = &self.shared.context;
        context.scoped("upload to the cache", || {
            for (cache, (rows, width)) in self.buffers.caches[layer].iter().zip(parts) {
                let offset = (position * width * self.kv.ty.bytes()) as u64;
                let bytes = match self.kv.ty {
                    KvType::F32 => bytemuck::cast_slice(rows).to_vec(),
                    KvType::F16 => {
                        let halves: Vec<f16> = rows.iter().copied().map(f16::from_f32).collect();
                        bytemuck::cast_slice(&halves).to_vec()
                    }
                };
                context.queue.write_buffer(cache, offset, &bytes);
            }
        })
    }
}
