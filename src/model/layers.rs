//! The weights of a layer, found and checked.

use super::architectures::{
    Architecture, Block, Experts, FeedForward, NormKind, Norms, Presence, QkNorm, SharedExpert,
};
use super::expert_spec::ExpertSpec;
use super::rope::RopeScaling;
use super::spec::{DecoderSpec, LayerSpec};
use super::views::Heads;
use super::weights::{WeightFinder, WeightId};
use crate::error::Result;

/// A matrix and its bias.
pub(super) type Linear = (WeightId, Option<WeightId>);

/// A norm of rows, or of groups of them.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    pub(super) weight: WeightId,
    pub(super) form: NormForm,
}

#[derive(Clone, Copy)]
pub(super) enum NormForm {
    Rms,
    Layer {
        bias: Option<WeightId>,
        group: usize,
    },
}

/// What a layer has.
pub(super) struct LayerWeights {
    pub(super) attn_norm: Option<Norm>,
    pub(super) attn_q: Linear,
    pub(super) attn_k: Linear,
    pub(super) attn_v: Linear,
    pub(super) attn_q_norm: Option<Norm>,
    pub(super) attn_k_norm: Option<Norm>,
    pub(super) attn_output: Linear,
    pub(super) attn_sinks: Option<WeightId>,
    pub(super) attn_post_norm: Option<Norm>,
    /// Whether the feed-forward block stands beside attention, not behind it.
    pub(super) is_parallel: bool,
    pub(super) ffn_norm: Option<Norm>,
    pub(super) feed_forward: FeedForwardWeights,
    pub(super) ffn_post_norm: Option<Norm>,
}

pub(super) enum FeedForwardWeights {
    Dense(DenseWeights),
    Experts(ExpertWeights),
}

/// The matrices of a feed-forward block, or of each of its experts.
pub(super) struct DenseWeights {
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// A mixture of experts.
pub(super) struct ExpertWeights {
    pub(super) router: Linear,
    /// Added to scores for the choice alone.
    pub(super) choice_bias: Option<WeightId>,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) shared: Option<SharedWeights>,
}

/// The expert that all tokens have.
pub(super) struct SharedWeights {
    pub(super) gate_inp: Option<WeightId>,
    pub(super) block: DenseWeights,
}

pub(super) fn linear(
    find: &mut WeightFinder,
    name: &str,
    n_out: usize,
    n_in: usize,
    bias: Presence,
) -> Result<Linear> {
    let weight = find.matrix(&format!("{name}.weight"), n_out, n_in)?;
    let bias = optional_vector(find, &format!("{name}.bias"), n_out, bias)?;
    Ok((weight, bias))
}

fn optional_vector(
    find: &mut WeightFinder,
    name: &str,
    n: usize,
    presence: Presence,
) -> Result<Option<WeightId>> {
    let is_taken = match presence {
        Presence::Required => true,
        Presence::Optional => find.has(name),
        Presence::Absent => false,
    };
    is_taken.then(|| find.vector(name, n)).transpose()
}

/// Query, key and value projections: three tensors, or the rows of `attn_qkv` in that order.
pub(super) fn attention_inputs(
    find: &mut WeightFinder,
    architecture: &Architecture,
    prefix: &str,
    layer: &LayerSpec,
    hidden: usize,
) -> Result<[Linear; 3]> {
    let n_q = layer.n_head * layer.head_dim;
    let n_kv = layer.n_head_kv * layer.head_dim;
    let fused = format!("{prefix}attn_qkv.weight");
    if !find.has(&fused) {
        let mut one = |name: &str, n_out: usize| {
            linear(
                find,
                &format!("{prefix}{name}"),
                n_out,
                hidden,
                architecture.qkv_bias,
            )
        };
        return Ok([
            one("attn_q", n_q)?,
            one("attn_k", n_kv)?,
            one("attn_v", n_kv)?,
        ]);
    }
    let n_all = n_q + 2 * n_kv;
    let fused_bias = format!("{prefix}attn_qkv.bias");
    let has_bias = match architecture.qkv_bias {
        Presence::Required => true,
        Presence::Optional => find.has(&fused_bias),
        Presence::Absent => false,
    };
    let mut one = |rows: std::ops::Range<usize>| -> Result<Linear> {
        let weight = find.part(&fused, &[n_all, hidden], rows.clone())?;
        let bias = has_bias
            .then(|| find.vector_part(&fused_bias, n_all, rows))
            .transpose()?;
        Ok((weight, bias))
    };
    Ok([one(0..n_q)?, one(n_q..n_q + n_kv)?, one(n_q + n_kv..n_all)?])
}

