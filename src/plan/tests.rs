//! A good plan with one step that is wrong: the check must refuse it and name the step.

mod recurrent;

use super::Extent::{Outputs, Tokens};
use super::check::check;
use super::{
    Activation, Buffer, BufferId, EmbedIndex, Extent, Function, Op, Plan, RopeTableId, Step,
    layer_and_name,
};
use crate::gguf::WeightType;
use crate::kv_cache::KvLayer;
use crate::model::{DecoderModel, WeightId, WeightStorage, decoder_plan};
use crate::tiny;
use std::sync::Arc;

/// A plan of the tiny model to be damaged. Its rows are 64 wide (hidden, queries), 32 (keys, values)
/// and 96 (feed-forward); its two layers have 4 query heads and 2 key-value heads of 16.
struct Case {
    model: DecoderModel,
    plan: Plan,
    kv: Vec<KvLayer>,
}

impl Case {
    fn new() -> Self {
        let gguf = Arc::new(tiny::gguf(WeightType::F32, None));
        let model = DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap();
        let plan = decoder_plan(&model, 8, 2).unwrap();
        let kv = model.spec.kv_layers();
        Case { model, plan, kv }
    }

    /// The weight `blk.0.{name}.weight`.
    fn weight(&self, name: &str) -> WeightId {
        let name = format!("blk.0.{name}.weight");
        let found = self.model.weights.iter().find(|(_, w)| w.name == name);
        found.unwrap().0
    }

    fn index(&self, step: &str) -> usize {
        self.plan.steps.iter().position(|s| s.name == step).unwrap()
    }

    /// The buffer that a step writes.
    fn written_by(&self, step: &str) -> BufferId {
        self.plan.steps[self.index(step)].op.dst().unwrap()
    }

    fn new_buffer(&mut self, width: usize, extent: Extent) -> BufferId {
        self.plan.buffers.push(Buffer {
            name: "new".to_owned(),
            width,
            extent,
        });
        BufferId(self.plan.buffers.len() - 1)
    }

    /// What `step` wrote, without the rows that have no outputs: a new step behind it.
    fn outputs_of(&mut self, step: &str) -> BufferId {
        let src = self.written_by(step);
        let dst = self.new_buffer(self.plan.buffer(src).width, Outputs);
        let new = Step {
            name: "new".to_owned(),
            op: Op::SelectOutputs { src, dst },
        };
        let behind = self.index(step) + 1;
        self.plan.steps.insert(behind, new);
        dst
    }

    fn refusal(&self) -> String {
        let checked = check(&self.plan, &self.model.weights, &self.kv);
        checked.unwrap_err().to_string()
    }

    #[track_caller]
    fn assert_refused(&self, step: &str, what: &str) {
        let found = self.refusal();
        let expected = format!("step `{step}`: {what}");
        assert!(
            found.contains(&expected),
            "found `{found}`, expected `{expected}`"
        );
    }
}

/// The plan must be refused where `step` computes another op.
#[track_caller]
fn assert_refused(step: &str, what: &str, op: impl FnOnce(&mut Case) -> Op) {
    let mut case = Case::new();
    let op = op(&mut case);
    let index = case.index(step);
    case.plan.steps[index].op = op;
    case.assert_refused(step, what);
}

const MIXED: &str = "mixes rows of tokens and of outputs";
const NOT_OF_TOKENS: &str = "is not a step over tokens";

#[test]
fn plan_of_the_model_is_accepted() {
    let Case { model, plan, kv } = Case::new();
    check(&plan, &model.weights, &kv).unwrap();
}

#[test]
fn plan_is_refused_where_a_name_stands_twice() {
    let mut case = Case::new();
    let index = case.index("blk.0.ffn_up");
    case.plan.steps[index].name = "blk.0.ffn_gate".to_owned();
    case.assert_refused("blk.0.ffn_gate", "stands in the plan twice");
}

