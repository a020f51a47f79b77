//! Runs the steps of a plan on the CPU.

use super::Shared;
use super::attention::{Attention, attention};
use super::cache::LayerCache;
use super::{elementwise, experts, heads, matmul, recurrent};
use crate::device::memory::{Charge, Purpose};
use crate::device::recurrent::{delta_shape, scan_shape};
use crate::device::reference::rounded;
use crate::device::sentinel::{Sentinels, Watch, check_layer};
use crate::device::stepwise::every_step;
use crate::device::{Executor, Observation, Observer, Stepwise};
use crate::error::Result;
use crate::kernels;
use crate::kv_cache::KvLayout;
use crate::plan::{Batch, BufferId, Op, Plan, StateId};
use std::mem;
use std::ops::Range;
use std::sync::Arc;

/// One session on the CPU. Everything but the observed values is allocated when it is made.
pub(super) struct CpuExecutor {
    shared: Arc<Shared>,
    plan: Arc<Plan>,
    /// With room for the most rows of each buffer.
    buffers: Vec<Vec<f32>>,
    /// For each rope table the angles of the batch, `[max_rows, n_dims]`.
    angles: Vec<Vec<f32>>,
    caches: Vec<LayerCache>,
    states: Vec<Vec<f32>>,
    watch: Watch,
    _charges: [Charge; 2],
}

impl CpuExecutor {
    pub(super) fn new(shared: Arc<Shared>, plan: Arc<Plan>, kv: &KvLayout) -> CpuExecutor {
        let buffers = (0..plan.buffers.len())
            .map(|id| vec![0.0; plan.max_rows_of(BufferId(id)) * plan.buffers[id].width])
            .collect();
        let angles = plan.rope_tables.iter();
        let angles = angles
            .map(|table| vec![0.0; plan.max_rows * table.n_dims()])
            .collect();
        let caches = kv.layers.iter();
        let caches = caches
            .map(|&shape| LayerCache::new(kv.ty, shape, kv.capacity))
            .collect();
        let bytes = |all: &Vec<Vec<f32>>| all.iter().map(|v| v.len() as u64 * 4).sum::<u64>();
        let scratch_bytes = bytes(&buffers) + bytes(&angles);
        CpuExecutor {
            _charges: [
                shared
                    .ledger
                    .charge(Purpose::Cache, kv.total_bytes() + plan.state_bytes()),
                shared.ledger.charge(Purpose::Scratch, scratch_bytes),
            ],
            states: plan.states.iter().map(|s| vec![0.0; s.len]).collect(),
            shared,
            plan,
            buffers,
            angles,
            caches,
            watch: Watch::new(Sentinels::Off),
        }
    }

    /// The values of a buffer, `[n_rows, width]`.
    fn buffer(&self, id: BufferId, batch: &Batch<'_>) -> &[f32] {
        &self.buffers[id.0][..self.plan.rows_of(id, batch) * self.plan.buffer(id).width]
    }

    fn prepare(&mut self, batch: &Batch<'_>) {
        for (table, angles) in self.plan.rope_tables.iter().zip(&mut self.angles) {
            let angles = &mut angles[..batch.n_rows() * table.n_dims()];
            elementwise::rope_angles(table, batch.position, angles);
        }
    }

    fn step(&mut self, op: &Op, batch: &Batch<'_>) {
        if let Op::StoreKv { k, v, layer } = *op {
            let n = batch.n_rows();
            let (cache, position) = (&mut self.caches[layer], batch.position);
            let [key_width, value_width] = [cache.shape.key_width(), cache.shape.value_width()];
            let (k, v) = (&self.buffers[k.0], &self.buffers[v.0]);
            cache.keys.store(position * key_width, &k[..n * key_width]);
            cache
                .values
                .store(position * value_width, &v[..n * value_width]);
        }
        let Some(dst) = op.dst() else { return };
        let n_rows = self.plan.rows_of(dst, batch);
        if n_rows == 0 {
            return;
        }
        let width = self.plan.buffer(dst).width;
        let mut out = mem::take(&mut self.buffers[dst.0]);
        let taken = op.state().map(|id| mem::take(&mut self.states[id.0]));
        let mut state = taken.unwrap_or_default();
        if batch.position == 0 {
            state.fill(0.0);
        }
        self.compute(op, batch, width, &mut state, &mut out[..n_rows * width]);
        if let Some(id) = op.state() {
            self.states[id.0] = state;
        }
        self.buffers[dst.0] = out;
    }

