//! The reference executor: every op by its twin, one after the other. The truth, and slow.

use super::memory::{Charge, Ledger, MemoryReport, Purpose};
use super::recurrent::{delta_shape, scan_shape};
use super::sentinel::{Sentinels, Watch, check_layer};
use super::stepwise::every_step;
use super::{Backend, DeviceInfo, DeviceKind, Executor, Held, Observation, Observer, Stepwise};
use crate::error::Result;
use crate::kernels;
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{WeightId, Weights};
use crate::plan::{Batch, BufferId, Op, Plan, StateId};
use std::borrow::Cow;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

/// A model's weights for [`ReferenceExecutor`]: rows are decoded from the file when they are used.
pub(crate) struct ReferenceBackend {
    weights: Weights,
    info: DeviceInfo,
    ledger: Arc<Ledger>,
}

impl ReferenceBackend {
    pub(crate) fn new(weights: Weights) -> Self {
        let info = DeviceInfo {
            name: "reference".to_owned(),
            kind: DeviceKind::Cpu,
            backend: "reference".to_owned(),
            driver: String::new(),
            n_threads: rayon::current_num_threads(),
        };
        ReferenceBackend {
            weights,
            info,
            ledger: Arc::default(),
        }
    }
}

impl Backend for ReferenceBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn preferred_rows(&self) -> usize {
        256
    }

    fn cache_budget_bytes(&self) -> Option<u64> {
        let weights = self.weights.stored_bytes();
        // The caches here are f32 whatever their type, which is at least half as wide.
        super::cpu::available_memory_bytes().map(|bytes| bytes.saturating_sub(weights) / 2)
    }

    fn compare_weight(&self, _: WeightId, _: &[Range<usize>]) -> Result<Held> {
        Ok(Held::InFile)
    }

    fn memory(&self) -> Result<MemoryReport> {
        Ok(self.ledger.report())
    }

    fn executor(&self, plan: &Arc<Plan>, kv: &KvLayout) -> Result<Box<dyn Executor>> {
        let mut executor = ReferenceExecutor::new(self.weights.clone(), plan.clone(), kv);
        let caches = executor.caches.iter();
        let n_cached: usize = caches
            .map(|cache| cache.keys.len() + cache.values.len())
            .sum();
        let cache_bytes = n_cached as u64 * 4 + plan.state_bytes();
        executor.charges = Some([
            self.ledger.charge(Purpose::Scratch, 0),
            self.ledger.charge(Purpose::Cache, cache_bytes),
        ]);
        Ok(Box::new(executor))
    }
}

/// Keys and values of one layer, `[capacity, width]` each, rounded to the cache's type.
struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Runs a plan by the twins of its kernels. `verify` also steps it by hand, on another device's inputs.
pub(crate) struct ReferenceExecutor {
    weights: Weights,
    plan: Arc<Plan>,
    buffers: Vec<Vec<f32>>,
    caches: Vec<LayerCache>,
    states: Vec<Vec<f32>>,
    kv: KvLayout,
    watch: Watch,
    /// Of the buffers, which grow as they are needed, and of the caches.
    charges: Option<[Charge; 2]>,
}

impl ReferenceExecutor {
    pub(crate) fn new(weights: Weights, plan: Arc<Plan>, kv: &KvLayout) -> Self {
        let cache = |layer: usize| {
            let layer = kv.layers[layer];
            LayerCache {
                keys: vec![0.0; kv.capacity * layer.key_width()],
                values: vec![0.0; kv.capacity * layer.value_width()],
            }
        };
        ReferenceExecutor {
            buffers: vec![Vec::new(); plan.buffers.len()],
            caches: (0..kv.layers.len()).map(cache).collect(),
            states: plan.states.iter().map(|s| vec![0.0; s.len]).collect(),
            kv: kv.clone(),
            watch: Watch::new(Sentinels::Off),
            charges: None,
            weights,
            plan,
        }
    }

    /// The values of a buffer after its step, `[n_rows, width]`.
    pub(crate) fn buffer(&self, id: BufferId) -> &[f32] {
        &self.buffers[id.0]
    }

    /// Replaces the values of a buffer.
    pub(crate) fn replace(&mut self, id: BufferId, values: &[f32]) {
        self.buffers[id.0].clear();
        self.buffers[id.0].extend_from_slice(values);
    }

    /// The state that a step keeps, where it keeps one.
    pub(crate) fn state(&self, op: &Op) -> Option<&[f32]> {
        op.state().map(|id| self.states[id.0].as_slice())
    }

