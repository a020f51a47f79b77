//! The forward pass of hybrid models, once.

use super::super::decoder::{DecoderModel, feed_forward_block, norm, scaled};
use super::mixers::Mixing;
use super::weights::HybridWeights;
use crate::error::Result;
use crate::plan::{EmbedIndex, Function, Plan, PlanBuilder};

/// As `decoder_plan`, of a model with `weights` for its layers.
pub(in super::super) fn hybrid_plan(
    model: &DecoderModel,
    weights: &HybridWeights,
    max_rows: usize,
    max_outputs: usize,
) -> Result<Plan> {
    let spec = &model.spec;
    let eps = spec.norm_eps;
    let mut b = PlanBuilder::new(&model.weights);
    let embedding = match spec.embedding_scale {
        1.0 => "embd",
        _ => "inp_scaled",
    };
    let scale = spec.embedding_scale;
    let mut x = b.embed(embedding, model.token_embd, EmbedIndex::Token, scale);
    for (index, w) in weights.layers.iter().enumerate() {
        b.layer(Some(index));
        let mixing = Mixing {
            spec,
            context_length: model.context_length,
            index,
        };
        let normed = norm(&mut b, "attn_norm", x, Some(w.attn_norm), eps);
        let mixed = mixing.mix(&mut b, &w.mixer, normed)?;
        let mixed = scaled(&mut b, "attn_scaled", mixed, spec.residual_scale);
        let Some((ffn_norm, block)) = &w.feed_forward else {
            // A layer reads what the one before has written, without a step between that copies it.
            let buffer = ["l_out", "l_out of odd layers"][index % 2];
            x = b.add_into("l_out", buffer, mixed, x);
            continue;
        };
        let residual = b.add("ffn_inp", mixed, x);
        let input = norm(&mut b, "ffn_norm", residual, Some(*ffn_norm), eps);
        let experts = spec.layers[index].experts.as_ref();
        let down = feed_forward_block(&mut b, block, experts, input, spec.activation)?;
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