    /// Computes the rows `out` of width `width`, and what becomes of the op's state.
    fn compute(
        &self,
        op: &Op,
        batch: &Batch<'_>,
        width: usize,
        state: &mut [f32],
        out: &mut [f32],
    ) {
        let Shared { weights, simd, .. } = &*self.shared;
        let simd = *simd;
        let buffer = |id: BufferId| self.buffer(id, batch);
        match *op {
            Op::Embed {
                weight,
                index,
                scale,
                ..
            } => {
                let indices = batch.indices(index);
                let ty = weights.get(weight).ty;
                elementwise::for_rows(out, width, |row, out| {
                    let index = indices[row] as usize;
                    simd.decode(ty, &weights.rows(weight, index..index + 1), out);
                    out.iter_mut().for_each(|value| *value *= scale);
                });
            }
            Op::RmsNorm {
                src,
                weight,
                group,
                eps,
                ..
            } => {
                let weight = weight.map(|weight| weights.vector(weight));
                elementwise::rms_norm(simd, group, buffer(src), weight, eps, out);
            }
            Op::LayerNorm {
                src,
                weight,
                bias,
                group,
                eps,
                ..
            } => {
                let affine = (
                    weights.vector(weight),
                    bias.map(|bias| weights.vector(bias)),
                );
                elementwise::layer_norm(group, buffer(src), affine, eps, out);
            }
            Op::MatMul {
                src,
                weight,
                bias,
                int8_rows,
                ..
            } => {
                let bias = bias.map(|bias| weights.vector(bias));
                let src = rounded(buffer(src), self.plan.buffer(src).width, int8_rows);
                matmul::matmul(simd, weights, weight, bias, &src, out);
            }
            Op::ChooseExperts {
                logits,
                bias,
                gating,
                groups,
                ..
            } => {
                let bias = bias.map(|bias| weights.vector(bias));
                let n_expert = self.plan.buffer(logits).width;
                let logits = buffer(logits);
                kernels::experts::choose_twin(gating, logits, n_expert, bias, groups, width, out);
            }
            Op::ExpertWeights {
                logits,
                chosen,
                gating,
                normalised,
                scale,
                factors,
                ..
            } => {
                let n_expert = self.plan.buffer(logits).width;
                let (logits, chosen) = (buffer(logits), buffer(chosen));
                let form = (normalised, scale, factors.map(|id| weights.vector(id)));
                kernels::experts::weights_twin(gating, logits, n_expert, chosen, form, out);
            }
            Op::ExpertMatMul {
                src,
                chosen,
                weight,
                bias,
                n_expert,
                int8_rows,
                ..
            } => {
                let matrices = experts::Matrices {
                    weights,
                    id: weight,
                    bias: bias.map(|bias| weights.vector(bias)),
                    n_expert,
                };
                let of_src = self.plan.buffer(src);
                let int8_rows = int8_rows * of_src.extent.n_slots();
                let src = rounded(buffer(src), of_src.width, int8_rows);
                matrices.multiply(simd, &src, buffer(chosen), out);
            }
            Op::HeadMatMul {
                src,
                weight,
                n_head,
                ..
            } => heads::multiply_heads(simd, weights, weight, n_head, buffer(src), out, width),
            Op::WeighSlots {
                src, weights: by, ..
            } => kernels::experts::weigh_twin(width, buffer(src), buffer(by), out),
            Op::WeightedSum {
                src, weights: by, ..
            } => {
                let n_slots = self.plan.buffer(src).extent.n_slots();
                let ones = vec![1.0; n_slots * batch.n_rows()];
                let by = by.map_or(&ones[..], buffer);
                experts::weighted_sum(n_slots, width, buffer(src), by, out);
            }
            Op::Rope {
                src,
                table,
                head_dim,
                ..
            } => {
                let angles = &self.angles[table.0];
                let table = &self.plan.rope_tables[table.0];
                let (pairing, n_dims) = (table.pairing, table.n_dims());
                elementwise::rope(pairing, angles, n_dims, width, head_dim, buffer(src), out);
            }
            Op::StoreKv { .. } => {}
            Op::Attention {
                q,
                layer,
                n_head,
                scale,
                causal,
                window,
                chunk,
                soft_cap,
                alibi,
                sinks,
                ..
            } => {
                let shape = Attention {
                    n_head,
                    scale,
                    window,
                    chunk,
                    soft_cap,
                    alibi,
                    sinks: sinks.map(|sinks| weights.vector(sinks)),
                    position: batch.position,
                    end: (!causal).then_some(batch.position + batch.n_rows()),
                };
                attention(simd, &shape, &self.caches[layer], buffer(q), out);
            }
            Op::GatedActivation {
                gate,
                up,
                activation,
                ..
            } => {
                elementwise::gated_activation(activation, width, buffer(gate), buffer(up), out);
            }
            Op::Map { src, function, .. } => {
                elementwise::map(function, width, buffer(src), out);
            }
            Op::CausalConv {
                src,
                weight,
                bias,
                activation,
                ..
            } => {
                let bias = bias.map(|bias| weights.vector(bias));
                let weight = weights.vector(weight);
                recurrent::causal_conv(weight, bias, activation, buffer(src), state, out);
            }
            Op::StateScan {
                x, dt, b, c, a, d, ..
            } => {
                let columns = |id| weights.get(id).n_cols;
                if let Some((shape, [at_x, at_b, at_c])) = scan_shape(&self.plan, columns, op) {
                    let inputs = kernels::state_scan::Inputs {
                        x: (buffer(x.buffer), at_x),
                        dt: buffer(dt),
                        b: (buffer(b.buffer), at_b),
                        c: (buffer(c.buffer), at_c),
                        a: weights.vector(a),
                        d: weights.vector(d),
                    };
                    recurrent::state_scan(&shape, &inputs, state, out);
                }
            }
            Op::DeltaRule {
                qkv,
                alpha,
                beta,
                a,
                bias,
                ..
            } => {
                if let Some(shape) = delta_shape(&self.plan, op) {
                    let inputs = kernels::delta_rule::Inputs {
                        qkv: buffer(qkv),
                        alpha: buffer(alpha),
                        beta: buffer(beta),
                        a: weights.vector(a),
                        bias: weights.vector(bias),
                    };
                    recurrent::delta_rule(&shape, &inputs, state, out);
                }
            }
            Op::GroupNorm {
                src,
                weight,
                group,
                eps,
                ..
            } => {
                let weight = weights.vector(weight);
                recurrent::group_norm(buffer(src), group, weight, eps, out);
            }
            Op::TakeColumns {
                src,
                first,
                length,
                period,
                ..
            } => {
                let src_width = self.plan.buffer(src).width;
                let of_group = (first, [length, period]);
                elementwise::take_columns(width, (buffer(src), src_width), of_group, out);
            }
            Op::Add { a, b, .. } => elementwise::add(width, buffer(a), buffer(b), out),
            Op::SelectOutputs { src, .. } => {
                let src = buffer(src);
                out.copy_from_slice(&src[src.len() - out.len()..]);
            }
        }
    }

