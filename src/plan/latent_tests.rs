//! Plans of latent attention and of experts whose inputs are weighed, with one step that is wrong.

use super::check::check;
use super::{Op, Plan};
use crate::gguf::Gguf;
use crate::kv_cache::KvLayer;
use crate::model::{DecoderModel, WeightStorage, decoder_plan};
use crate::support::shared;
use std::sync::Arc;

fn model(name: &str) -> Option<DecoderModel> {
    let gguf = Arc::new(Gguf::open(shared("arch")?.join(format!("{name}.gguf"))).unwrap());
    Some(DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap())
}

#[track_caller]
fn refused(name: &str, step: &str, what: &str, damage: impl Fn(&mut Plan, usize)) {
    let Some(model) = model(name) else { return };
    let mut plan = decoder_plan(&model, 8, 2).unwrap();
    let kv = model.spec.kv_layers();
    assert!(check(&plan, &model.weights, &kv).is_ok());
    let index = plan.steps.iter().position(|s| s.name == step).unwrap();
    damage(&mut plan, index);
    let error = check(&plan, &model.weights, &kv).unwrap_err().to_string();
    let expected = format!("step `{step}`: {what}");
    assert!(
        error.contains(&expected),
        "found `{error}`, expected `{expected}`"
    );
}

#[test]
fn cache_of_latent_attention_has_latents_and_one_key() {
    for name in ["deepseek2-lite", "deepseek2-legacy", "deepseek2-v3"] {
        let Some(model) = model(name) else { return };
        let layer = KvLayer {
            n_head_kv: 1,
            head_dim: 8,
            value_dim: 20,
            values_end_keys: true,
        };
        assert!(model.spec.kv_layers().iter().all(|&found| found == layer));
        let plan = decoder_plan(&model, 8, 2).unwrap();
        let steps = plan.steps.iter().filter(|step| step.layer() == Some(0));
        let names: Vec<&str> = steps.map(|step| step.name_in_layer()).collect();
        let at = |name: &str| names.iter().position(|&found| found == name);
        assert_eq!(at("attn_q_a").is_some(), name == "deepseek2-v3");
        for pair in ["q_absorbed", "Qcur", "kv_cache", "kqv_latent", "kqv_out"].windows(2) {
            assert!(at(pair[0]).unwrap() < at(pair[1]).unwrap(), "{names:?}");
        }
    }
}

#[test]
fn products_of_heads_with_wrong_shapes_are_refused() {
    let of = |what: &str, damage: fn(&mut Plan, usize)| {
        refused("deepseek2-v3", "blk.0.q_absorbed", what, damage);
    };
    let n_head = |plan: &mut Plan, index: usize, n: usize| {
        if let Op::HeadMatMul { n_head, .. } = &mut plan.steps[index].op {
            *n_head = n;
        }
    };
    for (n, what) in [
        (0, "has no heads"),
        (7, "partial head"),
        (16, "columns 16, expected up to 6"),
        (2, "output 112, expected 144"),
    ] {
        refused("deepseek2-v3", "blk.0.q_absorbed", what, |plan, index| {
            n_head(plan, index, n);
        });
    }
    of("output 111, expected 112", |plan, index| {
        let dst = plan.steps[index].op.dst().unwrap();
        plan.buffers[dst.0].width = 111;
    });
    of("is not a step over tokens", |plan, index| {
        let dst = plan.steps[index].op.dst().unwrap();
        plan.buffers[dst.0].extent = super::Extent::Chosen(1);
    });
}

#[test]
fn attention_over_latents_is_refused_in_other_widths() {
    let of = |what: &str, damage: fn(&mut Plan, usize)| {
        refused("deepseek2-v3", "blk.0.kqv_latent", what, damage);
    };
    of("query 112, expected 84", |plan, index| {
        if let Op::Attention { n_head, .. } = &mut plan.steps[index].op {
            *n_head = 3;
        }
    });
    of("width 112, expected 80", |plan, index| {
        let dst = plan.steps[index].op.dst().unwrap();
        plan.buffers[dst.0].width = 112;
    });
    refused(
        "llama4",
        "blk.0.kqv_out",
        "has empty chunks",
        |plan, index| {
            if let Op::Attention { chunk, .. } = &mut plan.steps[index].op {
                *chunk = Some(0);
            }
        },
    );
}

#[test]
fn weighed_inputs_of_experts_are_refused_in_other_shapes() {
    refused(
        "llama4",
        "blk.1.ffn_moe_weighted",
        "has results of",
        |plan, index| {
            let dst = plan.steps[index].op.dst().unwrap();
            plan.buffers[dst.0].extent = super::Extent::Tokens;
        },
    );
    refused(
        "llama4",
        "blk.1.ffn_moe_out",
        "adds up single terms",
        |plan, index| {
            if let Op::WeightedSum { src, .. } = plan.steps[index].op {
                plan.buffers[src.0].extent = super::Extent::Tokens;
                // What writes the terms has a place for each expert: leave it out.
                plan.steps.retain(|step| step.op.dst() != Some(src));
            }
            let first = plan.steps.iter().find_map(|step| match step.op {
                Op::Embed { dst, .. } => Some(dst),
                _ => None,
            });
            let sum = plan
                .steps
                .iter_mut()
                .find(|step| step.name == "blk.1.ffn_moe_out");
            if let Some(Op::WeightedSum { src, .. }) = sum.map(|step| &mut step.op) {
                *src = first.unwrap();
            }
        },
    );
}

#[test]
fn layers_of_llama_4_turn_or_have_a_temperature_and_chunks() {
    let Some(model) = model("llama4") else { return };
    let plan = decoder_plan(&model, 8, 2).unwrap();
    for layer in 0..4 {
        let has = |name: &str| {
            let name = format!("blk.{layer}.{name}");
            plan.steps.iter().any(|step| step.name == name)
        };
        let turns = layer != 3;
        assert!(has("Qcur"), "layer {layer}");
        assert_eq!(has("Kcur"), turns, "layer {layer}");
        assert_eq!(
            [has("attn_q_norm"), has("attn_k_norm")],
            [turns; 2],
            "layer {layer}"
        );
        assert_eq!(has("ffn_moe_weighted"), layer % 2 == 1, "layer {layer}");
        let chunk = plan.steps.iter().find_map(|step| match step.op {
            Op::Attention {
                layer: l, chunk, ..
            } if l == layer => Some(chunk),
            _ => None,
        });
        assert_eq!(chunk, Some(turns.then_some(8192)), "layer {layer}");
    }
}