#[test]
fn plan_is_refused_where_a_buffer_is_read_before_it_is_written() {
    let mut case = Case::new();
    let index = case.index("blk.0.attn_norm");
    case.plan.steps.remove(index);
    case.assert_refused("blk.0.attn_q", "reads `attn_norm` before it is written");
}

#[test]
fn plan_is_refused_where_a_step_writes_what_it_reads() {
    let what = "writes `ffn_inp`, which it reads";
    assert_refused("blk.0.l_out", what, |case| Op::Add {
        a: case.written_by("blk.0.ffn_out"),
        b: case.written_by("blk.0.ffn_inp"),
        dst: case.written_by("blk.0.ffn_inp"),
    });
}

#[test]
fn plan_is_refused_where_nothing_writes_the_logits() {
    let what = "the plan writes no logits";
    let mut unwritten = Case::new();
    unwritten.plan.steps.pop();
    assert!(unwritten.refusal().contains(what));
    let mut of_tokens = Case::new();
    of_tokens.plan.logits = of_tokens.written_by("embd");
    assert!(of_tokens.refusal().contains(what));
}

#[test]
fn embedding_is_refused_in_other_widths_and_rows() {
    let embed = |width, extent| {
        move |case: &mut Case| Op::Embed {
            weight: case.weight("attn_q"),
            index: EmbedIndex::Token,
            scale: 1.0,
            dst: case.new_buffer(width, extent),
        }
    };
    assert_refused("embd", "width 63, expected 64", embed(63, Tokens));
    assert_refused("embd", NOT_OF_TOKENS, embed(64, Outputs));
}

#[test]
fn norm_is_refused_in_other_widths_and_rows() {
    let norm = |src: &'static str, weight: &'static str, width, extent| {
        move |case: &mut Case| Op::RmsNorm {
            src: case.written_by(src),
            weight: Some(case.weight(weight)),
            group: 64,
            eps: 1e-5,
            dst: case.new_buffer(width, extent),
        }
    };
    let (step, src, weight) = ("blk.0.ffn_norm", "blk.0.ffn_inp", "ffn_norm");
    let narrow = norm(src, weight, 63, Tokens);
    assert_refused(step, "width 63, expected 64", narrow);
    let matrix = norm(src, "attn_q", 64, Tokens);
    assert_refused(step, "rows of the norm 64, expected 1", matrix);
    let half = norm("blk.0.Kcur", weight, 32, Tokens);
    assert_refused(step, "partial group 32, expected 0", half);
    assert_refused(step, MIXED, norm(src, weight, 64, Outputs));
    let plain = |group, weight: Option<&'static str>| {
        move |case: &mut Case| Op::RmsNorm {
            src: case.written_by("blk.0.ffn_inp"),
            weight: weight.map(|weight| case.weight(weight)),
            group,
            eps: 1e-5,
            dst: case.new_buffer(64, Tokens),
        }
    };
    assert_refused(step, "has empty groups", plain(0, None));
    assert_refused(step, "partial group 4, expected 0", plain(12, None));
    let what = "weights of a group 64, expected 16";
    assert_refused(step, what, plain(16, Some(weight)));
}

#[test]
fn columns_are_refused_beyond_the_row_and_in_other_rows() {
    let columns = |first, width, extent| {
        move |case: &mut Case| Op::TakeColumns {
            src: case.written_by("blk.0.ffn_inp"),
            first,
            length: width,
            period: 64,
            dst: case.new_buffer(width, extent),
        }
    };
    let step = "blk.0.ffn_norm";
    assert_refused(
        step,
        "takes 32 columns from 33 on, of 64",
        columns(33, 32, Tokens),
    );
    let far = columns(usize::MAX, 1, Tokens);
    assert_refused(step, "takes 1 columns from", far);
    assert_refused(step, MIXED, columns(0, 32, Outputs));
}