    /// Replaces a state.
    pub(crate) fn replace_state(&mut self, id: StateId, values: &[f32]) {
        self.states[id.0].copy_from_slice(values);
    }

    /// The cache rows of a batch: keys, then values.
    pub(crate) fn cached_rows(&self, layer: usize, batch: &Batch<'_>) -> Vec<f32> {
        let (cache, shape) = (&self.caches[layer], self.kv.layers[layer]);
        let rows = |width: usize| batch.position * width..(batch.position + batch.n_rows()) * width;
        let keys = &cache.keys[rows(shape.key_width())];
        [keys, &cache.values[rows(shape.value_width())]].concat()
    }

    /// Replaces the cache rows from `position` on by `rows`, keys and then values.
    pub(crate) fn replace_cached(&mut self, layer: usize, position: usize, rows: &[f32]) {
        let (cache, shape) = (&mut self.caches[layer], self.kv.layers[layer]);
        let (keys, values) = shape.split(rows);
        cache.keys[position * shape.key_width()..][..keys.len()].copy_from_slice(keys);
        cache.values[position * shape.value_width()..][..values.len()].copy_from_slice(values);
    }

    /// Takes over what a step of another device has written.
    pub(crate) fn follow(&mut self, batch: &Batch<'_>, seen: &Observation<'_>) {
        if let (Some(id), Some(state)) = (seen.step.op.state(), seen.state) {
            self.replace_state(id, state);
        }
        match (&seen.step.op, seen.step.op.dst()) {
            (Op::StoreKv { layer, .. }, _) => {
                self.replace_cached(*layer, batch.position, seen.values);
            }
            (_, Some(dst)) => self.replace(dst, seen.values),
            (_, None) => {}
        }
    }

    /// Runs one step on the buffers as they are.
    pub(crate) fn step(&mut self, index: usize, batch: &Batch<'_>) {
        let plan = self.plan.clone();
        let op = &plan.steps[index].op;
        if let Op::StoreKv { k, v, layer } = *op {
            self.store_kv(k, v, layer, batch);
            return;
        }
        let Some(dst) = op.dst() else { return };
        let mut out = mem::take(&mut self.buffers[dst.0]);
        out.clear();
        out.resize(plan.rows_of(dst, batch) * plan.buffer(dst).width, 0.0);
        let taken = op.state().map(|id| mem::take(&mut self.states[id.0]));
        let mut state = taken.unwrap_or_default();
        if batch.position == 0 {
            state.fill(0.0);
        }
        self.compute(op, batch, &mut state, &mut out);
        if let Some(id) = op.state() {
            self.states[id.0] = state;
        }
        self.buffers[dst.0] = out;
    }

    fn store_kv(&mut self, k: BufferId, v: BufferId, layer: usize, batch: &Batch<'_>) {
        let (cache, shape) = (&mut self.caches[layer], self.kv.layers[layer]);
        let ty: KvType = self.kv.ty;
        let keys = &mut cache.keys[batch.position * shape.key_width()..];
        kernels::store_kv::twin(ty, &self.buffers[k.0], keys);
        let values = &mut cache.values[batch.position * shape.value_width()..];
        kernels::store_kv::twin(ty, &self.buffers[v.0], values);
    }

