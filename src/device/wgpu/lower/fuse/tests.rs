//! What the steps of a tiny layer come to.

use super::*;
use crate::gguf::Gguf;
use crate::kernels::matvec;
use crate::model::{DecoderModel, WeightStorage, decoder_plan};
use crate::support::shared;
use crate::tiny;
use std::sync::Arc;

#[derive(Clone, Copy)]
struct Given {
    is_whole: bool,
    are_together: bool,
    /// Of an adapter, for a shader.
    n_buffers: usize,
    /// What is in the names of those weights that have another type.
    other_type: &'static str,
}

const ALL: Given = Given {
    is_whole: true,
    are_together: true,
    n_buffers: 9,
    other_type: "nothing",
};

impl Places for (&Plan, &DecoderModel, Given) {
    fn is_whole(&self, _: WeightId) -> bool {
        self.2.is_whole
    }

    fn are_together(&self, weights: &[WeightId]) -> bool {
        self.2.are_together || weights.len() == 1
    }

    fn weight_type(&self, weight: WeightId) -> WeightType {
        let weight = self.1.weights.get(weight);
        match weight.name.contains(self.2.other_type) {
            true => WeightType::Q6_K,
            false => weight.ty,
        }
    }

    fn width(&self, weight: WeightId) -> usize {
        self.1.weights.get(weight).n_cols
    }

    fn may_normalise(&self, kernel: &Kernel, width: usize) -> bool {
        matvec::may_normalise(kernel, width, self.2.n_buffers)
    }
}

/// What the steps of the second layer are: the names of those that a kernel at a step computes.
fn second_layer(int8_rows: usize, given: Given) -> Vec<String> {
    second_layer_of(tiny::gguf(WeightType::Q8_0, None), int8_rows, given)
}

fn second_layer_of(gguf: Gguf, int8_rows: usize, given: Given) -> Vec<String> {
    let gguf = Arc::new(gguf);
    let model = DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap();
    let plan = decoder_plan(&model, 8, 1).unwrap();
    let plan = plan.with_int8_activations(&model.weights, int8_rows);
    let parts = parts(&plan, &(&plan, &model, given));
    let name = |&step: &usize| {
        plan.steps[step]
            .name
            .trim_start_matches("blk.1.")
            .to_owned()
    };
    let text = |part: &Part| match part {
        Part::First(_, steps) => Some(steps.iter().map(name).collect::<Vec<_>>().join(" ")),
        Part::Alone | Part::Later => None,
    };
    let in_layer = |index: &usize| plan.steps[*index].name.starts_with("blk.1.");
    let layer = (0..parts.len()).filter(in_layer);
    layer.filter_map(|index| text(&parts[index])).collect()
}

#[test]
fn a_layer_comes_to_two_kernels_beside_attention_and_two_products() {
    assert_eq!(
        second_layer(4, ALL),
        [
            "attn_norm attn_q attn_k Vcur Qcur Kcur kv_cache",
            "ffn_norm ffn_gate ffn_up ffn_gated",
        ]
    );
}

#[test]
fn projections_by_weights_of_another_type_are_kernels_of_their_own() {
    let block = "ffn_norm ffn_gate ffn_up ffn_gated";
    for (other_type, expected) in [
        (
            "attn_v",
            [
                "attn_norm attn_q attn_k Qcur Kcur kv_cache",
                "Vcur kv_cache",
            ],
        ),
        (
            "attn_k",
            [
                "attn_norm attn_q Vcur Qcur kv_cache",
                "attn_k Kcur kv_cache",
            ],
        ),
        (
            "attn_q",
            ["attn_norm attn_q Qcur", "attn_k Vcur Kcur kv_cache"],
        ),
    ] {
        let given = Given { other_type, ..ALL };
        assert_eq!(second_layer(4, given)[..2], expected);
        assert_eq!(second_layer(4, given)[2..], [block]);
    }
    let given = Given {
        other_type: "ffn_up",
        ..ALL
    };
    let [heads] = &second_layer(4, given)[..] else {
        panic!("a block by weights of two types is one kernel");
    };
    assert!(heads.starts_with("attn_norm attn_q"), "{heads}");
}

#[test]
fn projections_with_biases_or_norms_behind_them_are_one_kernel() {
    let Some(folder) = shared("arch") else { return };
    let open = |name: &str| Gguf::open(folder.join(name)).unwrap();
    let with_biases = second_layer_of(open("qwen2.gguf"), 0, ALL);
    assert_eq!(with_biases[0], "attn_q attn_k Vcur Qcur Kcur kv_cache");
    let with_norms = second_layer_of(open("qwen3.gguf"), 0, ALL);
    assert_eq!(with_norms[0], "attn_q attn_k Vcur");
    let far = Given {
        are_together: false,
        ..ALL
    };
    assert_eq!(second_layer_of(open("qwen2.gguf"), 0, far), [""; 0]);
}

#[test]
fn norms_stay_alone_where_a_kernel_cannot_take_them() {
    let alone = [
        "attn_q attn_k Vcur Qcur Kcur kv_cache",
        "ffn_gate ffn_up ffn_gated",
    ];
    let no_norms = Given {
        n_buffers: 7,
        ..ALL
    };
    assert_eq!(second_layer(4, no_norms), alone);
    // What every adapter of WebGPU has is enough for the gated block.
    let least = Given {
        n_buffers: 8,
        ..ALL
    };
    let [heads, _] = alone;
    let gated = "ffn_norm ffn_gate ffn_up ffn_gated";
    assert_eq!(second_layer(4, least), [heads, gated]);
    assert_eq!(second_layer(0, ALL), alone); // products of f32 rows
    let apart = Given {
        are_together: false,
        ..ALL
    };
    // The norm of the feed-forward block stays with its two products.
    assert_eq!(
        second_layer(4, apart),
        [
            "attn_norm attn_q Qcur",
            "attn_k Kcur kv_cache",
            "Vcur kv_cache",
        ]
    );
}

#[test]
fn nothing_is_fused_where_weights_are_in_several_shards() {
    let sharded = Given {
        is_whole: false,
        ..ALL
    };
    assert_eq!(second_layer(4, sharded), [""; 0]);
}

#[test]
fn both_products_of_experts_and_what_gates_them_are_one_kernel() {
    let gated = "ffn_moe_gate ffn_moe_up ffn_moe_gated".to_owned();
    for name in ["gpt-oss", "qwen3moe"] {
        let Some(folder) = shared("arch") else { return };
        let layer = |given| {
            let gguf = Gguf::open(folder.join(format!("{name}.gguf"))).unwrap();
            second_layer_of(gguf, 4, given)
        };
        assert!(layer(ALL).contains(&gated), "{name}: {:?}", layer(ALL));
        let apart = Given {
            are_together: false,
            ..ALL
        };
        assert!(!layer(apart).contains(&gated), "{name}");
        let sharded = Given {
            is_whole: false,
            ..ALL
        };
        assert_eq!(layer(sharded), [""; 0], "{name}");
    }
}