#[test]
fn attention_that_sees_all_is_refused_with_distances() {
    let both_ways = |window, alibi| {
        move |case: &mut Case| Op::Attention {
            q: case.written_by("blk.0.Qcur"),
            layer: 0,
            n_head: 4,
            scale: 0.25,
            causal: false,
            window,
            chunk: None,
            soft_cap: None,
            alibi,
            sinks: None,
            dst: case.new_buffer(64, Tokens),
        }
    };
    let (step, what) = ("blk.0.kqv_out", "measures distances, and is not causal");
    assert_refused(step, what, both_ways(Some(4), false));
    assert_refused(step, what, both_ways(None, true));
}

#[test]
fn layer_norm_is_refused_in_other_widths_and_rows() {
    let norm = |weight: &'static str, bias: &'static str, group, width, extent| {
        move |case: &mut Case| Op::LayerNorm {
            src: case.written_by("blk.0.ffn_inp"),
            weight: case.weight(weight),
            bias: Some(case.weight(bias)),
            group,
            eps: 1e-5,
            dst: case.new_buffer(width, extent),
        }
    };
    let (step, weight) = ("blk.0.ffn_norm", "ffn_norm");
    let refused = |what, op| assert_refused(step, what, op);
    refused(
        "width 63, expected 64",
        norm(weight, weight, 64, 63, Tokens),
    );
    refused("has empty groups", norm(weight, weight, 0, 64, Tokens));
    refused(
        "rows of the norm 64, expected 1",
        norm("attn_q", weight, 64, 64, Tokens),
    );
    refused(
        "partial group 16, expected 0",
        norm(weight, weight, 48, 64, Tokens),
    );
    refused(
        "bias 96, expected 64",
        norm(weight, "ffn_down", 64, 64, Tokens),
    );
    refused(MIXED, norm(weight, weight, 64, 64, Outputs));
}

#[test]
fn map_is_refused_in_other_widths_and_rows() {
    let map = |width, extent| {
        move |case: &mut Case| Op::Map {
            src: case.written_by("blk.0.ffn_inp"),
            function: Function::Scale(2.0),
            dst: case.new_buffer(width, extent),
        }
    };
    assert_refused("blk.0.ffn_norm", "width 63, expected 64", map(63, Tokens));
    assert_refused("blk.0.ffn_norm", MIXED, map(64, Outputs));
}

#[test]
fn matmul_is_refused_in_other_widths_and_rows() {
    let matmul = |weight: &'static str, bias: Option<&'static str>, extent| {
        move |case: &mut Case| Op::MatMul {
            src: case.written_by("blk.0.attn_norm"),
            weight: case.weight(weight),
            bias: bias.map(|bias| case.weight(bias)),
            int8_rows: 0,
            dst: case.new_buffer(32, extent),
        }
    };
    let step = "blk.0.attn_k";
    let input = matmul("ffn_down", None, Tokens);
    assert_refused(step, "input 64, expected 96", input);
    let output = matmul("attn_q", None, Tokens);
    assert_refused(step, "output 32, expected 64", output);
    let bias = matmul("attn_k", Some("attn_norm"), Tokens);
    assert_refused(step, "bias 64, expected 32", bias);
    assert_refused(step, MIXED, matmul("attn_k", None, Outputs));
}

#[test]
fn rope_is_refused_in_other_widths_and_rows() {
    let rope = |src: &'static str, head_dim, extent| {
        move |case: &mut Case| Op::Rope {
            src: case.written_by(src),
            table: RopeTableId(0),
            head_dim,
            dst: case.new_buffer(64, extent),
        }
    };
    let (step, src) = ("blk.0.Qcur", "blk.0.attn_q");
    let narrow = rope("blk.0.attn_k", 16, Tokens);
    assert_refused(step, "width 64, expected 32", narrow);
    let partial = rope(src, 24, Tokens);
    assert_refused(step, "partial head 16, expected 0", partial);
    let short = rope(src, 8, Tokens);
    assert_refused(step, "turns 16 of 8 dimensions", short);
    assert_refused(step, NOT_OF_TOKENS, rope(src, 16, Outputs));
    assert_refused(step, NOT_OF_TOKENS, |case| Op::Rope {
        src: case.outputs_of(src),
        table: RopeTableId(0),
        head_dim: 16,
        dst: case.new_buffer(64, Tokens),
    });
}

