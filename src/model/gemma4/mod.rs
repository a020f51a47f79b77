//! Gemma 4: layers of two kinds with heads of their own sizes, layers that read the cache of another, inputs of each
//! layer, and experts beside a dense block (llama.cpp, src/models/gemma4.cpp).

mod spec;
mod weights;

pub(super) use spec::complete;
pub(super) use weights::Gemma4Weights;

use self::weights::{AttentionWeights, ExpertBlock, FeedForward, GateUp, LayerInputs};
use super::decoder::{DecoderModel, feed_forward};
use super::expert_spec::ExpertSpec;
use super::spec::{DecoderSpec, LayerSpec};
use crate::error::{Error, Result};
use crate::plan::{
    Activation, AttentionParams, BufferId, EmbedIndex, Function, Plan, PlanBuilder, Router,
};

/// The forward pass; names are those of the decoder where it has the step.
pub(super) fn plan(
    model: &DecoderModel,
    w: &Gemma4Weights,
    max_rows: usize,
    max_outputs: usize,
) -> Result<Plan> {
    let spec = &model.spec;
    let eps = spec.norm_eps;
    let mut b = PlanBuilder::new(&model.weights);
    let mut x = b.embed(
        "inp_scaled",
        w.token_embd,
        EmbedIndex::Token,
        spec.embedding_scale,
    );
    let inputs = w.inputs.as_ref();
    let inputs = inputs.map(|inputs| layer_inputs(&mut b, spec, inputs, x));
    for (index, (layer, w)) in spec.layers.iter().zip(&w.layers).enumerate() {
        b.layer(Some(index));
        let normed = b.rms_norm("attn_norm", x, w.attn_norm, eps);
        let attended = attention(&mut b, model, index, &w.attention, normed);
        let attended = b.rms_norm("attn_post_norm", attended, w.attn_post_norm, eps);
        let residual = b.add("ffn_inp", attended, x);

        let input = b.rms_norm("ffn_norm", residual, w.ffn_norm, eps);
        let fed = dense(&mut b, &w.feed_forward, input, spec.activation);
        let fed = match (&w.feed_forward.experts, &layer.experts) {
            (Some(w), Some(experts)) => {
                let fed = b.rms_norm("ffn_post_norm_1", fed, w.dense_post_norm, eps);
                let mixed = mixture(&mut b, spec, experts, w, residual);
                b.add("ffn_sum", fed, mixed)
            }
            (None, None) => fed,
            _ => {
                let message = format!("layer {index}: experts without weights");
                return Err(Error::InvalidModel { message });
            }
        };
        let fed = b.rms_norm("ffn_post_norm", fed, w.ffn_post_norm, eps);

        let is_scaled = layer.output_scale != 1.0;
        let last = if is_scaled { "l_unscaled" } else { "l_out" };
        x = match (&w.input, inputs) {
            (Some(w), Some(inputs)) => {
                let x = b.add("ffn_residual", fed, residual);
                let width = spec.layer_input_size.unwrap_or_default();
                let gate = b.matmul("inp_gate", x, w.gate);
                let input = b.columns("inp_of_layer", inputs, index * width, width);
                let gated = b.gated_activation("inp_gated", gate, input, spec.activation);
                let projected = b.matmul("inp_proj", gated, w.projection);
                let projected = b.rms_norm("inp_post_norm", projected, w.post_norm, eps);
                b.add(last, projected, x)
            }
            _ => b.add(last, fed, residual),
        };
        if is_scaled {
            x = b.map("l_out", x, Function::Scale(layer.output_scale));
        }
    }
    b.layer(None);
    let outputs = b.select_outputs("result_rows", x);
    let normed = b.rms_norm("result_norm", outputs, w.output_norm, eps);
    let mut logits = b.matmul("result_output", normed, w.output);
    if let Some(cap) = spec.logit_soft_cap {
        logits = b.map("result_capped", logits, Function::SoftCap(cap));
    }
    b.finish(logits, &spec.kv_layers(), max_rows, max_outputs)
}