    /// Shows an observer what a step has written.
    fn observe(&self, index: usize, batch: &Batch<'_>, observer: &mut Observer<'_>) -> Result<()> {
        let step = &self.plan.steps[index];
        let stored;
        let (values, width) = match (&step.op, step.op.dst()) {
            (Op::StoreKv { layer, .. }, _) => {
                stored = self.cached_rows(*layer, batch);
                (stored.as_slice(), self.caches[*layer].shape.key_width())
            }
            (_, Some(dst)) => (self.buffer(dst, batch), self.plan.token_width(dst)),
            (_, None) => return Ok(()),
        };
        observer(&Observation {
            index,
            step,
            values,
            width,
            state: step.op.state().map(|id| self.states[id.0].as_slice()),
        })
    }

    /// The cache rows of a batch: keys, then values.
    fn cached_rows(&self, layer: usize, batch: &Batch<'_>) -> Vec<f32> {
        let cache = &self.caches[layer];
        let cells =
            |width: usize| batch.position * width..(batch.position + batch.n_rows()) * width;
        let mut rows = cache.keys.values(cells(cache.shape.key_width()));
        rows.extend(cache.values.values(cells(cache.shape.value_width())));
        rows
    }
}

impl Executor for CpuExecutor {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        logits: &mut Vec<f32>,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<()> {
        let (shared, plan) = (self.shared.clone(), self.plan.clone());
        match observer {
            None => {
                let is_watched = self.watch.takes(batch.position, batch.n_rows());
                shared.pool.install(|| {
                    self.prepare(batch);
                    for (index, step) in plan.steps.iter().enumerate() {
                        self.step(&step.op, batch);
                        let output = plan.layer_output(index).filter(|_| is_watched);
                        if let Some((_, id)) = output {
                            let width = plan.buffer(id).width;
                            let rows = self.buffer(id, batch);
                            check_layer(&step.name, rows, width, batch.position)?;
                        }
                    }
                    Ok(())
                })?;
            }
            Some(observer) => self.run_steps(batch, 0..plan.steps.len(), observer)?,
        }
        logits.clear();
        logits.extend_from_slice(self.buffer(plan.logits, batch));
        Ok(())
    }

