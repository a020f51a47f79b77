//! Where the time of a batch goes.

use crate::device::{BatchTimes, Clock};
use crate::kv_cache::{KvLayout, chunk_start, first_visible};
use crate::model::Weights;
use crate::plan::{Batch, Op, Plan};
use std::time::Duration;

/// How long each dispatch of a batch took; made by [`Session::profile`](crate::Session::profile).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Profile {
    /// What the times were read from.
    pub clock: Clock,
    /// What reading the clock added to each time, on average, as the same batch without it shows. It is
    /// taken off them.
    pub overhead: Duration,
    /// In the order of execution.
    pub dispatches: Vec<ProfiledDispatch>,
}

/// One run of a kernel, or one step where a device has no kernels of its own.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProfiledDispatch {
    /// The steps that it computes, e.g. `blk.3.attn_out` and `blk.3.ffn_inp`; the step that it is
    /// for where it only prepares an input.
    pub steps: Vec<String>,
    /// The kernel's name.
    pub kernel: Option<&'static str>,
    /// How long it took, by the profile's clock.
    pub time: Duration,
    /// Bytes of matrices and of the cache that its steps must read and write.
    pub bytes: u64,
    /// Multiplications and additions of its matrix products and of attention.
    pub operations: u64,
}

impl Profile {
    pub(crate) fn new(
        times: BatchTimes,
        plan: &Plan,
        weights: &Weights,
        kv: &KvLayout,
        batch: &Batch<'_>,
    ) -> Profile {
        // A step whose matrix is in several shards is written by several dispatches, and so is a store of
        // keys and values.
        let mut n_writers = vec![0; plan.steps.len()];
        for &step in times
            .dispatches
            .iter()
            .flat_map(|dispatch| &dispatch.writes)
        {
            n_writers[step] += 1;
        }
        let dispatch = |dispatch: crate::device::DispatchTime| {
            let (mut bytes, mut operations) = (0, 0);
            for &step in &dispatch.writes {
                let cost = Cost::of(&plan.steps[step].op, plan, weights, kv, batch);
                bytes += cost.bytes / n_writers[step];
                operations += cost.operations / n_writers[step];
            }
            let named = match &dispatch.writes[..] {
                [] => std::slice::from_ref(&dispatch.step),
                writes => writes,
            };
            ProfiledDispatch {
                steps: named
                    .iter()
                    .map(|&step| plan.steps[step].name.clone())
                    .collect(),
                kernel: dispatch.kernel,
                time: dispatch.time,
                bytes,
                operations,
            }
        };
        Profile {
            clock: times.clock,
            overhead: times.overhead,
            dispatches: times.dispatches.into_iter().map(dispatch).collect(),
        }
    }

    /// The times of all dispatches together.
    pub fn total_time(&self) -> Duration {
        self.dispatches.iter().map(|dispatch| dispatch.time).sum()
    }
}

/// What a step cannot do without.
#[derive(Debug, Default, PartialEq)]
struct Cost {
    bytes: u64,
    operations: u64,
}

impl Cost {
    fn of(op: &Op, plan: &Plan, weights: &Weights, kv: &KvLayout, batch: &Batch<'_>) -> Cost {
        let cache_row = |layer: usize| (kv.layers[layer].width() * kv.ty.bytes()) as u64;
        // It is read and written.
        let state_bytes = op.state().map_or(0, |id| plan.states[id.0].len as u64 * 8);
        match *op {
            Op::Embed { weight, .. } => {
                let weight = weights.get(weight);
                let row_bytes = weight.ty.row_bytes(weight.n_cols);
                Cost {
                    bytes: (batch.n_rows() * row_bytes) as u64,
                    operations: 0,
                }
            }
            Op::MatMul { weight, dst, .. } | Op::HeadMatMul { weight, dst, .. } => {
                let weight = weights.get(weight);
                let products = plan.rows_of(dst, batch) * weight.n_rows * weight.n_cols;
                Cost {
                    bytes: weight.stored_bytes(),
                    operations: 2 * products as u64,
                }
            }
            Op::ExpertMatMul {
                weight,
                n_expert,
                dst,
                ..
            } => {
                let weight = weights.get(weight);
                let n_slots = plan.rows_of(dst, batch);
                let of_expert = weight.n_rows / n_expert * weight.n_cols;
                // At least the experts of one token, which others may share.
                let n_read = n_slots.min(plan.buffer(dst).extent.n_slots());
                Cost {
                    bytes: weight.stored_bytes() / n_expert as u64 * n_read as u64,
                    operations: 2 * (n_slots * of_expert) as u64,
                }
            }
            Op::StoreKv { layer, .. } => Cost {
                bytes: batch.n_rows() as u64 * cache_row(layer),
                operations: 0,
            },
            Op::Attention {
                layer,
                n_head,
                causal,
                window,
                chunk,
                ..
            } => {
                let end = batch.position + batch.n_rows();
                let first = |position: usize| {
                    first_visible(position, window).max(chunk_start(position, chunk))
                };
                let visible = |position: usize| match causal {
                    true => (position + 1 - first(position)) as u64,
                    false => end as u64,
                };
                let pairs: u64 = (batch.position..end).map(visible).sum();
                let positions = (end - first(batch.position)) as u64;
                let shape = kv.layers[layer];
                let of_pair = 2 * n_head * (shape.query_dim() + shape.value_dim);
                Cost {
                    bytes: positions * cache_row(layer),
                    operations: pairs * of_pair as u64,
                }
            }
            Op::CausalConv { n_taps, dst, .. } => Cost {
                bytes: state_bytes,
                operations: 2 * (plan.token_width(dst) * batch.n_rows() * n_taps) as u64,
            },
            Op::StateScan { .. } | Op::DeltaRule { .. } => Cost {
                bytes: state_bytes,
                operations: 6 * state_bytes / 8 * batch.n_rows() as u64,
            },
            Op::RmsNorm { .. }
            | Op::GroupNorm { .. }
            | Op::TakeColumns { .. }
            | Op::LayerNorm { .. }
            | Op::Map { .. }
            | Op::Rope { .. }
            | Op::GatedActivation { .. }
            | Op::ChooseExperts { .. }
            | Op::ExpertWeights { .. }
            | Op::WeighSlots { .. }
            | Op::WeightedSum { .. }
            | Op::Add { .. }
            | Op::SelectOutputs { .. } => Cost::default(),
        }
    }
}