/// The inputs of all layers, `[n_rows, n_layer * layer_input_size]`: what the token has for them, and what the
/// embedding gives.
fn layer_inputs(
    b: &mut PlanBuilder<'_>,
    spec: &DecoderSpec,
    w: &LayerInputs,
    x: BufferId,
) -> BufferId {
    let width = spec.layer_input_size.unwrap_or_default() as f32;
    let tokens = b.embed("inp_tokens", w.token_embd, EmbedIndex::Token, width.sqrt());
    let projected = b.matmul("inp_model_proj", x, w.projection);
    let factor = 1.0 / (spec.hidden_size as f32).sqrt();
    let projected = b.map("inp_model_scaled", projected, Function::Scale(factor));
    let projected = b.rms_norm("inp_model_norm", projected, w.norm, spec.norm_eps);
    let sum = b.add("inp_sum", projected, tokens);
    b.map(
        "inp_per_layer",
        sum,
        Function::Scale(std::f32::consts::FRAC_1_SQRT_2),
    )
}

fn attention(
    b: &mut PlanBuilder<'_>,
    model: &DecoderModel,
    index: usize,
    w: &AttentionWeights,
    x: BufferId,
) -> BufferId {
    let layer: &LayerSpec = &model.spec.layers[index];
    let eps = model.spec.norm_eps;
    let rope = layer.rope.as_ref();
    let turned = |b: &mut PlanBuilder<'_>, name: &str, x: BufferId| match rope {
        Some(rope) => {
            let table = b.rope_table(rope.table(model.context_length));
            b.rope(name, x, table, layer.head_dim)
        }
        None => x,
    };
    let q = b.matmul("attn_q", x, w.q);
    let q = b.rms_norm("attn_q_norm", q, w.q_norm, eps);
    let q = turned(b, "Qcur", q);
    if let Some(own) = &w.own {
        let raw_k = b.matmul("attn_k", x, own.k);
        let k = b.rms_norm("attn_k_norm", raw_k, own.k_norm, eps);
        let k = turned(b, "Kcur", k);
        let v = own.v.map_or(raw_k, |v| b.matmul("Vcur", x, v));
        let v = b.unit_norm("Vcur_normed", v, layer.head_dim, eps);
        b.store_kv("kv_cache", k, v, index);
    }
    let params = AttentionParams {
        layer: layer.cache_layer,
        n_head: layer.n_head,
        scale: layer.attention_scale,
        causal: true,
        window: layer.window,
        chunk: None,
        value_dim: layer.head_dim,
        soft_cap: layer.soft_cap,
        alibi: false,
        sinks: None,
    };
    let attended = b.attention("kqv_out", q, params);
    b.matmul("attn_output", attended, w.output)
}

fn dense(
    b: &mut PlanBuilder<'_>,
    w: &FeedForward,
    x: BufferId,
    activation: Activation,
) -> BufferId {
    let names = ["ffn_gate", "ffn_up", "ffn_act", "ffn_gated", "ffn_out"];
    feed_forward(b, &w.dense, names, x, activation)
}

/// The experts' part of the feed-forward block, which takes in the residual by norms of its own.
fn mixture(
    b: &mut PlanBuilder<'_>,
    spec: &DecoderSpec,
    experts: &ExpertSpec,
    w: &ExpertBlock,
    residual: BufferId,
) -> BufferId {
    let eps = spec.norm_eps;
    let normed = b.rms_norm("ffn_moe_router_norm", residual, w.router_norm, eps);
    let factor = 1.0 / (spec.hidden_size as f32).sqrt();
    let normed = b.map("ffn_moe_router_inp", normed, Function::Scale(factor));
    let logits = b.matmul("ffn_moe_logits", normed, w.router);
    let router = Router {
        n_chosen: experts.n_chosen,
        gating: experts.gating,
        groups: experts.groups,
        normalised: experts.normalised,
        scale: experts.scale,
        factors: w.factors,
    };
    let [chosen, weights] = b.route(logits, None, router);

    let x = b.rms_norm("ffn_pre_norm_2", residual, w.pre_norm, eps);
    let (n_expert, width) = (experts.n_expert, experts.intermediate_size);
    let (gate, up) = match w.gate_up {
        GateUp::Fused(weight) => {
            let both = b.expert_matmul("ffn_moe_gate_up", x, chosen, (weight, None), n_expert);
            let gate = b.columns("ffn_moe_gate", both, 0, width);
            (gate, b.columns("ffn_moe_up", both, width, width))
        }
        GateUp::Apart { gate, up } => {
            let gate = b.expert_matmul("ffn_moe_gate", x, chosen, (gate, None), n_expert);
            let up = b.expert_matmul("ffn_moe_up", x, chosen, (up, None), n_expert);
            (gate, up)
        }
    };
    let inner = b.gated_activation("ffn_moe_gated", gate, up, spec.activation);
    let down = b.expert_matmul("ffn_moe_down", inner, chosen, (w.down, None), n_expert);
    let sum = b.weighted_sum("ffn_moe_out", down, Some(weights));
    b.rms_norm("ffn_post_norm_2", sum, w.post_norm, eps)
}