pub(super) fn layer_weights(
    find: &mut WeightFinder,
    architecture: &Architecture,
    spec: &DecoderSpec,
    index: usize,
    layer: &LayerSpec,
) -> Result<LayerWeights> {
    let hidden = spec.hidden_size;
    let prefix = format!("blk.{index}.");
    let n_q = layer.n_head * layer.head_dim;
    let bias = architecture.other_bias;
    let norm = |find: &mut WeightFinder, name: &str, wanted: bool, n: usize| {
        let name = format!("{prefix}{name}");
        wanted
            .then(|| row_norm(find, architecture, &name, n))
            .transpose()
    };
    let (before, after) = match architecture.norms {
        Norms::Before => (Some("ffn_norm"), false),
        Norms::BeforeByAnotherName => (Some("post_attention_norm"), false),
        Norms::After => (None, true),
        Norms::BeforeAndAfter => (Some("ffn_norm"), true),
    };
    let ffn_norm = before.unwrap_or_default();
    let has = |find: &WeightFinder, name: &str| find.has(&format!("{prefix}{name}.weight"));
    let (is_parallel, attn_norm, ffn_norm) = match architecture.block {
        Block::Sequential => (false, "attn_norm", before),
        Block::Parallel => (true, "attn_norm", None),
        Block::ParallelWithoutNorm if !has(find, ffn_norm) => (true, "attn_norm", None),
        Block::ParallelWithoutNorm => (false, "attn_norm", before),
        Block::ParallelWhereStated => (spec.states_parallel == Some(true), "attn_norm", before),
        Block::ParallelSecondNorm if has(find, "attn_norm_2") => {
            (true, "attn_norm_2", Some("attn_norm"))
        }
        Block::ParallelSecondNorm => (true, "attn_norm", None),
    };
    let [attn_q, attn_k, attn_v] = attention_inputs(find, architecture, &prefix, layer, hidden)?;
    Ok(LayerWeights {
        attn_norm: norm(find, attn_norm, before.is_some(), hidden)?,
        attn_q,
        attn_k,
        attn_v,
        attn_q_norm: qk_norm(
            find,
            architecture,
            &format!("{prefix}attn_q_norm"),
            (spec, layer),
            layer.n_head,
        )?,
        attn_k_norm: qk_norm(
            find,
            architecture,
            &format!("{prefix}attn_k_norm"),
            (spec, layer),
            layer.n_head_kv,
        )?,
        attn_output: linear(find, &format!("{prefix}attn_output"), hidden, n_q, bias)?,
        attn_sinks: match architecture.has_sinks {
            true => Some(find.vector(&format!("{prefix}attn_sinks.weight"), layer.n_head)?),
            false => None,
        },
        attn_post_norm: norm(find, "post_attention_norm", after, hidden)?,
        is_parallel,
        ffn_norm: norm(
            find,
            ffn_norm.unwrap_or_default(),
            ffn_norm.is_some(),
            hidden,
        )?,
        feed_forward: feed_forward_weights(find, architecture, &prefix, layer, hidden)?,
        ffn_post_norm: norm(find, "post_ffw_norm", after, hidden)?,
    })
}

/// The weights of attention alone.
pub(super) struct AttentionWeights {
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) q_norm: Option<Norm>,
    pub(super) k_norm: Option<Norm>,
    pub(super) output: Linear,
}

/// The attention of a layer with its norms of heads.
pub(super) fn attention_weights(
    find: &mut WeightFinder,
    architecture: &Architecture,
    prefix: &str,
    spec: &DecoderSpec,
    layer: &LayerSpec,
) -> Result<AttentionWeights> {
    let hidden = spec.hidden_size;
    let n_q = layer.n_head * layer.head_dim;
    let [q, k, v] = attention_inputs(find, architecture, prefix, layer, hidden)?;
    let mut norm = |name: &str, n_head: usize| {
        let name = format!("{prefix}{name}");
        qk_norm(find, architecture, &name, (spec, layer), n_head)
    };
    let [q_norm, k_norm] = [
        norm("attn_q_norm", layer.n_head)?,
        norm("attn_k_norm", layer.n_head_kv)?,
    ];
    let bias = architecture.other_bias;
    Ok(AttentionWeights {
        q,
        k,
        v,
        q_norm,
        k_norm,
        output: linear(find, &format!("{prefix}attn_output"), hidden, n_q, bias)?,
    })
}

