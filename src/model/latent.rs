//! Multi-head latent attention (arXiv:2405.04434, section 2.1): its shape, its weights and its forward pass.
//!
//! The cache holds the latent of a position and a key that all heads share. Keys and values of heads are products of
//! the latent with matrices of theirs, and nothing needs them: the queries are multiplied with the matrices of the keys
//! instead, and what attention makes of latents with those of the values.

use super::architectures::Architecture;
use super::decoder::{self, DecoderModel};
use super::expert_spec;
use super::hyperparameters::Hyperparameters;
use super::layers::{FeedForwardWeights, Linear, Norm, feed_forward_weights, linear, row_norm};
use super::rope::{RopeScaling, RopeSpec};
use super::rope_spec;
use super::spec::{DecoderSpec, LayerSpec, MAX_COUNT, in_range};
use super::views::Heads;
use super::weights::{WeightFinder, WeightId};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::kv_cache::{KvLayer, MAX_HEAD_DIM};
use crate::model::architectures::Presence;
use crate::plan::{AttentionParams, BufferId, EmbedIndex, Gating, Plan, PlanBuilder};

/// The latent attention of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentSpec {
    /// Width of what queries are made of, where it is not the residual stream.
    pub q_rank: Option<usize>,
    /// Width of what keys and values are made of.
    pub kv_rank: usize,
    /// Elements of a head that turn, behind those that do not; all heads share their keys.
    pub rope_dim: usize,
    /// Elements of a head's value.
    pub value_dim: usize,
}

impl LatentSpec {
    /// What the cache holds for a position.
    pub(super) fn kv_layer(&self) -> KvLayer {
        KvLayer {
            n_head_kv: 1,
            head_dim: self.rope_dim,
            value_dim: self.kv_rank,
            values_end_keys: true,
        }
    }
}

/// The layers of a model, `n_layer` of them.
pub(super) fn layers(
    gguf: &Gguf,
    architecture: &Architecture,
    keys: &Hyperparameters<'_>,
    n_layer: usize,
    vocab_size: usize,
) -> Result<Vec<LayerSpec>> {
    let required = |key: &str| -> Result<Vec<usize>> {
        let counts = keys.per_layer(key, n_layer)?;
        let counts = counts.ok_or_else(|| keys.invalid(key, "missing"))?;
        for &count in &counts {
            in_range(keys, key, Some(count), MAX_COUNT)?;
        }
        Ok(counts)
    };
    let n_head = required("attention.head_count")?;
    // That of a cache of latents is 1, and what a cache of heads would have is of no use here.
    keys.per_layer("attention.head_count_kv", n_layer)?;
    let intermediate_size = required("feed_forward_length")?;
    let mut experts = expert_spec::read(architecture, keys, &intermediate_size)?;
    // Files of GLM-4.7-Flash that do not state it: src/models/deepseek2.cpp
    if keys.usize("expert_gating_func")?.is_none()
        && [47, 48].contains(&n_layer)
        && vocab_size == 154_880
    {
        let experts = experts.iter_mut().flatten();
        experts.for_each(|experts| experts.gating = Gating::Sigmoid);
    }
    let latent = |key: &str| size(keys, key, MAX_HEAD_DIM);
    let kv_rank = latent("attention.kv_lora_rank")?;
    let stated = |key: &str, older: &str| match keys.usize(key)? {
        Some(_) => {
            keys.usize(older)?;
            latent(key)
        }
        None => latent(older),
    };
    let head_dim = stated("attention.key_length_mla", "attention.key_length")?;
    let value_dim = stated("attention.value_length_mla", "attention.value_length")?;
    let mut rope = rope_spec::read(gguf, architecture, keys, head_dim)?;
    let rope_dim = rope.n_dims;
    if !rope_dim.is_multiple_of(4) || rope_dim >= head_dim {
        let what = format!("{rope_dim}, expected a multiple of 4 below the key's {head_dim}");
        return Err(keys.invalid("rope.dimension_count", what));
    }
    let attention_scale = scale(&mut rope, head_dim);
    let spec = LatentSpec {
        q_rank: match keys.usize("attention.q_lora_rank")? {
            None | Some(0) => None,
            rank => Some(in_range(keys, "attention.q_lora_rank", rank, MAX_COUNT)?),
        },
        kv_rank,
        rope_dim,
        value_dim,
    };
    let layer = |layer: usize| LayerSpec {
        n_head: n_head[layer],
        n_head_kv: 1,
        head_dim,
        latent: Some(spec.clone()),
        intermediate_size: intermediate_size[layer],
        experts: experts[layer].clone(),
        attention_scale,
        window: None,
        chunk: None,
        soft_cap: None,
        alibi: false,
        rope: Some(rope.clone()),
        recurrent: None,
    };
    Ok((0..n_layer).map(layer).collect())
}