#[test]
fn store_is_refused_in_other_layers_widths_and_rows() {
    let store = |k: &'static str, v: &'static str, layer| {
        move |case: &mut Case| Op::StoreKv {
            k: case.written_by(k),
            v: case.written_by(v),
            layer,
        }
    };
    let (q, k, v) = ("blk.0.Qcur", "blk.0.Kcur", "blk.0.Vcur");
    let step = "blk.0.kv_cache";
    assert_refused(step, "layer 2 of 2", store(k, v, 2));
    assert_refused(step, "keys 64, expected 32", store(q, v, 0));
    assert_refused(step, "values 64, expected 32", store(k, q, 0));
    assert_refused(step, NOT_OF_TOKENS, |case| Op::StoreKv {
        k: case.outputs_of(k),
        v: case.written_by(v),
        layer: 0,
    });
    assert_refused(step, NOT_OF_TOKENS, |case| Op::StoreKv {
        k: case.written_by(k),
        v: case.outputs_of(v),
        layer: 0,
    });
}

/// Of the rotated queries, over the cache of `layer`.
fn attention(
    layer: usize,
    n_head: usize,
    width: usize,
    extent: Extent,
) -> impl Fn(&mut Case) -> Op {
    move |case| Op::Attention {
        q: case.written_by("blk.0.Qcur"),
        layer,
        n_head,
        scale: 0.25,
        causal: true,
        window: None,
        chunk: None,
        soft_cap: None,
        alibi: false,
        sinks: None,
        dst: case.new_buffer(width, extent),
    }
}

#[test]
fn attention_is_refused_over_a_cache_that_is_not_stored() {
    let step = "blk.0.kqv_out";
    let what = "reads a cache before it is stored";
    assert_refused(step, what, attention(1, 4, 64, Tokens));
    assert_refused(step, "layer 2 of 2", attention(2, 4, 64, Tokens));
}

#[test]
fn attention_is_refused_in_other_widths_and_rows() {
    let step = "blk.0.kqv_out";
    let heads = attention(0, 3, 64, Tokens);
    assert_refused(step, "query 64, expected 48", heads);
    let narrow = attention(0, 4, 32, Tokens);
    assert_refused(step, "width 32, expected 64", narrow);
    assert_refused(step, NOT_OF_TOKENS, attention(0, 4, 64, Outputs));
    assert_refused(step, NOT_OF_TOKENS, |case| Op::Attention {
        q: case.outputs_of("blk.0.Qcur"),
        layer: 0,
        n_head: 4,
        scale: 0.25,
        causal: true,
        window: None,
        chunk: None,
        soft_cap: None,
        alibi: false,
        sinks: None,
        dst: case.new_buffer(64, Tokens),
    });
}

#[test]
fn attention_is_refused_where_its_heads_fall_into_no_groups() {
    // Four key-value heads, stored from rows of that width, and two query heads.
    let (step, what) = ("blk.0.kqv_out", "partial group 2, expected 0");
    assert_refused(step, what, |case| {
        case.kv[0].n_head_kv = 4;
        let wide = case.written_by("blk.0.Qcur");
        let store = case.index("blk.0.kv_cache");
        case.plan.steps[store].op = Op::StoreKv {
            k: wide,
            v: wide,
            layer: 0,
        };
        Op::Attention {
            q: case.written_by("blk.0.Kcur"),
            layer: 0,
            n_head: 2,
            scale: 0.25,
            causal: true,
            window: None,
            chunk: None,
            soft_cap: None,
            alibi: false,
            sinks: None,
            dst: case.new_buffer(32, Tokens),
        }
    });
}

