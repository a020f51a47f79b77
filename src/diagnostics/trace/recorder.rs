//! Takes what a trace asks for from the steps as they run.

use super::select::{Part, parts};
use super::statistics::Growing;
use super::{Trace, TraceOptions};
use crate::device::Observation;
use crate::error::{Error, Result};
use crate::kernels::attention;
use crate::kv_cache::{KvLayer, KvLayout};
use crate::model::Weights;
use crate::plan::{Batch, BufferId, Extent, Op, Outputs, Plan, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Sees the steps of a session's batches and keeps what is asked for.
pub(crate) struct Recorder<'a> {
    weights: &'a Weights,
    plan: &'a Plan,
    kv: &'a KvLayout,
    options: &'a TraceOptions,
    /// The positions that run.
    runs: Range<usize>,
    /// Those whose rows are kept.
    positions: BTreeSet<usize>,
    /// The tensors that are asked for, in the order of their steps.
    wanted: Vec<Wanted>,
    /// Queries of the batch `[n_rows, n_head * query_dim]`, where attention weights are asked for.
    queries: BTreeMap<BufferId, Vec<f32>>,
    /// Keys of every position so far, `[n_positions, key_width]`, of the layers whose attention weights are asked
    /// for; and their values, where these end keys.
    keys: BTreeMap<usize, [Vec<f32>; 2]>,
}

struct Wanted {
    /// The step's index in the plan.
    step: usize,
    part: Part,
    tensor: Growing,
}

