//! The forward pass of the dense decoder family, once.

use super::architectures::{
    self, Architecture, FeedForward, Norms, Presence, QkNorm, RopeDivisors,
};
use super::spec::{DecoderSpec, LayerSpec};
use super::weights::{
    LONG_ROPE_DIVISORS, ROPE_DIVISORS, WeightFinder, WeightId, WeightStorage, Weights,
};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::plan::{AttentionParams, BufferId, Plan, PlanBuilder};
use std::sync::Arc;

/// A matrix and its bias.
type Linear = (WeightId, Option<WeightId>);

/// A decoder's spec with its weights found and checked.
pub(crate) struct DecoderModel {
    pub(crate) spec: DecoderSpec,
    pub(crate) weights: Weights,
    /// Tokens of a session's context, by which rope may differ.
    pub(crate) context_length: usize,
    norms_after_rope: bool,
    token_embd: WeightId,
    layers: Vec<LayerWeights>,
    output_norm: WeightId,
    output: Linear,
}

struct LayerWeights {
    attn_norm: Option<WeightId>,
    attn_q: Linear,
    attn_k: Linear,
    attn_v: Linear,
    attn_q_norm: Option<WeightId>,
    attn_k_norm: Option<WeightId>,
    attn_output: Linear,
    attn_post_norm: Option<WeightId>,
    ffn_norm: Option<WeightId>,
    ffn_gate: Linear,
    ffn_up: Linear,
    ffn_down: Linear,
    ffn_post_norm: Option<WeightId>,
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
            .map(|(index, layer)| layer_weights(&mut find, architecture, index, layer, hidden))
            .collect::<Result<Vec<_>>>()?;
        let output_norm = find.vector("output_norm.weight", hidden)?;
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
    let bias_name = format!("{name}.bias");
    let bias = match bias {
        Presence::Required => Some(find.vector(&bias_name, n_out)?),
        Presence::Optional if find.has(&bias_name) => Some(find.vector(&bias_name, n_out)?),
        Presence::Optional | Presence::Absent => None,
    };
    Ok((weight, bias))
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
    index: usize,
    layer: &LayerSpec,
    hidden: usize,
) -> Result<LayerWeights> {
    let prefix = format!("blk.{index}.");
    let n_q = layer.n_head * layer.head_dim;
    let n_ffn = layer.intermediate_size;
    let bias = architecture.other_bias;
    let norm = |find: &mut WeightFinder, name: &str, wanted: bool, n: usize| {
        wanted
            .then(|| find.vector(&format!("{prefix}{name}.weight"), n))
            .transpose()
    };
    let (before, after) = match architecture.norms {
        Norms::Before => (Some("ffn_norm"), false),
        Norms::BeforeByAnotherName => (Some("post_attention_norm"), false),
        Norms::After => (None, true),
        Norms::BeforeAndAfter => (Some("ffn_norm"), true),
    };
    let ffn_norm = before.unwrap_or_default();
    let qk_norm = architecture.qk_norm != QkNorm::None;
    let [n_q_norm, n_k_norm] = match architecture.qk_norm {
        QkNorm::Rows => [n_q, layer.n_head_kv * layer.head_dim],
        QkNorm::None | QkNorm::Heads | QkNorm::HeadsAfterRope => [layer.head_dim; 2],
    };
    let [attn_q, attn_k, attn_v] = attention_inputs(find, architecture, &prefix, layer, hidden)?;
    let [ffn_gate, ffn_up] = gate_and_up(find, architecture, &prefix, n_ffn, hidden)?;
    Ok(LayerWeights {
        attn_norm: norm(find, "attn_norm", before.is_some(), hidden)?,
        attn_q,
        attn_k,
        attn_v,
        attn_q_norm: norm(find, "attn_q_norm", qk_norm, n_q_norm)?,
        attn_k_norm: norm(find, "attn_k_norm", qk_norm, n_k_norm)?,
        attn_output: linear(find, &format!("{prefix}attn_output"), hidden, n_q, bias)?,
        attn_post_norm: norm(find, "post_attention_norm", after, hidden)?,
        ffn_norm: norm(find, ffn_norm, before.is_some(), hidden)?,
        ffn_gate,
        ffn_up,
        ffn_down: linear(find, &format!("{prefix}ffn_down"), hidden, n_ffn, bias)?,
        ffn_post_norm: norm(find, "post_ffw_norm", after, hidden)?,
    })
}

/// Both inner projections of the feed-forward block.
fn gate_and_up(
    find: &mut WeightFinder,
    architecture: &Architecture,
    prefix: &str,
    n_ffn: usize,
    hidden: usize,
) -> Result<[Linear; 2]> {
    let [gate, up] = ["ffn_gate", "ffn_up"].map(|name| format!("{prefix}{name}"));
    let bias = architecture.other_bias;
    match architecture.feed_forward {
        FeedForward::Gated => Ok([
            linear(find, &gate, n_ffn, hidden, bias)?,
            linear(find, &up, n_ffn, hidden, bias)?,
        ]),
        FeedForward::FusedGate => {
            let up = format!("{up}.weight");
            let shape = [2 * n_ffn, hidden];
            Ok([
                (find.part(&up, &shape, 0..n_ffn)?, None),
                (find.part(&up, &shape, n_ffn..2 * n_ffn)?, None),
            ])
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
    let eps = spec.rms_norm_eps;
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
        let residual = b.add("ffn_inp", attended, x);

        let normed = norm(&mut b, "ffn_norm", residual, w.ffn_norm, eps);
        let gate = b.matmul("ffn_gate", normed, w.ffn_gate);
        let up = b.matmul("ffn_up", normed, w.ffn_up);
        let gated = b.gated_activation("ffn_gated", gate, up, spec.activation);
        let down = b.matmul("ffn_out", gated, w.ffn_down);
        let down = norm(&mut b, "ffn_post_norm", down, w.ffn_post_norm, eps);
        x = b.add("l_out", down, residual);
    }
    b.layer(None);
    let outputs = b.select_outputs("result_rows", x);
    let normed = b.rms_norm("result_norm", outputs, model.output_norm, eps);
    let logits = b.matmul("result_output", normed, model.output);
    b.finish(logits, &spec.kv_layers(), max_rows, max_outputs)
}

fn attention(b: &mut PlanBuilder<'_>, model: &DecoderModel, index: usize, x: BufferId) -> BufferId {
    let (layer, w) = (&model.spec.layers[index], &model.layers[index]);
    let eps = model.spec.rms_norm_eps;
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
    };
    let attended = b.attention("kqv_out", q, params);
    b.matmul("attn_output", attended, w.attn_output)
}

/// The norm of `x`; `x` itself where there is none.
fn norm(
    b: &mut PlanBuilder<'_>,
    name: &str,
    x: BufferId,
    weight: Option<WeightId>,
    eps: f32,
) -> BufferId {
    weight.map_or(x, |weight| b.rms_norm(name, x, weight, eps))
}
