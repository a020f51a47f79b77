//! The forward pass of the decoder family, once.

use super::architectures::{
    self, Architecture, Positions, Presence, QkNorm, Recurrence, RopeDivisors,
};
use super::expert_spec::ExpertSpec;
use super::hybrid::{HybridWeights, hybrid_plan, hybrid_weights};
use super::latent::{self, LatentLayer};
use super::layers::{
    DenseWeights, ExpertWeights, FeedForwardWeights, LayerWeights, Linear, Norm, NormForm,
    layer_weights, linear, row_norm,
};
use super::lora::Lora;
use super::rope::RopeScaling;
use super::spec::DecoderSpec;
use super::weights::{
    LONG_ROPE_DIVISORS, POSITIONS, ROPE_DIVISORS, WeightFinder, WeightId, WeightStorage, Weights,
};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::plan::{
    Activation, AttentionParams, BufferId, EmbedIndex, Function, Plan, PlanBuilder, Router,
};
use std::sync::Arc;

/// A decoder's spec with its weights found and checked.
pub(crate) struct DecoderModel {
    pub(crate) spec: DecoderSpec,
    pub(crate) weights: Weights,
    /// Tokens of a session's context, by which rope may differ.
    pub(crate) context_length: usize,
    norms_after_rope: bool,
    pub(super) token_embd: WeightId,
    position_embd: Option<WeightId>,
    embedding_norm: Option<Norm>,
    layers: Layers,
    pub(super) output_norm: Norm,
    pub(super) output: Linear,
}

/// The weights of the layers of a family.
enum Layers {
    Heads(Vec<LayerWeights>),
    Latent(Vec<LatentLayer>),
    Hybrid(HybridWeights),
}

impl DecoderModel {
    /// A model without adapters.
    #[cfg(test)]
    pub(crate) fn from_gguf(gguf: Arc<Gguf>, storage: WeightStorage) -> Result<Self> {
        DecoderModel::with_loras(gguf, storage, Vec::new())
    }

    /// Finds every weight of a file; each tensor must have its place and its shape. Adapters are added to the
    /// weights.
    ///
    /// # Errors
    /// `InvalidModel` for a tensor that is missing, unused or of another shape, or an adapter for another model;
    /// `Unsupported` for an architecture, hyper-parameter or weight type that is not known.
    pub(crate) fn with_loras(
        gguf: Arc<Gguf>,
        storage: WeightStorage,
        loras: Vec<Lora>,
    ) -> Result<Self> {
        if gguf.metadata().str("general.type")? == Some("adapter") {
            let message = "the file is an adapter: it is added to a model (`EngineBuilder::lora`)";
            return Err(Error::InvalidModel {
                message: message.to_owned(),
            });
        }
        let spec = DecoderSpec::from_gguf(&gguf)?;
        let architecture = architectures::find(&spec.architecture)?;
        for lora in &loras {
            lora.check_architecture(&spec.architecture)?;
        }
        let mut find = WeightFinder::new(gguf, storage, loras);
        let hidden = spec.hidden_size;

        let token_embd = find.matrix("token_embd.weight", spec.vocab_size, hidden)?;
        let position_embd = match architecture.positions {
            Positions::Rope | Positions::Alibi => None,
            Positions::Learned => {
                let n_positions = spec.n_positions.unwrap_or(spec.context_length);
                Some(find.matrix(POSITIONS, n_positions, hidden)?)
            }
        };
        let embedding_norm = match architecture.embedding_norm {
            true => Some(row_norm(
                &mut find,
                architecture,
                "token_embd_norm",
                hidden,
            )?),
            false => None,
        };
        let layers = layers(&mut find, architecture, &spec)?;
        let output_norm = match architecture.recurrence {
            Recurrence::ShortConv => "token_embd_norm",
            _ => "output_norm",
        };
        let output_norm = row_norm(&mut find, architecture, output_norm, hidden)?;
        let output = if find.has("output.weight") {
            linear(
                &mut find,
                "output",
                spec.vocab_size,
                hidden,
                Presence::Optional,
            )?
        } else {
            // Adapters of the embedding are trained on what it looks up, not on the logits.
            (find.without_added(token_embd), None)
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
            norms_after_rope: matches!(
                architecture.qk_norm,
                QkNorm::HeadsAfterRope | QkNorm::TurnedWithoutWeight { .. }
            ),
            spec,
            weights,
            token_embd,
            position_embd,
            embedding_norm,
            layers,
            output_norm,
            output,
        })
    }

    /// Sets the context of sessions; whether any layer turns otherwise in it, so that a plan made before is wrong.
    pub(crate) fn shrink_context(&mut self, context_length: usize) -> bool {
        let before = std::mem::replace(&mut self.context_length, context_length);
        let mut ropes = self
            .spec
            .layers
            .iter()
            .filter_map(|layer| layer.rope.as_ref());
        ropes.any(|rope| rope.table(before) != rope.table(context_length))
    }

    /// Leaves out all layers but the first `n_layer`.
    ///
    /// # Errors
    /// `InvalidArgument` for more layers than there are, or none.
    pub(crate) fn keep_layers(&mut self, n_layer: usize) -> Result<()> {
        let n_all = self.spec.n_layer();
        if !(1..=n_all).contains(&n_layer) {
            return Err(Error::InvalidArgument {
                name: "layers",
                message: format!("{n_layer}, expected 1 to {n_all}"),
            });
        }
        match &mut self.layers {
            Layers::Heads(layers) => layers.truncate(n_layer),
            Layers::Latent(layers) => layers.truncate(n_layer),
            Layers::Hybrid(hybrid) => hybrid.layers.truncate(n_layer),
        }
        self.spec.layers.truncate(n_layer);
        Ok(())
    }
}

