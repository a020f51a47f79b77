//! The forward pass of the dense decoder family, once.

use super::architectures::{
    self, Architecture, Block, FeedForward, NormKind, Norms, Presence, QkNorm, RopeDivisors,
};
use super::spec::{DecoderSpec, LayerSpec};
use super::weights::{
    LONG_ROPE_DIVISORS, ROPE_DIVISORS, WeightFinder, WeightId, WeightStorage, Weights,
};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::plan::{Activation, AttentionParams, BufferId, Function, Plan, PlanBuilder};
use std::sync::Arc;

/// A matrix and its bias.
type Linear = (WeightId, Option<WeightId>);

/// A norm of rows, or of groups of them.
#[derive(Clone, Copy)]
struct Norm {
    weight: WeightId,
    form: NormForm,
}

#[derive(Clone, Copy)]
enum NormForm {
    Rms,
    Layer {
        bias: Option<WeightId>,
        group: usize,
    },
}

/// A decoder's spec with its weights found and checked.
pub(crate) struct DecoderModel {
    pub(crate) spec: DecoderSpec,
    pub(crate) weights: Weights,
    /// Tokens of a session's context, by which rope may differ.
    pub(crate) context_length: usize,
    norms_after_rope: bool,
    token_embd: WeightId,
    layers: Vec<LayerWeights>,
    output_norm: Norm,
    output: Linear,
}

struct LayerWeights {
    attn_norm: Option<Norm>,
    attn_q: Linear,
    attn_k: Linear,
    attn_v: Linear,
    attn_q_norm: Option<Norm>,
    attn_k_norm: Option<Norm>,
    attn_output: Linear,
    attn_post_norm: Option<Norm>,
    /// Whether the feed-forward block stands beside attention, not behind it.
    is_parallel: bool,
    ffn_norm: Option<Norm>,
    ffn_gate: Option<Linear>,
    ffn_up: Linear,
    ffn_down: Linear,
    ffn_post_norm: Option<Norm>,
}

impl DecoderModel {
    /// Finds every weight of a file; each tensor must have its place and its shape.
    ///
    /// # Errors
    /// `InvalidModel` for a tensor that is missing, unused or of another shape, `Unsupported` for an
    /// architecture, hyper-parameter or weight type that is not known.
    pub(crate) fn from_gguf(gguf: Arc<Gguf>, storage: WeightStorage) -> Result<Self> {
        let spec = DecoderSpec::from_gguf(&gguf)?;
        let architecture = architectures::find(&spec.architecture)?;
        let mut find = WeightFinder::new(gguf, storage);
        let hidden = spec.hidden_size;

        let token_embd = find.matrix("token_embd.weight", spec.vocab_size, hidden)?;
        let layers = spec
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| layer_weights(&mut find, architecture, &spec, index, layer))
            .collect::<Result<Vec<_>>>()?;
        let output_norm = row_norm(&mut find, architecture, "output_norm", hidden)?;
        let output = if find.has("output.weight") {
            linear(
                &mut find,
                "output",
                spec.vocab_size,
                hidden,
                Presence::Optional,
            )?
        } else {
            (token_embd, None)
        };
        match architecture.rope_divisors {
            RopeDivisors::None => {}
            RopeDivisors::Fixed => find.mark_used(ROPE_DIVISORS),
            RopeDivisors::ByContext => {
                LONG_ROPE_DIVISORS
                    .iter()
                    .for_each(|name| find.mark_used(name));
            }
        }
        let weights = find.finish()?;
        Ok(DecoderModel {
            context_length: spec.context_length,
            norms_after_rope: architecture.qk_norm == QkNorm::HeadsAfterRope,
            spec,
            weights,
            token_embd,
            layers,
            output_norm,
            output,
        })
    }

    /// Leaves out all layers but the first `n_layer`.
    ///
    /// # Errors
    /// `InvalidArgument` for more layers than there are, or none.
    pub(crate) fn keep_layers(&mut self, n_layer: usize) -> Result<()> {
        if !(1..=self.layers.len()).contains(&n_layer) {
            return Err(Error::InvalidArgument {
                name: "layers",
                message: format!("{n_layer}, expected 1 to {}", self.layers.len()),
            });
        }
        self.layers.truncate(n_layer);
        self.spec.layers.truncate(n_layer);
        Ok(())
    }
}