impl<'a> Recorder<'a> {
    /// For tokens that run at some positions.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the options select nothing, or what is not there.
    pub(crate) fn new(
        weights: &'a Weights,
        plan: &'a Plan,
        kv: &'a KvLayout,
        options: &'a TraceOptions,
        runs: Range<usize>,
    ) -> Result<Recorder<'a>> {
        options.check(plan, kv.layers.len(), runs.clone())?;
        let mut recorder = Recorder {
            weights,
            plan,
            kv,
            options,
            positions: runs
                .clone()
                .filter(|&position| options.takes_position(position))
                .collect(),
            runs,
            wanted: Vec::new(),
            queries: BTreeMap::new(),
            keys: BTreeMap::new(),
        };
        let last = recorder.runs.end.saturating_sub(1);
        let takes_last = options.takes_position(last);
        for (index, step) in plan.steps.iter().enumerate() {
            let is_of_outputs = |dst| plan.buffer(dst).extent == Extent::Outputs;
            if step.op.dst().is_some_and(is_of_outputs) && !takes_last {
                continue;
            }
            for (part, name) in parts(step) {
                if options.takes(&name) {
                    recorder.want(index, step, part, name);
                }
            }
        }
        if recorder.wanted.is_empty() {
            return Err(Error::InvalidArgument {
                name: "positions",
                message: format!("these tensors have a row at position {last} alone"),
            });
        }
        Ok(recorder)
    }

    fn want(&mut self, index: usize, step: &Step, part: Part, name: String) {
        let row_shape = match (part, &step.op) {
            (
                Part::AttentionWeights,
                Op::Attention {
                    q, layer, n_head, ..
                },
            ) => {
                self.queries.insert(*q, Vec::new());
                self.keys.insert(*layer, Default::default());
                vec![*n_head, self.runs.end]
            }
            (Part::Values, Op::StoreKv { layer, .. }) => {
                vec![self.kv.layers[*layer].value_width()]
            }
            (_, Op::StoreKv { layer, .. }) => {
                vec![self.kv.layers[*layer].key_width()]
            }
            (_, op) => {
                let width = |dst| self.plan.token_width(dst);
                vec![op.dst().map_or(0, width)]
            }
        };
        let TraceOptions {
            first_values,
            whole,
            ..
        } = *self.options;
        self.wanted.push(Wanted {
            step: index,
            part,
            tensor: Growing::new(name, &row_shape, first_values, whole),
        });
    }

    /// Before the first batch: `cached_rows` reads keys and then values of a layer at the positions of a batch that
    /// ran before, `tokens` are all of the session.
    pub(crate) fn start(
        &mut self,
        tokens: &[u32],
        cached_rows: impl Fn(usize, &Batch<'_>) -> Result<Vec<f32>>,
    ) -> Result<()> {
        let before = Batch {
            tokens: &tokens[..self.runs.start],
            position: 0,
            outputs: Outputs::None,
        };
        if before.n_rows() > 0 {
            for (layer, keys) in &mut self.keys {
                *keys = kept(self.kv.layers[*layer], &cached_rows(*layer, &before)?);
            }
        }
        Ok(())
    }

    /// Takes what a step has just computed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where all values are kept.
    pub(crate) fn record(&mut self, batch: &Batch<'_>, seen: &Observation<'_>) -> Result<()> {
        let (keys, values) = match seen.step.op {
            Op::StoreKv { layer, .. } => self.kv.layers[layer].split(seen.values),
            _ => (seen.values, seen.values),
        };
        if let Op::StoreKv { layer, .. } = seen.step.op
            && let Some(so_far) = self.keys.get_mut(&layer)
        {
            let of_batch = kept(self.kv.layers[layer], seen.values);
            let parts = so_far.iter_mut().zip(of_batch);
            parts.for_each(|(so_far, rows)| so_far.extend(rows));
        }
        if let Some(queries) = seen
            .step
            .op
            .dst()
            .and_then(|dst| self.queries.get_mut(&dst))
        {
            seen.values.clone_into(queries);
        }
        let first = self
            .wanted
            .partition_point(|wanted| wanted.step < seen.index);
        for wanted in self.wanted[first..]
            .iter_mut()
            .take_while(|wanted| wanted.step == seen.index)
        {
            let rows = match wanted.part {
                Part::Keys => keys,
                Part::Output | Part::Values => values,
                Part::AttentionWeights => {
                    let Some((shape, q, keys)) =
                        attends(self.kv, &self.queries, &self.keys, batch, &seen.step.op)
                    else {
                        continue;
                    };
                    let mut weights = vec![0.0; wanted.tensor.width()];
                    let sinks = match seen.step.op {
                        Op::Attention { sinks, .. } => sinks.map(|id| self.weights.vector(id)),
                        _ => None,
                    };
                    let q_width = shape.n_head * shape.query_dim();
                    for (row, q) in q.chunks_exact(q_width).enumerate() {
                        let position = batch.position + row;
                        if self.positions.contains(&position) {
                            let sinks = sinks.as_deref();
                            attention::weights(&shape, sinks, row, q, keys, &mut weights);
                            wanted.tensor.push(position, &weights)?;
                        }
                    }
                    continue;
                }
            };
            let rows = rows.chunks_exact(wanted.tensor.width().max(1));
            // Rows of outputs are the last of their batch.
            let position = batch.position + batch.n_rows().saturating_sub(rows.len());
            for (row, values) in rows.enumerate() {
                if self.positions.contains(&(position + row)) {
                    wanted.tensor.push(position + row, values)?;
                }
            }
        }
        Ok(())
    }

    /// The trace of what was recorded.
    pub(crate) fn finish(self, source: String, tokens: &[u32]) -> Trace {
        let entries = self.wanted.into_iter();
        Trace {
            source,
            tokens: tokens.to_vec(),
            position: self.runs.start,
            options: Some(self.options.clone()),
            entries: entries
                .filter_map(|wanted| wanted.tensor.finish())
                .collect(),
        }
    }
}

/// Shape, queries, and keys and values as `Recorder` keeps them.
type Attended<'a> = (attention::Shape, &'a [f32], [&'a [f32]; 2]);

/// What an attention of a batch attends to.
fn attends<'a>(
    kv: &KvLayout,
    queries: &'a BTreeMap<BufferId, Vec<f32>>,
    keys: &'a BTreeMap<usize, [Vec<f32>; 2]>,
    batch: &Batch<'_>,
    op: &Op,
) -> Option<Attended<'a>> {
    let Op::Attention { q, layer, .. } = *op else {
        return None;
    };
    let shape = attention::Shape::of(op, kv, batch.position, batch.n_rows())?;
    let [keys, values] = keys.get(&layer)?;
    Some((shape, queries.get(&q)?, [keys, values]))
}

/// What of the rows of a layer's cache, keys and then values, attention weights are made of.
fn kept(layer: KvLayer, rows: &[f32]) -> [Vec<f32>; 2] {
    let (keys, values) = layer.split(rows);
    let values = match layer.values_end_keys {
        true => values.to_vec(),
        false => Vec::new(),
    };
    [keys.to_vec(), values]
}