/// The length of a vector that kernels take in words of 4 elements.
fn size(keys: &Hyperparameters<'_>, key: &str, most: usize) -> Result<usize> {
    let size = keys.require_usize(key)?;
    match size.is_multiple_of(4) && (4..=most).contains(&size) {
        true => Ok(size),
        false => {
            let what = format!("{size}, expected a multiple of 4 up to {most}");
            Err(keys.invalid(key, what))
        }
    }
}

/// The factor on scores (src/models/deepseek2.cpp): `s^2 / sqrt(head_dim)`, where `s` is the magnitude of rope times
/// `1 + 0.1 L ln(factor)` and YaRN's `L` is ten times what the file states. One that is stated takes the magnitude
/// away from rope.
fn scale(rope: &mut RopeSpec, head_dim: usize) -> f32 {
    let mut of_yarn = 1.0;
    if let RopeScaling::Yarn {
        factor,
        log_multiplier,
        ..
    } = &mut rope.scaling
    {
        of_yarn += f64::from(*log_multiplier) * f64::from(*factor).ln();
        if *log_multiplier != 0.0 {
            *log_multiplier = 1.0;
        }
    }
    let s = rope.table(0).magnitude * of_yarn;
    (s * s / (head_dim as f64).sqrt()) as f32
}

/// What a layer has.
pub(super) struct LatentLayer {
    attn_norm: Norm,
    /// What makes the input of `attn_q` of the layer's, and its norm.
    attn_q_a: Option<(Linear, Norm)>,
    attn_q: Linear,
    /// Of the latent.
    attn_kv_a: Linear,
    attn_kv_a_norm: Norm,
    /// Of the key that turns.
    attn_k_rope: Linear,
    /// `[n_head * kv_rank, head_dim - rope_dim]`.
    attn_k_b: WeightId,
    /// `[n_head * value_dim, kv_rank]`.
    attn_v_b: WeightId,
    attn_output: Linear,
    ffn_norm: Norm,
    feed_forward: FeedForwardWeights,
}

pub(super) fn layer_weights(
    find: &mut WeightFinder,
    architecture: &Architecture,
    spec: &DecoderSpec,
    index: usize,
    layer: &LayerSpec,
    latent: &LatentSpec,
) -> Result<LatentLayer> {
    let hidden = spec.hidden_size;
    let prefix = format!("blk.{index}.");
    let LatentSpec {
        q_rank,
        kv_rank,
        rope_dim,
        value_dim,
    } = *latent;
    let (n_head, n_q) = (layer.n_head, layer.n_head * layer.head_dim);
    let fixed_dim = layer.head_dim - rope_dim;
    let norm = |find: &mut WeightFinder, name: &str, n: usize| {
        row_norm(find, architecture, &format!("{prefix}{name}"), n)
    };
    let product = |find: &mut WeightFinder, name: &str, n_out: usize, n_in: usize| {
        let name = format!("{prefix}{name}");
        linear(find, &name, n_out, n_in, Presence::Absent)
    };
    let (attn_q_a, attn_q) = match q_rank {
        Some(rank) => {
            let q_a = product(find, "attn_q_a", rank, hidden)?;
            let q_a_norm = norm(find, "attn_q_a_norm", rank)?;
            let q = product(find, "attn_q_b", n_q, rank)?;
            (Some((q_a, q_a_norm)), q)
        }
        None => (None, product(find, "attn_q", n_q, hidden)?),
    };
    let kv_a = format!("{prefix}attn_kv_a_mqa.weight");
    let mut kv_a_rows = |rows: std::ops::Range<usize>| -> Result<Linear> {
        Ok((find.part(&kv_a, &[kv_rank + rope_dim, hidden], rows)?, None))
    };
    let attn_kv_a = kv_a_rows(0..kv_rank)?;
    let attn_k_rope = kv_a_rows(kv_rank..kv_rank + rope_dim)?;
    let [k_b, v_b, kv_b] = ["k_b", "v_b", "kv_b"].map(|name| format!("{prefix}attn_{name}.weight"));
    let [attn_k_b, attn_v_b] = match find.has(&kv_b) && !find.has(&k_b) {
        true => {
            let keys = Heads {
                rows: fixed_dim + value_dim,
                first: 0,
                taken: fixed_dim,
                n_cols: kv_rank,
                transposed: true,
            };
            let shape = [n_head * keys.rows, kv_rank];
            let values = Heads {
                first: fixed_dim,
                taken: value_dim,
                transposed: false,
                ..keys
            };
            [
                find.heads(&kv_b, &shape, n_head, keys)?,
                find.heads(&kv_b, &shape, n_head, values)?,
            ]
        }
        false => {
            // Some files have all three; the one of both says nothing more.
            find.mark_used(&kv_b);
            [
                find.matrices(&k_b, [n_head, kv_rank, fixed_dim])?,
                find.matrices(&v_b, [n_head, value_dim, kv_rank])?,
            ]
        }
    };
    Ok(LatentLayer {
        attn_norm: norm(find, "attn_norm", hidden)?,
        attn_q_a,
        attn_q,
        attn_kv_a,
        attn_kv_a_norm: norm(find, "attn_kv_a_norm", kv_rank)?,
        attn_k_rope,
        attn_k_b,
        attn_v_b,
        attn_output: product(find, "attn_output", hidden, n_head * value_dim)?,
        ffn_norm: norm(find, "ffn_norm", hidden)?,
        feed_forward: feed_forward_weights(find, architecture, &prefix, layer, hidden)?,
    })
}