    fn watch(&mut self, sentinels: Sentinels) {
        self.watch = Watch::new(sentinels);
    }
}

impl Stepwise for CpuExecutor {
    fn parts(&self, _: &Batch<'_>) -> Vec<Range<usize>> {
        every_step(&self.plan)
    }

    fn run_steps(
        &mut self,
        batch: &Batch<'_>,
        steps: Range<usize>,
        observer: &mut Observer<'_>,
    ) -> Result<()> {
        let (shared, plan) = (self.shared.clone(), self.plan.clone());
        shared.pool.install(|| self.prepare(batch));
        for index in steps {
            shared
                .pool
                .install(|| self.step(&plan.steps[index].op, batch));
            self.observe(index, batch, observer)?;
        }
        Ok(())
    }

    fn set_buffer(&mut self, id: BufferId, rows: &[f32]) -> Result<()> {
        self.buffers[id.0][..rows.len()].copy_from_slice(rows);
        Ok(())
    }

    fn cached_rows(&self, layer: usize, batch: &Batch<'_>) -> Result<Vec<f32>> {
        Ok(CpuExecutor::cached_rows(self, layer, batch))
    }

    fn set_state(&mut self, id: StateId, values: &[f32]) -> Result<()> {
        self.states[id.0].copy_from_slice(values);
        Ok(())
    }

    fn set_cached_rows(&mut self, layer: usize, position: usize, rows: &[f32]) -> Result<()> {
        let cache = &mut self.caches[layer];
        let shape = cache.shape;
        let (keys, values) = shape.split(rows);
        cache.keys.store(position * shape.key_width(), keys);
        cache.values.store(position * shape.value_width(), values);
        Ok(())
    }
}
