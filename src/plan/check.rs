//! A plan is checked before anything runs it: widths, order, names.

use super::{BufferId, Extent, Op, Plan, StateId, experts, recurrent};
use crate::error::{Error, Result};
use crate::kv_cache::KvLayer;
use crate::model::{WeightId, Weights};
use std::collections::BTreeSet;

/// Checks that every step reads what was written, in the widths its weights have.
///
/// # Errors
/// [`Error::InvalidModel`] naming the step.
pub(super) fn check(plan: &Plan, weights: &Weights, kv: &[KvLayer]) -> Result<()> {
    let mut written: BTreeSet<BufferId> = BTreeSet::new();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    let mut stored: BTreeSet<usize> = BTreeSet::new();
    let mut kept: BTreeSet<StateId> = BTreeSet::new();
    for step in &plan.steps {
        let fail = |what: String| {
            Err(Error::InvalidModel {
                message: format!("step `{}`: {what}", step.name),
            })
        };
        if !names.insert(&step.name) {
            return fail("stands in the plan twice".to_owned());
        }
        for source in step.op.sources() {
            if !written.contains(&source) {
                return fail(format!(
                    "reads `{}` before it is written",
                    plan.buffer(source).name
                ));
            }
            if step.op.dst() == Some(source) {
                return fail(format!(
                    "writes `{}`, which it reads",
                    plan.buffer(source).name
                ));
            }
        }
        if let Some(what) = mismatch(plan, weights, kv, &stored, &step.op) {
            return fail(what);
        }
        if step.op.state().is_some_and(|state| !kept.insert(state)) {
            return fail("keeps the state of another step".to_owned());
        }
        if let Op::StoreKv { layer, .. } = step.op {
            stored.insert(layer);
        }
        written.extend(step.op.dst());
    }
    for &index in &plan.layer_outputs {
        let dst = plan.steps.get(index).and_then(|step| step.op.dst());
        if dst.is_none_or(|dst| plan.buffer(dst).extent != Extent::Tokens) {
            return Err(Error::InvalidModel {
                message: format!(
                    "step {index} is no result of a layer: it has no row for each token"
                ),
            });
        }
    }
    if plan.buffer(plan.logits).extent != Extent::Outputs || !written.contains(&plan.logits) {
        return Err(Error::InvalidModel {
            message: "the plan writes no logits".to_owned(),
        });
    }
    Ok(())
}