fn layers(
    find: &mut WeightFinder,
    architecture: &Architecture,
    spec: &DecoderSpec,
) -> Result<Layers> {
    for layer in spec.n_layer()..spec.n_layer() + spec.n_layer_unused {
        find.ignore_layer(layer);
    }
    if let Some(hybrid) = hybrid_weights(find, architecture, spec)? {
        return Ok(Layers::Hybrid(hybrid));
    }
    let mut heads = Vec::new();
    let mut latents = Vec::new();
    for (index, layer) in spec.layers.iter().enumerate() {
        match &layer.latent {
            Some(latent) => latents.push(latent::layer_weights(
                find,
                architecture,
                spec,
                index,
                layer,
                latent,
            )?),
            None => heads.push(layer_weights(find, architecture, spec, index, layer)?),
        }
    }
    Ok(match heads.is_empty() {
        true => Layers::Latent(latents),
        false => Layers::Heads(heads),
    })
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
    let layers = match &model.layers {
        Layers::Heads(layers) => layers,
        Layers::Latent(layers) => {
            return latent::latent_plan(model, layers, max_rows, max_outputs);
        }
        Layers::Hybrid(hybrid) => return hybrid_plan(model, hybrid, max_rows, max_outputs),
    };
    let eps = spec.norm_eps;
    let mut b = PlanBuilder::new(weights);

    let embedding = if spec.embedding_scale == 1.0 {
        "embd"
    } else {
        "inp_scaled"
    };
    let mut x = b.embed(
        embedding,
        model.token_embd,
        EmbedIndex::Token,
        spec.embedding_scale,
    );
    if let Some(weight) = model.position_embd {
        let positions = b.embed("pos_embd", weight, EmbedIndex::Position, 1.0);
        x = b.add("inpL", x, positions);
    }
    x = norm(&mut b, "inp_norm", x, model.embedding_norm, eps);
    for (index, w) in layers.iter().enumerate() {
        b.layer(Some(index));
        let normed = norm(&mut b, "attn_norm", x, w.attn_norm, eps);
        let attended = attention(&mut b, model, index, w, normed);
        let attended = norm(&mut b, "attn_post_norm", attended, w.attn_post_norm, eps);
        let attended = scaled(&mut b, "attn_scaled", attended, spec.residual_scale);
        let residual = b.add("ffn_inp", attended, x);

        let input = match (w.is_parallel, w.ffn_norm) {
            (true, None) => normed,
            (true, own) => norm(&mut b, "ffn_norm", x, own, eps),
            (false, own) => norm(&mut b, "ffn_norm", residual, own, eps),
        };
        let experts = spec.layers[index].experts.as_ref();
        let down = feed_forward_block(&mut b, &w.feed_forward, experts, input, spec.activation)?;
        let down = norm(&mut b, "ffn_post_norm", down, w.ffn_post_norm, eps);
        let down = scaled(&mut b, "ffn_scaled", down, spec.residual_scale);
        x = b.add("l_out", down, residual);
    }
    let logits = logits(&mut b, model, x);
    b.finish(logits, &spec.kv_layers(), max_rows, max_outputs)
}

/// What follows the last layer, whose result is `x`.
pub(super) fn logits(b: &mut PlanBuilder<'_>, model: &DecoderModel, x: BufferId) -> BufferId {
    let spec = &model.spec;
    b.layer(None);
    let outputs = b.select_outputs("result_rows", x);
    let output_norm = Some(model.output_norm);
    let normed = norm(b, "result_norm", outputs, output_norm, spec.norm_eps);
    let mut logits = b.matmul("result_output", normed, model.output);
    logits = scaled(b, "result_scaled", logits, spec.logit_scale);
    if let Some(cap) = spec.logit_soft_cap {
        logits = b.map("result_capped", logits, Function::SoftCap(cap));
    }
    logits
}