/// The feed-forward block of a layer, dense or a mixture of experts.
pub(super) fn feed_forward_weights(
    find: &mut WeightFinder,
    architecture: &Architecture,
    prefix: &str,
    layer: &LayerSpec,
    hidden: usize,
) -> Result<FeedForwardWeights> {
    match (&layer.experts, architecture.experts) {
        (Some(spec), Some(experts)) => {
            let found = expert_weights(find, architecture, &experts, prefix, spec, hidden)?;
            Ok(FeedForwardWeights::Experts(found))
        }
        _ => {
            let (n_ffn, bias) = (layer.intermediate_size, architecture.other_bias);
            let (gate, up) = gate_and_up(find, architecture, prefix, n_ffn, hidden)?;
            let down = linear(find, &format!("{prefix}ffn_down"), hidden, n_ffn, bias)?;
            Ok(FeedForwardWeights::Dense(DenseWeights { gate, up, down }))
        }
    }
}

/// The norm `name` of rows of `n` elements.
pub(super) fn row_norm(
    find: &mut WeightFinder,
    architecture: &Architecture,
    name: &str,
    n: usize,
) -> Result<Norm> {
    let weight = find.vector(&format!("{name}.weight"), n)?;
    let form = match architecture.norm {
        NormKind::Rms => NormForm::Rms,
        NormKind::Layer(bias) => NormForm::Layer {
            bias: optional_vector(find, &format!("{name}.bias"), n, bias)?,
            group: n,
        },
    };
    Ok(Norm { weight, form })
}

/// The norm `name` of queries or keys.
fn qk_norm(
    find: &mut WeightFinder,
    architecture: &Architecture,
    name: &str,
    (spec, layer): (&DecoderSpec, &LayerSpec),
    n_head: usize,
) -> Result<Option<Norm>> {
    let weight = format!("{name}.weight");
    let head_dim = layer.head_dim;
    let n = match architecture.qk_norm {
        QkNorm::None => return Ok(None),
        QkNorm::OptionalHeads if !find.has(&weight) => return Ok(None),
        QkNorm::Heads | QkNorm::OptionalHeads | QkNorm::HeadsAfterRope => head_dim,
        QkNorm::Rows => n_head * head_dim,
        QkNorm::OptionalByHead if find.has(&weight) => {
            let form = NormForm::Layer {
                bias: None,
                group: head_dim,
            };
            let weight = find.flat(&weight, n_head, head_dim)?;
            return Ok(Some(Norm { weight, form }));
        }
        QkNorm::OptionalByHead => return Ok(None),
        QkNorm::TurnedWithoutWeight { unless_experts } => {
            let mut experts = spec.layers.iter().flat_map(|layer| &layer.experts);
            let is_without = experts.any(|experts| experts.n_expert == unless_experts);
            let rope = layer.rope.as_ref();
            let turns = rope.is_some_and(|rope| rope.scaling != RopeScaling::Still);
            return Ok((turns && !is_without).then(|| Norm {
                weight: find.ones(head_dim),
                form: NormForm::Rms,
            }));
        }
    };
    row_norm(find, architecture, name, n).map(Some)
}

/// The inner projections of the feed-forward block.
pub(super) fn gate_and_up(
    find: &mut WeightFinder,
    architecture: &Architecture,
    prefix: &str,
    n_ffn: usize,
    hidden: usize,
) -> Result<(Option<Linear>, Linear)> {
    let [gate, up] = ["ffn_gate", "ffn_up"].map(|name| format!("{prefix}{name}"));
    let bias = architecture.other_bias;
    match architecture.feed_forward {
        FeedForward::Gated => Ok((
            Some(linear(find, &gate, n_ffn, hidden, bias)?),
            linear(find, &up, n_ffn, hidden, bias)?,
        )),
        FeedForward::Plain => Ok((None, linear(find, &up, n_ffn, hidden, bias)?)),
        FeedForward::FusedGate => {
            let up = format!("{up}.weight");
            let shape = [2 * n_ffn, hidden];
            Ok((
                Some((find.part(&up, &shape, 0..n_ffn)?, None)),
                (find.part(&up, &shape, n_ffn..2 * n_ffn)?, None),
            ))
        }
    }
}