#[cfg(test)]
mod tests {
    use super::super::decoder::decoder_plan;
    use super::super::weights::WeightStorage;
    use super::*;
    use crate::gguf::Gguf;
    use crate::plan::Op;
    use crate::support::shared;
    use std::sync::Arc;

    fn model(name: &str) -> Option<DecoderModel> {
        let path = shared("arch")?.join(format!("{name}.gguf"));
        let gguf = Arc::new(Gguf::open(path).unwrap());
        Some(DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap())
    }

    fn op<'a>(plan: &'a Plan, name: &str) -> Option<&'a Op> {
        let step = plan.steps.iter().find(|step| step.name == name);
        step.map(|step| &step.op)
    }

    #[test]
    fn layers_without_keys_read_the_cache_of_the_last_layer_of_their_kind() {
        let Some(model) = model("gemma4-e2b") else {
            return;
        };
        let plan = decoder_plan(&model, 8, 2).unwrap();
        let caches: Vec<usize> = (0..6)
            .map(|layer| match op(&plan, &format!("blk.{layer}.kqv_out")) {
                Some(Op::Attention { layer, .. }) => *layer,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(caches, [0, 1, 2, 1, 1, 2]);
        let stored = (0..6).filter(|layer| op(&plan, &format!("blk.{layer}.kv_cache")).is_some());
        assert_eq!(stored.collect::<Vec<_>>(), [0, 1, 2]);
        let kv = model.spec.kv_layers();
        let head_dims: Vec<usize> = kv.iter().map(|layer| layer.head_dim).collect();
        assert_eq!(head_dims, [16, 16, 24]);
    }

    #[test]
    fn each_layer_takes_its_own_part_of_the_inputs() {
        let Some(model) = model("gemma4-e2b") else {
            return;
        };
        let plan = decoder_plan(&model, 8, 2).unwrap();
        for layer in 0..6 {
            let op = op(&plan, &format!("blk.{layer}.inp_of_layer"));
            let Some(&Op::TakeColumns { first, dst, .. }) = op else {
                panic!("{op:?}")
            };
            assert_eq!((first, plan.buffer(dst).width), (16 * layer, 16));
        }
    }

    #[test]
    fn keys_before_their_norm_are_values_where_there_are_none() {
        let Some(model) = model("gemma4-dense") else {
            return;
        };
        let plan = decoder_plan(&model, 8, 2).unwrap();
        let src = |step: &str| op(&plan, step).map(|op| op.sources()[0]);
        let dst = |step: &str| op(&plan, step).and_then(Op::dst);
        assert_eq!(src("blk.3.Vcur_normed"), dst("blk.3.attn_k"));
        assert_eq!(src("blk.2.Vcur_normed"), dst("blk.2.Vcur"));
    }

    #[test]
    fn layers_may_be_left_out_behind_those_whose_cache_is_read() {
        let Some(mut model) = model("gemma4-e2b") else {
            return;
        };
        for (n_layer, n_caches) in [(5, 3), (2, 2)] {
            model.keep_layers(n_layer).unwrap();
            assert_eq!(model.spec.kv_layers().len(), n_caches);
            decoder_plan(&model, 8, 2).unwrap();
        }
    }
}