/// What is wrong with the shapes of an op, if anything.
fn mismatch(
    plan: &Plan,
    weights: &Weights,
    kv: &[KvLayer],
    stored: &BTreeSet<usize>,
    op: &Op,
) -> Option<String> {
    let width = |id: BufferId| plan.buffer(id).width;
    let extent = |id: BufferId| plan.buffer(id).extent;
    let columns = |id: WeightId| weights.get(id).n_cols;
    let unequal = |what: &str, found: usize, expected: usize| {
        (found != expected).then(|| format!("{what} {found}, expected {expected}"))
    };
    let same_rows = |a: BufferId, b: BufferId| {
        (extent(a) != extent(b)).then(|| "mixes rows of tokens and of outputs".to_owned())
    };
    let of_tokens = |id: BufferId| {
        (extent(id) != Extent::Tokens).then(|| "is not a step over tokens".to_owned())
    };
    match *op {
        Op::Embed { weight, dst, .. } => {
            unequal("width", width(dst), columns(weight)).or_else(|| of_tokens(dst))
        }
        Op::RmsNorm {
            src,
            weight,
            group,
            dst,
            ..
        } => unequal("width", width(dst), width(src))
            .or_else(|| (group == 0).then(|| "has empty groups".to_owned()))
            .or_else(|| unequal("partial group", width(src) % group, 0))
            .or_else(|| {
                let weight = weights.get(weight?);
                unequal("rows of the norm", weight.n_rows, 1)
                    .or_else(|| unequal("weights of a group", weight.n_cols, group))
            })
            .or_else(|| same_rows(src, dst)),
        Op::LayerNorm {
            src,
            weight,
            bias,
            group,
            dst,
            ..
        } => unequal("width", width(dst), width(src))
            .or_else(|| (group == 0).then(|| "has empty groups".to_owned()))
            .or_else(|| unequal("rows of the norm", weights.get(weight).n_rows, 1))
            .or_else(|| unequal("partial group", columns(weight) % group, 0))
            .or_else(|| unequal("partial turn of weights", width(src) % columns(weight), 0))
            .or_else(|| bias.and_then(|bias| unequal("bias", columns(bias), columns(weight))))
            .or_else(|| same_rows(src, dst)),
        Op::MatMul {
            src,
            weight,
            bias,
            dst,
            ..
        } => unequal("input", width(src), columns(weight))
            .or_else(|| unequal("output", width(dst), weights.get(weight).n_rows))
            .or_else(|| bias.and_then(|bias| unequal("bias", columns(bias), width(dst))))
            .or_else(|| same_rows(src, dst)),
        Op::ChooseExperts {
            logits,
            bias,
            groups,
            dst,
            ..
        } => experts::choice(width(logits), width(dst), groups)
            .or_else(|| bias.and_then(|bias| unequal("bias", columns(bias), width(logits))))
            .or_else(|| of_tokens(logits))
            .or_else(|| of_tokens(dst)),
        Op::ExpertWeights {
            logits,
            chosen,
            factors,
            dst,
            ..
        } => unequal("width", width(dst), width(chosen))
            .or_else(|| factors.and_then(|id| unequal("factors", columns(id), width(logits))))
            .or_else(|| of_tokens(logits))
            .or_else(|| of_tokens(chosen))
            .or_else(|| of_tokens(dst)),
        Op::ExpertMatMul {
            src,
            chosen,
            weight,
            bias,
            n_expert,
            dst,
            ..
        } => unequal("input", width(src), columns(weight))
            .or_else(|| {
                let n_rows = weights.get(weight).n_rows;
                unequal("rows of all experts", n_rows, n_expert * width(dst))
            })
            .or_else(|| bias.and_then(|bias| unequal("bias", columns(bias), n_expert * width(dst))))
            .or_else(|| of_tokens(chosen))
            .or_else(|| slots("results", extent(dst), width(chosen)))
            .or_else(|| match extent(src) {
                Extent::Tokens => None,
                each => slots("inputs", each, width(chosen)),
            }),
        Op::HeadMatMul {
            src,
            weight,
            n_head,
            dst,
        } => (n_head == 0)
            .then(|| "has no heads".to_owned())
            .or_else(|| unequal("partial head", width(src) % n_head, 0))
            .or_else(|| unequal("partial matrix", weights.get(weight).n_rows % n_head, 0))
            .or_else(|| {
                let (src_dim, n_cols) = (width(src) / n_head, columns(weight));
                (src_dim < n_cols).then(|| format!("columns {n_cols}, expected up to {src_dim}"))
            })
            .or_else(|| {
                let rest = width(src) - n_head * columns(weight);
                unequal("output", width(dst), rest + weights.get(weight).n_rows)
            })
            .or_else(|| of_tokens(src))
            .or_else(|| of_tokens(dst)),
        Op::WeighSlots { src, weights, dst } => unequal("width", width(dst), width(src))
            .or_else(|| of_tokens(src))
            .or_else(|| of_tokens(weights))
            .or_else(|| slots("results", extent(dst), width(weights))),
        Op::WeightedSum { src, weights, dst } => unequal("width", width(dst), width(src))
            .or_else(|| weights.and_then(of_tokens))
            .or_else(|| of_tokens(dst))
            .or_else(|| match (extent(src), weights) {
                (Extent::Tokens, Some(weights)) => unequal("weights", width(weights), 1),
                (each, Some(weights)) => slots("terms", each, width(weights)),
                (Extent::Chosen(_), None) => None,
                (Extent::Tokens | Extent::Outputs, None) => Some("adds up single terms".to_owned()),
            }),
        Op::Rope {
            src,
            table,
            head_dim,
            dst,
        } => unequal("width", width(dst), width(src))
            .or_else(|| unequal("partial head", width(src) % head_dim, 0))
            .or_else(|| of_tokens(src))
            .or_else(|| of_tokens(dst))
            .or_else(|| {
                let n_dims = plan.rope_tables[table.0].n_dims();
                (n_dims > head_dim).then(|| format!("turns {n_dims} of {head_dim} dimensions"))
            }),
        Op::StoreKv { k, v, layer } => match kv.get(layer) {
            None => Some(format!("layer {layer} of {}", kv.len())),
            Some(cache) => unequal("keys", width(k), cache.key_width())
                .or_else(|| unequal("values", width(v), cache.value_width()))
                .or_else(|| of_tokens(k))
                .or_else(|| of_tokens(v)),
        },
        Op::Attention {
            q,
            layer,
            n_head,
            chunk,
            causal,
            window,
            alibi,
            sinks,
            dst,
            ..
        } => match kv.get(layer) {
            None => Some(format!("layer {layer} of {}", kv.len())),
            Some(_) if !stored.contains(&layer) => Some("reads a cache before it is stored".into()),
            Some(_) if !causal && (window.is_some() || chunk.is_some() || alibi) => {
                Some("measures distances, and is not causal".into())
            }
            Some(cache) => unequal("query", width(q), n_head * cache.query_dim())
                .or_else(|| unequal("width", width(dst), n_head * cache.value_dim))
                .or_else(|| (chunk == Some(0)).then(|| "has empty chunks".to_owned()))
                .or_else(|| unequal("partial group", n_head % cache.n_head_kv, 0))
                .or_else(|| sinks.and_then(|sinks| unequal("sinks", columns(sinks), n_head)))
                .or_else(|| of_tokens(q))
                .or_else(|| of_tokens(dst)),
        },
        Op::GatedActivation {
            gate: a,
            up: b,
            dst,
            ..
        }
        | Op::Add { a, b, dst } => unequal("width", width(b), width(a))
            .or_else(|| unequal("width", width(dst), width(a)))
            .or_else(|| same_rows(a, b))
            .or_else(|| same_rows(a, dst)),
        Op::Map { src, dst, .. } => {
            unequal("width", width(dst), width(src)).or_else(|| same_rows(src, dst))
        }
        Op::CausalConv { .. }
        | Op::StateScan { .. }
        | Op::DeltaRule { .. }
        | Op::GroupNorm { .. } => recurrent::mismatch(plan, weights, op),
        Op::TakeColumns {
            src,
            first,
            length,
            period,
            dst,
        } => {
            let is_inside = length > 0 && first.saturating_add(length) <= period;
            (!is_inside)
                .then(|| format!("takes {length} columns from {first} on, of {period}"))
                .or_else(|| unequal("partial group", width(src) % period, 0))
                .or_else(|| unequal("width", width(dst), width(src) / period * length))
                .or_else(|| same_rows(src, dst))
        }
        Op::SelectOutputs { src, dst } => unequal("width", width(dst), width(src))
            .or_else(|| of_tokens(src))
            .or_else(|| {
                (extent(dst) != Extent::Outputs).then(|| "does not select outputs".to_owned())
            }),
    }
}

/// What is wrong where there is to be a row for each of `n_chosen` experts.
fn slots(what: &str, extent: Extent, n_chosen: usize) -> Option<String> {
    (extent != Extent::Chosen(n_chosen))
        .then(|| format!("has {what} of {extent:?}, expected of {n_chosen} experts a token"))
}