fn linear(
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
fn attention_inputs(
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

fn layer_weights(
    find: &mut WeightFinder,
    architecture: &Architecture,
    spec: &DecoderSpec,
    index: usize,
    layer: &LayerSpec,
) -> Result<LayerWeights> {
    let hidden = spec.hidden_size;
    let prefix = format!("blk.{index}.");
    let n_q = layer.n_head * layer.head_dim;
    let n_ffn = layer.intermediate_size;
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
    let (ffn_gate, ffn_up) = gate_and_up(find, architecture, &prefix, n_ffn, hidden)?;
    Ok(LayerWeights {
        attn_norm: norm(find, attn_norm, before.is_some(), hidden)?,
        attn_q,
        attn_k,
        attn_v,
        attn_q_norm: qk_norm(
            find,
            architecture,
            &format!("{prefix}attn_q_norm"),
            layer.n_head,
            layer.head_dim,
        )?,
        attn_k_norm: qk_norm(
            find,
            architecture,
            &format!("{prefix}attn_k_norm"),
            layer.n_head_kv,
            layer.head_dim,
        )?,
        attn_output: linear(find, &format!("{prefix}attn_output"), hidden, n_q, bias)?,
        attn_post_norm: norm(find, "post_attention_norm", after, hidden)?,
        is_parallel,
        ffn_norm: norm(
            find,
            ffn_norm.unwrap_or_default(),
            ffn_norm.is_some(),
            hidden,
        )?,
        ffn_gate,
        ffn_up,
        ffn_down: linear(find, &format!("{prefix}ffn_down"), hidden, n_ffn, bias)?,
        ffn_post_norm: norm(find, "post_ffw_norm", after, hidden)?,
    })
}

/// The norm `name` of rows of `n` elements.
fn row_norm(
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
    n_head: usize,
    head_dim: usize,
) -> Result<Option<Norm>> {
    let weight = format!("{name}.weight");
    let n = match architecture.qk_norm {
        QkNorm::None => return Ok(None),
        QkNorm::Heads | QkNorm::HeadsAfterRope => head_dim,
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
    };
    row_norm(find, architecture, name, n).map(Some)
}

/// The inner projections of the feed-forward block.
fn gate_and_up(
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

/// The forward pass for batches of at most `max_rows` tokens and `max_outputs` rows of logits.
///
/// Step names are llama.cpp's where it has one: `Qcur` and `Kcur` are the rotated projections,
/// `kqv_out` is the attention before its output projection, `l_out` a layer's result.
pub(crate) fn decoder_plan(
    model: &DecoderModel,
    max_rows: usize,
    max_outputs: usize,
) -> Result<Plan> {
    let DecoderModel { spec, weights, .. } = model;
    let eps = spec.norm_eps;
    let mut b = PlanBuilder::new(weights);

    let embedding = if spec.embedding_scale == 1.0 {
        "embd"
    } else {
        "inp_scaled"
    };
    let mut x = b.embed(embedding, model.token_embd, spec.embedding_scale);
    for (index, w) in model.layers.iter().enumerate() {
        b.layer(Some(index));
        let normed = norm(&mut b, "attn_norm", x, w.attn_norm, eps);
        let attended = attention(&mut b, model, index, normed);
        let attended = norm(&mut b, "attn_post_norm", attended, w.attn_post_norm, eps);
        let attended = scaled(&mut b, "attn_scaled", attended, spec.residual_scale);
        let residual = b.add("ffn_inp", attended, x);

        let input = match (w.is_parallel, w.ffn_norm) {
            (true, None) => normed,
            (true, own) => norm(&mut b, "ffn_norm", x, own, eps),
            (false, own) => norm(&mut b, "ffn_norm", residual, own, eps),
        };
        let inner = feed_forward(&mut b, w, input, spec.activation);
        let down = b.matmul("ffn_out", inner, w.ffn_down);
        let down = norm(&mut b, "ffn_post_norm", down, w.ffn_post_norm, eps);
        let down = scaled(&mut b, "ffn_scaled", down, spec.residual_scale);
        x = b.add("l_out", down, residual);
    }
    b.layer(None);
    let outputs = b.select_outputs("result_rows", x);
    let normed = norm(&mut b, "result_norm", outputs, Some(model.output_norm), eps);
    let mut logits = b.matmul("result_output", normed, model.output);
    logits = scaled(&mut b, "result_scaled", logits, spec.logit_scale);
    if let Some(cap) = spec.logit_soft_cap {
        logits = b.map("result_capped", logits, Function::SoftCap(cap));
    }
    b.finish(logits, &spec.kv_layers(), max_rows, max_outputs)
}

/// What the last projection of a feed-forward block takes in.
fn feed_forward(
    b: &mut PlanBuilder<'_>,
    w: &LayerWeights,
    x: BufferId,
    activation: Activation,
) -> BufferId {
    let Some(gate) = w.ffn_gate else {
        let up = b.matmul("ffn_up", x, w.ffn_up);
        return b.map("ffn_act", up, Function::Activation(activation));
    };
    let gate = b.matmul("ffn_gate", x, gate);
    let up = b.matmul("ffn_up", x, w.ffn_up);
    b.gated_activation("ffn_gated", gate, up, activation)
}

fn scaled(b: &mut PlanBuilder<'_>, name: &str, x: BufferId, factor: f32) -> BufferId {
    match factor {
        1.0 => x,
        _ => b.map(name, x, Function::Scale(factor)),
    }
}

fn attention(b: &mut PlanBuilder<'_>, model: &DecoderModel, index: usize, x: BufferId) -> BufferId {
    let (layer, w) = (&model.spec.layers[index], &model.layers[index]);
    let eps = model.spec.norm_eps;
    let mut q = b.matmul("attn_q", x, w.attn_q);
    let mut k = b.matmul("attn_k", x, w.attn_k);
    let v = b.matmul("Vcur", x, w.attn_v);
    for norms in [!model.norms_after_rope, model.norms_after_rope] {
        if norms {
            q = norm(b, "attn_q_norm", q, w.attn_q_norm, eps);
            k = norm(b, "attn_k_norm", k, w.attn_k_norm, eps);
        } else if let Some(rope) = &layer.rope {
            let table = b.rope_table(rope.query_table(model.context_length));
            q = b.rope("Qcur", q, table, layer.head_dim);
            let table = b.rope_table(rope.table(model.context_length));
            k = b.rope("Kcur", k, table, layer.head_dim);
        }
    }
    b.store_kv("kv_cache", k, v, index);
    let params = AttentionParams {
        layer: index,
        n_head: layer.n_head,
        scale: layer.attention_scale,
        window: layer.window,
        soft_cap: layer.soft_cap,
        alibi: false,
    };
    let attended = b.attention("kqv_out", q, params);
    b.matmul("attn_output", attended, w.attn_output)
}

/// The norm of `x`; `x` itself where there is none.
fn norm(
    b: &mut PlanBuilder<'_>,
    name: &str,
    x: BufferId,
    norm: Option<Norm>,
    eps: f32,
) -> BufferId {
    let Some(Norm { weight, form }) = norm else {
        return x;
    };
    match form {
        NormForm::Rms => b.rms_norm(name, x, weight, eps),
        NormForm::Layer { bias, group } => b.layer_norm(name, x, (weight, bias), group, eps),
    }
}