    fn compute(&self, op: &Op, batch: &Batch<'_>, state: &mut [f32], out: &mut [f32]) {
        let buffer = |id: BufferId| self.buffers[id.0].as_slice();
        match *op {
            Op::Embed {
                weight,
                index,
                scale,
                ..
            } => {
                let row = |token: usize, row: &mut [f32]| {
                    self.weights.decode_rows(weight, token..token + 1, row);
                };
                let indices = batch.indices(index);
                kernels::embed::twin(&row, &indices, scale, out);
            }
            Op::RmsNorm {
                src,
                weight,
                group,
                eps,
                ..
            } => {
                let weight = weight.map(|weight| self.weights.vector(weight));
                kernels::rms_norm::twin(buffer(src), group, weight.as_deref(), eps, out);
            }
            Op::LayerNorm {
                src,
                weight,
                bias,
                group,
                eps,
                ..
            } => {
                let bias = bias.map(|bias| self.weights.vector(bias));
                let weight = self.weights.vector(weight);
                kernels::layer_norm::twin(buffer(src), group, &weight, bias.as_deref(), eps, out);
            }
            Op::MatMul {
                src,
                weight,
                bias,
                int8_rows,
                ..
            } => {
                let bias = bias.map(|bias| self.weights.vector(bias));
                let row = |index: usize, row: &mut [f32]| {
                    self.weights.decode_rows(weight, index..index + 1, row);
                };
                let n_cols = self.weights.get(weight).n_cols;
                let src = rounded(buffer(src), n_cols, int8_rows);
                kernels::matmul::twin(&row, n_cols, &src, bias.as_deref(), out);
            }
            Op::ChooseExperts {
                logits,
                bias,
                gating,
                groups,
                dst,
            } => {
                let bias = bias.map(|bias| self.weights.vector(bias));
                let [n_expert, n_chosen] = [logits, dst].map(|id| self.plan.buffer(id).width);
                let bias = bias.as_deref();
                let logits = buffer(logits);
                kernels::experts::choose_twin(
                    gating, logits, n_expert, bias, groups, n_chosen, out,
                );
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
                let factors = factors.map(|factors| self.weights.vector(factors));
                let form = (normalised, scale, factors.as_deref());
                kernels::experts::weights_twin(gating, logits, n_expert, chosen, form, out);
            }
            Op::ExpertMatMul {
                src,
                chosen,
                weight,
                bias,
                n_expert,
                int8_rows,
                dst,
            } => {
                let bias = bias.map(|bias| self.weights.vector(bias));
                let row = |index: usize, row: &mut [f32]| {
                    self.weights.decode_rows(weight, index..index + 1, row);
                };
                let matrix = kernels::experts::ExpertMatrix {
                    n_expert,
                    n_out: self.plan.buffer(dst).width,
                    n_cols: self.weights.get(weight).n_cols,
                };
                let int8_rows = int8_rows * self.plan.buffer(src).extent.n_slots();
                let src = rounded(buffer(src), matrix.n_cols, int8_rows);
                let chosen = buffer(chosen);
                kernels::experts::matmul_twin(&row, matrix, &src, chosen, bias.as_deref(), out);
            }
            Op::HeadMatMul {
                src,
                weight,
                n_head,
                ..
            } => {
                let row = |index: usize, row: &mut [f32]| {
                    self.weights.decode_rows(weight, index..index + 1, row);
                };
                let matrices = self.weights.get(weight);
                let heads = kernels::head_matvec::Heads {
                    n_head,
                    src_dim: self.plan.buffer(src).width / n_head,
                    n_out: matrices.n_rows / n_head,
                    n_cols: matrices.n_cols,
                };
                kernels::head_matvec::twin(&row, &heads, buffer(src), out);
            }
            Op::WeighSlots { src, weights, dst } => {
                let width = self.plan.buffer(dst).width;
                kernels::experts::weigh_twin(width, buffer(src), buffer(weights), out);
            }
            Op::WeightedSum { src, weights, dst } => {
                let n_slots = self.plan.buffer(src).extent.n_slots();
                let width = self.plan.buffer(dst).width;
                let ones = vec![1.0; n_slots * batch.n_rows()];
                let weights = weights.map_or(&ones[..], buffer);
                kernels::experts::sum_twin(n_slots, width, buffer(src), weights, out);
            }
            Op::Rope {
                src,
                table,
                head_dim,
                dst,
            } => {
                let table = &self.plan.rope_tables[table.0];
                let width = self.plan.buffer(dst).width;
                kernels::rope::twin(table, batch.position, width, head_dim, buffer(src), out);
            }
            Op::StoreKv { .. } => unreachable!("stores are handled by `store_kv`"),
            Op::Attention {
                q, layer, sinks, ..
            } => {
                let shape =
                    kernels::attention::Shape::of(op, &self.kv, batch.position, batch.n_rows());
                let Some(shape) = shape else { return };
                let sinks = sinks.map(|sinks| self.weights.vector(sinks));
                let sinks = sinks.as_deref();
                let cache = &self.caches[layer];
                kernels::attention::twin(&shape, sinks, buffer(q), &cache.keys, &cache.values, out);
            }
            Op::GatedActivation {
                gate,
                up,
                activation,
                ..
            } => {
                kernels::gated_activation::twin(activation, buffer(gate), buffer(up), out);
            }
            Op::Map { src, function, .. } => kernels::map::twin(function, buffer(src), out),
            Op::CausalConv {
                src,
                weight,
                bias,
                activation,
                ..
            } => {
                let bias = bias.map(|bias| self.weights.vector(bias));
                let (weight, bias) = (self.weights.vector(weight), bias.as_deref());
                kernels::causal_conv::twin(&weight, bias, activation, buffer(src), state, out);
            }
            Op::StateScan {
                x, dt, b, c, a, d, ..
            } => {
                let columns = |id| self.weights.get(id).n_cols;
                if let Some((shape, [at_x, at_b, at_c])) = scan_shape(&self.plan, columns, op) {
                    let inputs = kernels::state_scan::Inputs {
                        x: (buffer(x.buffer), at_x),
                        dt: buffer(dt),
                        b: (buffer(b.buffer), at_b),
                        c: (buffer(c.buffer), at_c),
                        a: &self.weights.vector(a),
                        d: &self.weights.vector(d),
                    };
                    kernels::state_scan::twin(&shape, &inputs, state, out);
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
                        a: &self.weights.vector(a),
                        bias: &self.weights.vector(bias),
                    };
                    kernels::delta_rule::twin(&shape, &inputs, state, out);
                }
            }
            Op::GroupNorm {
                src,
                weight,
                group,
                eps,
                ..
            } => {
                let weight = &self.weights.vector(weight);
                kernels::group_norm::twin(buffer(src), group, weight, eps, out);
            }
            Op::TakeColumns {
                src,
                first,
                length,
                period,
                ..
            } => kernels::take_columns::twin(buffer(src), first, [length, period], out),
            Op::Add { a, b, .. } => kernels::add::twin(buffer(a), buffer(b), out),
            Op::SelectOutputs { src, .. } => kernels::select_outputs::twin(buffer(src), out),
        }
    }
}

