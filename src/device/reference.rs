//! The reference executor: every op by its twin, one after the other. The truth, and slow.

use super::memory::{Charge, Ledger, MemoryReport, Purpose};
use super::sentinel::{Sentinels, Watch, check_layer};
use super::stepwise::every_step;
use super::{Backend, DeviceInfo, DeviceKind, Executor, Held, Observation, Observer, Stepwise};
use crate::error::Result;
use crate::kernels;
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{WeightId, Weights};
use crate::plan::{Batch, BufferId, Op, Plan};
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
        executor.charges = Some([
            self.ledger.charge(Purpose::Scratch, 0),
            self.ledger.charge(Purpose::Cache, n_cached as u64 * 4),
        ]);
        Ok(Box::new(executor))
    }
}

/// Keys and values of one layer, `[capacity, n_head_kv * head_dim]`, rounded to the cache's type.
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
    kv: KvLayout,
    watch: Watch,
    /// Of the buffers, which grow as they are needed, and of the caches.
    charges: Option<[Charge; 2]>,
}

impl ReferenceExecutor {
    pub(crate) fn new(weights: Weights, plan: Arc<Plan>, kv: &KvLayout) -> Self {
        let cache = |layer: usize| {
            let n = kv.capacity * kv.layers[layer].width();
            LayerCache {
                keys: vec![0.0; n],
                values: vec![0.0; n],
            }
        };
        ReferenceExecutor {
            buffers: vec![Vec::new(); plan.buffers.len()],
            caches: (0..kv.layers.len()).map(cache).collect(),
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

    /// The cache rows of a batch: keys, then values.
    pub(crate) fn cached_rows(&self, layer: usize, batch: &Batch<'_>) -> Vec<f32> {
        let width = self.kv.layers[layer].width();
        let rows = batch.position * width..(batch.position + batch.n_rows()) * width;
        let cache = &self.caches[layer];
        [&cache.keys[rows.clone()], &cache.values[rows]].concat()
    }

    /// Replaces the cache rows from `position` on by `rows`, keys and then values.
    pub(crate) fn replace_cached(&mut self, layer: usize, position: usize, rows: &[f32]) {
        let at = position * self.kv.layers[layer].width();
        let (keys, values) = rows.split_at(rows.len() / 2);
        self.caches[layer].keys[at..at + keys.len()].copy_from_slice(keys);
        self.caches[layer].values[at..at + values.len()].copy_from_slice(values);
    }

    /// Takes over what a step of another device has written.
    pub(crate) fn follow(&mut self, batch: &Batch<'_>, seen: &Observation<'_>) {
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
        self.compute(op, batch, &mut out);
        self.buffers[dst.0] = out;
    }

    fn store_kv(&mut self, k: BufferId, v: BufferId, layer: usize, batch: &Batch<'_>) {
        let at = batch.position * self.kv.layers[layer].width();
        let cache = &mut self.caches[layer];
        let ty: KvType = self.kv.ty;
        kernels::store_kv::twin(ty, &self.buffers[k.0], &mut cache.keys[at..]);
        kernels::store_kv::twin(ty, &self.buffers[v.0], &mut cache.values[at..]);
    }

    fn compute(&self, op: &Op, batch: &Batch<'_>, out: &mut [f32]) {
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
                src, weight, eps, ..
            } => {
                kernels::rms_norm::twin(buffer(src), &self.weights.vector(weight), eps, out);
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
                ..
            } => {
                let n_expert = self.plan.buffer(logits).width;
                let (logits, chosen) = (buffer(logits), buffer(chosen));
                let form = (normalised, scale);
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
            Op::WeightedSum { src, weights, dst } => {
                let n_slots = self.plan.buffer(weights).width;
                let width = self.plan.buffer(dst).width;
                kernels::experts::sum_twin(n_slots, width, buffer(src), buffer(weights), out);
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
                q,
                layer,
                n_head,
                scale,
                window,
                soft_cap,
                alibi,
                sinks,
                ..
            } => {
                let shape = kernels::attention::Shape {
                    n_head,
                    n_head_kv: self.kv.layers[layer].n_head_kv,
                    head_dim: self.kv.layers[layer].head_dim,
                    position: batch.position,
                    window,
                    scale,
                    soft_cap,
                    alibi,
                    has_sinks: sinks.is_some(),
                };
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
                    (stored.as_slice(), self.kv.layers[*layer].width())
                }
                (_, Some(dst)) => (self.buffer(dst), plan.token_width(dst)),
                (_, None) => continue,
            };
            observer(&Observation {
                index,
                step,
                values,
                width,
            })?;
        }
        Ok(())
    }

    fn set_buffer(&mut self, id: BufferId, rows: &[f32]) -> Result<()> {
        self.replace(id, rows);
        Ok(())
    }

    fn cached_keys(&self, layer: usize, batch: &Batch<'_>) -> Result<Vec<f32>> {
        let mut rows = self.cached_rows(layer, batch);
        rows.truncate(rows.len() / 2);
        Ok(rows)
    }

    fn set_cached_rows(&mut self, layer: usize, position: usize, rows: &[f32]) -> Result<()> {
        self.replace_cached(layer, position, rows);
        Ok(())
    }
}