#[test]
fn gated_activation_is_refused_in_other_widths_and_rows() {
    let gated = |up: &'static str, width, extent| {
        move |case: &mut Case| Op::GatedActivation {
            gate: case.written_by("blk.0.ffn_gate"),
            up: case.written_by(up),
            activation: Activation::Silu,
            dst: case.new_buffer(width, extent),
        }
    };
    let (step, what, up) = ("blk.0.ffn_gated", "width 64, expected 96", "blk.0.ffn_up");
    assert_refused(step, what, gated("blk.0.ffn_norm", 96, Tokens));
    assert_refused(step, what, gated(up, 64, Tokens));
    assert_refused(step, MIXED, gated(up, 96, Outputs));
}

#[test]
fn addition_is_refused_in_other_widths_and_rows() {
    let add = |b: &'static str, width, extent| {
        move |case: &mut Case| Op::Add {
            a: case.written_by("blk.0.ffn_out"),
            b: case.written_by(b),
            dst: case.new_buffer(width, extent),
        }
    };
    let (step, what, b) = ("blk.0.l_out", "width 96, expected 64", "blk.0.ffn_inp");
    assert_refused(step, what, add("blk.0.ffn_up", 64, Tokens));
    assert_refused(step, what, add(b, 96, Tokens));
    assert_refused(step, MIXED, add(b, 64, Outputs));
    assert_refused(step, MIXED, |case| Op::Add {
        a: case.written_by("blk.0.ffn_out"),
        b: case.outputs_of(b),
        dst: case.new_buffer(64, Tokens),
    });
}

#[test]
fn selection_is_refused_in_other_widths_and_rows() {
    let select = |width, extent| {
        move |case: &mut Case| Op::SelectOutputs {
            src: case.written_by("blk.1.l_out"),
            dst: case.new_buffer(width, extent),
        }
    };
    let step = "result_rows";
    assert_refused(step, "width 63, expected 64", select(63, Outputs));
    assert_refused(step, "does not select outputs", select(64, Tokens));
    assert_refused(step, NOT_OF_TOKENS, |case| Op::SelectOutputs {
        src: case.outputs_of("blk.1.l_out"),
        dst: case.new_buffer(64, Outputs),
    });
}

#[test]
fn names_are_those_of_a_layer_or_of_none() {
    for (step, expected) in [
        ("blk.3.attn_norm", (Some(3), "attn_norm")),
        ("blk.12.kv_cache.keys", (Some(12), "kv_cache.keys")),
        ("embd", (None, "embd")),
        ("result.norm", (None, "result.norm")),
        ("blk.3", (None, "blk.3")),
        ("blk.x.attn_norm", (None, "blk.x.attn_norm")),
    ] {
        assert_eq!(layer_and_name(step), expected);
    }
}

#[test]
fn layers_are_known_by_their_results() {
    let Case { model, plan, kv } = Case::new();
    let names = |plan: &Plan| -> Vec<String> {
        let outputs = plan.layer_outputs.iter();
        outputs.map(|&step| plan.steps[step].name.clone()).collect()
    };
    assert_eq!(names(&plan), ["blk.0.l_out", "blk.1.l_out"]);
    for (place, &step) in plan.layer_outputs.iter().enumerate() {
        let found = plan.layer_output(step);
        assert_eq!(found, plan.steps[step].op.dst().map(|dst| (place, dst)));
        assert_eq!(plan.layer_output(step + 1), None);
    }
    // A store has no rows, the last norm none for each token, and behind the end there is nothing.
    let case = Case { model, plan, kv };
    let last = case.plan.steps.len();
    for wrong in [
        case.index("blk.1.kv_cache"),
        case.index("result_norm"),
        last,
    ] {
        let mut plan = case.plan.clone();
        plan.layer_outputs.push(wrong);
        let error = check(&plan, &case.model.weights, &case.kv).unwrap_err();
        let expected = format!("step {wrong} is no result of a layer");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}