/// The activations of a product: rounded to int8 where there are at most `int8_rows` rows.
pub(super) fn rounded(src: &[f32], width: usize, int8_rows: usize) -> Cow<'_, [f32]> {
    if src.len() > int8_rows * width {
        return Cow::Borrowed(src);
    }
    let mut values = vec![0.0; src.len()];
    kernels::quantize::twin(src, width, &mut values);
    Cow::Owned(values)
}

impl Executor for ReferenceExecutor {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        logits: &mut Vec<f32>,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<()> {
        let n_steps = self.plan.steps.len();
        match observer {
            Some(observer) => self.run_steps(batch, 0..n_steps, observer)?,
            None => {
                let plan = self.plan.clone();
                let is_watched = self.watch.takes(batch.position, batch.n_rows());
                for (index, step) in plan.steps.iter().enumerate() {
                    self.step(index, batch);
                    let output = plan.layer_output(index).filter(|_| is_watched);
                    if let Some((_, id)) = output {
                        let width = plan.buffer(id).width;
                        check_layer(&step.name, self.buffer(id), width, batch.position)?;
                    }
                }
            }
        }
        if let Some([scratch, _]) = &mut self.charges {
            let n_scratch: usize = self.buffers.iter().map(Vec::capacity).sum();
            scratch.set(n_scratch as u64 * 4);
        }
        logits.clear();
        logits.extend_from_slice(self.buffer(self.plan.logits));
        Ok(())
    }

    fn watch(&mut self, sentinels: Sentinels) {
        self.watch = Watch::new(sentinels);
    }
}

impl Stepwise for ReferenceExecutor {
    fn parts(&self, _: &Batch<'_>) -> Vec<Range<usize>> {
        every_step(&self.plan)
    }

    fn run_steps(
        &mut self,
        batch: &Batch<'_>,
        steps: Range<usize>,
        observer: &mut Observer<'_>,
    ) -> Result<()> {
        let plan = self.plan.clone();
        for index in steps {
            self.step(index, batch);
            let step = &plan.steps[index];
            let stored;
            let (values, width) = match (&step.op, step.op.dst()) {
                (Op::StoreKv { layer, .. }, _) => {
                    stored = self.cached_rows(*layer, batch);
                    (stored.as_slice(), self.kv.layers[*layer].key_width())
                }
                (_, Some(dst)) => (self.buffer(dst), plan.token_width(dst)),
                (_, None) => continue,
            };
            observer(&Observation {
                index,
                step,
                values,
                width,
                state: self.state(&step.op),
            })?;
        }
        Ok(())
    }

    fn set_buffer(&mut self, id: BufferId, rows: &[f32]) -> Result<()> {
        self.replace(id, rows);
        Ok(())
    }

    fn cached_rows(&self, layer: usize, batch: &Batch<'_>) -> Result<Vec<f32>> {
        Ok(ReferenceExecutor::cached_rows(self, layer, batch))
    }

    fn set_state(&mut self, id: StateId, values: &[f32]) -> Result<()> {
        self.replace_state(id, values);
        Ok(())
    }

    fn set_cached_rows(&mut self, layer: usize, position: usize, rows: &[f32]) -> Result<()> {
        self.replace_cached(layer, position, rows);
        Ok(())
    }
}