/// The feed-forward block of a layer, dense or a mixture of experts.
pub(super) fn feed_forward_block(
    b: &mut PlanBuilder<'_>,
    w: &FeedForwardWeights,
    experts: Option<&ExpertSpec>,
    input: BufferId,
    activation: Activation,
) -> Result<BufferId> {
    match (w, experts) {
        (FeedForwardWeights::Experts(w), Some(experts)) => {
            Ok(mixture(b, w, experts, input, activation))
        }
        (FeedForwardWeights::Experts(ExpertWeights { .. }), None) => {
            let message = "a layer has experts without a router".to_owned();
            Err(Error::InvalidModel { message })
        }
        (FeedForwardWeights::Dense(w), _) => {
            let names = ["ffn_gate", "ffn_up", "ffn_act", "ffn_gated", "ffn_out"];
            Ok(feed_forward(b, w, names, input, activation))
        }
    }
}

/// A feed-forward block; `names` are those of the gate, the other inner projection, what an ungated and what a
/// gated one makes of these, and of the result.
fn feed_forward(
    b: &mut PlanBuilder<'_>,
    w: &DenseWeights,
    names: [&str; 5],
    x: BufferId,
    activation: Activation,
) -> BufferId {
    let [gate_name, up_name, activated, gated, result] = names;
    let gate = w.gate.map(|gate| b.matmul(gate_name, x, gate));
    let up = b.matmul(up_name, x, w.up);
    let inner = match gate {
        Some(gate) => b.gated_activation(gated, gate, up, activation),
        None => b.map(activated, up, Function::Activation(activation)),
    };
    b.matmul(result, inner, w.down)
}

/// A mixture of experts, and the expert that all tokens have.
fn mixture(
    b: &mut PlanBuilder<'_>,
    w: &ExpertWeights,
    spec: &ExpertSpec,
    x: BufferId,
    activation: Activation,
) -> BufferId {
    let logits = b.matmul("ffn_moe_logits", x, w.router);
    let router = Router {
        n_chosen: spec.n_chosen,
        gating: spec.gating,
        groups: spec.groups,
        normalised: spec.normalised,
        scale: spec.scale,
    };
    let [chosen, weights] = b.route(logits, w.choice_bias, router);
    let (input, weights) = match spec.weighs_inputs {
        true => (b.weigh_slots("ffn_moe_weighted", x, weights), None),
        false => (x, Some(weights)),
    };
    let gate = b.expert_matmul("ffn_moe_gate", input, chosen, w.gate, spec.n_expert);
    let up = b.expert_matmul("ffn_moe_up", input, chosen, w.up, spec.n_expert);
    let inner = b.gated_activation("ffn_moe_gated", gate, up, activation);
    let down = b.expert_matmul("ffn_moe_down", inner, chosen, w.down, spec.n_expert);
    let sum = b.weighted_sum("ffn_moe_out", down, weights);
    let Some(shared) = &w.shared else { return sum };
    let names = [
        "ffn_shexp_gate",
        "ffn_shexp_up",
        "ffn_shexp_act",
        "ffn_shexp_gated",
        "ffn_shexp",
    ];
    let mut all = feed_forward(b, &shared.block, names, x, activation);
    if let Some(gate_inp) = shared.gate_inp {
        let gate = b.matmul("shared_expert_gate", x, (gate_inp, None));
        let gate = b.map("shared_expert_gate_sigmoid", gate, Function::Sigmoid);
        all = b.weighted_sum("ffn_shexp_weighted", all, Some(gate));
    }
    b.add("ffn_out", sum, all)
}

pub(super) fn scaled(b: &mut PlanBuilder<'_>, name: &str, x: BufferId, factor: f32) -> BufferId {
    match factor {
        1.0 => x,
        _ => b.map(name, x, Function::Scale(factor)),
    }
}

fn attention(
    b: &mut PlanBuilder<'_>,
    model: &DecoderModel,
    index: usize,
    w: &LayerWeights,
    x: BufferId,
) -> BufferId {
    let layer = &model.spec.layers[index];
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
            if rope.scaling == RopeScaling::Still {
                continue;
            }
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
        chunk: layer.chunk,
        value_dim: layer.head_dim,
        soft_cap: layer.soft_cap,
        alibi: layer.alibi,
        sinks: w.attn_sinks,
    };
    let attended = b.attention("kqv_out", q, params);
    b.matmul("attn_output", attended, w.attn_output)
}

/// The norm of `x`; `x` itself where there is none.
pub(super) fn norm(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::shared;

    #[test]
    fn context_that_shrinks_below_the_limit_of_longrope_turns_by_the_short_factors() {
        let Some(folder) = shared("arch") else { return };
        let path = folder.join("phi3-longrope-long.gguf");
        let gguf = Arc::new(Gguf::open(path).unwrap());
        let mut model = DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap();
        let rope = model.spec.layers[0].rope.clone().unwrap();
        let super::super::RopeDivisors::ByContext { most_short, .. } = rope.divisors else {
            panic!("{:?}", rope.divisors);
        };
        model.context_length = most_short + 2;
        let long = decoder_plan(&model, 4, 1).unwrap();
        assert!(!model.shrink_context(most_short + 1));
        assert_eq!(decoder_plan(&model, 4, 1).unwrap(), long);
        assert!(model.shrink_context(most_short));
        assert_ne!(decoder_plan(&model, 4, 1).unwrap(), long);
    }
}