/// The forward pass for batches of at most `max_rows` tokens and `max_outputs` rows of logits.
pub(super) fn latent_plan(
    model: &DecoderModel,
    layers: &[LatentLayer],
    max_rows: usize,
    max_outputs: usize,
) -> Result<Plan> {
    let (spec, eps) = (&model.spec, model.spec.norm_eps);
    let mut b = PlanBuilder::new(&model.weights);
    let mut x = b.embed("embd", model.token_embd, EmbedIndex::Token, 1.0);
    for (index, (w, layer)) in layers.iter().zip(&spec.layers).enumerate() {
        b.layer(Some(index));
        let normed = decoder::norm(&mut b, "attn_norm", x, Some(w.attn_norm), eps);
        let attended = attention(&mut b, model, index, w, normed)?;
        let residual = b.add("ffn_inp", attended, x);
        let input = decoder::norm(&mut b, "ffn_norm", residual, Some(w.ffn_norm), eps);
        let down = decoder::feed_forward_block(
            &mut b,
            &w.feed_forward,
            layer.experts.as_ref(),
            input,
            spec.activation,
        )?;
        x = b.add("l_out", down, residual);
    }
    let logits = decoder::logits(&mut b, model, x);
    b.finish(logits, &spec.kv_layers(), max_rows, max_outputs)
}

fn attention(
    b: &mut PlanBuilder<'_>,
    model: &DecoderModel,
    index: usize,
    w: &LatentLayer,
    x: BufferId,
) -> Result<BufferId> {
    let (layer, eps) = (&model.spec.layers[index], model.spec.norm_eps);
    let (Some(latent), Some(rope)) = (&layer.latent, &layer.rope) else {
        let message = format!("layer {index}: latent attention without its shape");
        return Err(Error::InvalidModel { message });
    };
    let n_head = layer.n_head;
    let table = b.rope_table(rope.table(model.context_length));

    let q_input = match w.attn_q_a {
        Some((q_a, q_a_norm)) => {
            let q_a = b.matmul("attn_q_a", x, q_a);
            decoder::norm(b, "attn_q_a_norm", q_a, Some(q_a_norm), eps)
        }
        None => x,
    };
    let q = b.matmul("attn_q", q_input, w.attn_q);
    // The part of a head that turns comes to the front.
    let q = b.head_matmul("q_absorbed", q, w.attn_k_b, n_head);
    let q = b.rope("Qcur", q, table, latent.rope_dim + latent.kv_rank);

    let kv = b.matmul("kv_cmpr", x, w.attn_kv_a);
    let kv = decoder::norm(b, "kv_cmpr_norm", kv, Some(w.attn_kv_a_norm), eps);
    let k = b.matmul("k_pe", x, w.attn_k_rope);
    let k = b.rope("Kcur", k, table, latent.rope_dim);
    b.store_kv("kv_cache", k, kv, index);

    let params = AttentionParams {
        layer: index,
        n_head,
        scale: layer.attention_scale,
        window: None,
        chunk: None,
        value_dim: latent.kv_rank,
        soft_cap: None,
        alibi: false,
        sinks: None,
    };
    let attended = b.attention("kqv_latent", q, params);
    let attended = b.head_matmul("kqv_out", attended, w.attn_v_b, n_head);
    Ok(b.matmul("attn_output", attended, w.attn_output))
}