fn expert_weights(
    find: &mut WeightFinder,
    architecture: &Architecture,
    experts: &Experts,
    prefix: &str,
    spec: &ExpertSpec,
    hidden: usize,
) -> Result<ExpertWeights> {
    let (n_expert, n_ffn) = (spec.n_expert, spec.intermediate_size);
    let bias = experts.bias;
    let fused = format!("{prefix}ffn_gate_up_exps.weight");
    let names = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];
    let [of_gate, of_up, of_down] = names.map(|name| format!("{prefix}{name}"));
    let mut weight = |name: &str, n_out: usize, n_in: usize| {
        let shape = [n_expert, n_out, n_in];
        let of_expert = |expert: usize| {
            let name = name.strip_suffix("_exps").unwrap_or(name);
            format!("{name}.{expert}.weight")
        };
        // The first half of the rows of each expert is its gate.
        let half = [(&of_gate, 0), (&of_up, n_out)]
            .into_iter()
            .find_map(|(half, first)| (name == half).then_some(first));
        match half {
            Some(first) if find.has(&fused) => {
                let heads = Heads {
                    rows: 2 * n_out,
                    first,
                    taken: n_out,
                    n_cols: n_in,
                    transposed: false,
                };
                find.heads(&fused, &[n_expert, 2 * n_out, n_in], n_expert, heads)
            }
            _ if find.has(&of_expert(0)) => find.stacked(of_expert, shape),
            _ => find.matrices(&format!("{name}.weight"), shape),
        }
    };
    // What is alike follows each other: a kernel may then read both.
    let gate = weight(&of_gate, n_ffn, hidden)?;
    let up = weight(&of_up, n_ffn, hidden)?;
    let down = weight(&of_down, hidden, n_ffn)?;
    let mut with_bias = |weight, name: &str, n_out: usize| -> Result<Linear> {
        let name = format!("{name}.bias");
        let has_bias = match bias {
            Presence::Required => true,
            Presence::Optional => find.has(&name),
            Presence::Absent => false,
        };
        let bias = has_bias.then(|| find.flat(&name, n_expert, n_out));
        Ok((weight, bias.transpose()?))
    };
    let gate = with_bias(gate, &of_gate, n_ffn)?;
    let up = with_bias(up, &of_up, n_ffn)?;
    let down = with_bias(down, &of_down, hidden)?;
    let router = format!("{prefix}ffn_gate_inp");
    let choice_bias = format!("{prefix}exp_probs_b.bias");
    let shared = |find: &mut WeightFinder, n_ffn: usize| -> Result<SharedWeights> {
        let mut one = |name: &str, n_out: usize, n_in: usize| {
            let bias = architecture.other_bias;
            linear(find, &format!("{prefix}{name}"), n_out, n_in, bias)
        };
        let block = DenseWeights {
            gate: Some(one("ffn_gate_shexp", n_ffn, hidden)?),
            up: one("ffn_up_shexp", n_ffn, hidden)?,
            down: one("ffn_down_shexp", hidden, n_ffn)?,
        };
        let gate_inp = format!("{prefix}ffn_gate_inp_shexp.weight");
        let gate_inp = match experts.shared {
            SharedExpert::Gated => Some(find.single_row(&gate_inp, hidden)?),
            SharedExpert::None | SharedExpert::Plain | SharedExpert::AsExpert => None,
        };
        Ok(SharedWeights { gate_inp, block })
    };
    Ok(ExpertWeights {
        router: linear(find, &router, n_expert, hidden, bias)?,
        choice_bias: optional_vector(find, &choice_bias, n_expert, experts.choice_bias)?,
        gate,
        up,
        down,
        shared: spec
            .shared_size
            .map(|n_ffn| shared(find, n_ffn))
            .transpose()?,
    })
}
