//! Files that say the same in other tensors: their models must be the same.

use crate::device::reference::ReferenceExecutor;
use crate::error::Result;
use crate::gguf::{Gguf, Value, WeightType, Writer};
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{DecoderModel, WeightStorage, decoder_plan};
use crate::plan::{Batch, Outputs};
use crate::support::shared;
use std::sync::Arc;

/// A tensor: name, shape, type and bytes.
type Tensor = (String, Vec<usize>, WeightType, Vec<u8>);

/// A file of the reference data with other tensors and more keys; `None` where it is not here.
fn rewritten(
    name: &str,
    keys: &[(&str, Value)],
    tensors: impl Fn(Tensor) -> Vec<Tensor>,
) -> Option<Gguf> {
    rewritten_without(name, None, keys, tensors)
}

/// As [`rewritten`], without a key.
fn rewritten_without(
    name: &str,
    left_out: Option<&str>,
    keys: &[(&str, Value)],
    tensors: impl Fn(Tensor) -> Vec<Tensor>,
) -> Option<Gguf> {
    let gguf = Gguf::open(shared("arch")?.join(format!("{name}.gguf"))).unwrap();
    let mut writer = Writer::new();
    let kept = gguf.metadata().iter();
    for (key, value) in kept.filter(|(key, _)| Some(*key) != left_out) {
        writer = writer.metadata(key, value.clone());
    }
    for (key, value) in keys {
        writer = writer.metadata(*key, value.clone());
    }
    for tensor in gguf.tensors() {
        let bytes = gguf.tensor_bytes(tensor).to_vec();
        let ty = tensor.weight_type().unwrap();
        for (name, shape, ty, bytes) in
            tensors((tensor.name.clone(), tensor.shape.clone(), ty, bytes))
        {
            writer = writer.tensor(name, shape, ty, bytes).unwrap();
        }
    }
    Some(Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap())
}

fn model(gguf: Gguf) -> Result<DecoderModel> {
    DecoderModel::from_gguf(Arc::new(gguf), WeightStorage::Native)
}

/// Logits of the reference for some tokens.
fn logits(model: &DecoderModel) -> Vec<f32> {
    use crate::device::Executor;
    let plan = Arc::new(decoder_plan(model, 8, 8).unwrap());
    let kv = KvLayout {
        layers: model.spec.kv_layers(),
        capacity: 16,
        ty: KvType::F32,
    };
    let mut executor = ReferenceExecutor::new(model.weights.clone(), plan, &kv);
    let batch = Batch {
        tokens: &[1, 77, 12, 300, 5],
        position: 0,
        outputs: Outputs::All,
    };
    let mut logits = Vec::new();
    executor.run(&batch, &mut logits, None).unwrap();
    logits
}

fn unchanged(tensor: Tensor) -> Vec<Tensor> {
    vec![tensor]
}

#[track_caller]
fn assert_same(name: &str, gguf: Gguf) {
    let original = rewritten(name, &[], unchanged).unwrap();
    let expected = logits(&model(original).unwrap());
    let found = logits(&model(gguf).unwrap());
    assert!(expected.iter().any(|&logit| logit != 0.0));
    assert_eq!(found, expected, "{name}");
}

#[test]
fn experts_in_a_tensor_each_are_those_of_one_tensor() {
    for name in ["llama-moe", "llama-moe-q8_0"] {
        let split = |(name, shape, ty, bytes): Tensor| match name.split_once("_exps.") {
            Some((front, _)) => {
                let of_expert = |(expert, bytes): (usize, &[u8])| {
                    let name = format!("{front}.{expert}.weight");
                    (name, shape[1..].to_vec(), ty, bytes.to_vec())
                };
                let experts = bytes.chunks_exact(bytes.len() / shape[0]);
                experts.enumerate().map(of_expert).collect()
            }
            None => vec![(name, shape, ty, bytes)],
        };
        let Some(gguf) = rewritten(name, &[], split) else {
            return;
        };
        assert_same(name, gguf);

        let lacking = |tensor: Tensor| {
            let mut tensors = split(tensor);
            tensors.retain(|(name, ..)| name != "blk.0.ffn_up.1.weight");
            tensors
        };
        let error = model(rewritten(name, &[], lacking).unwrap()).err().unwrap();
        let what = "`blk.0.ffn_up.1.weight` is missing";
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn experts_of_two_types_are_refused_by_the_tensor_that_differs() {
    let split = |(name, shape, ty, bytes): Tensor| match name.split_once("_exps.") {
        Some((front, _)) => {
            let of_expert = |(expert, bytes): (usize, &[u8])| {
                let name = format!("{front}.{expert}.weight");
                let shape = shape[1..].to_vec();
                match name == "blk.0.ffn_up.2.weight" {
                    true => {
                        let mut values = vec![0.0; shape.iter().product()];
                        ty.decode(bytes, &mut values);
                        let bytes = WeightType::F16.encode(&values);
                        (name, shape, WeightType::F16, bytes)
                    }
                    false => (name, shape, ty, bytes.to_vec()),
                }
            };
            let experts = bytes.chunks_exact(bytes.len() / shape[0]);
            experts.enumerate().map(of_expert).collect()
        }
        None => vec![(name, shape, ty, bytes)],
    };
    let Some(gguf) = rewritten("llama-moe", &[], split) else {
        return;
    };
    let error = model(gguf).err().unwrap().to_string();
    assert!(error.contains("blk.0.ffn_up.2.weight"), "{error}");
}

#[test]
fn gates_and_ups_of_experts_in_one_tensor_are_those_of_two() {
    for name in ["llama-moe", "llama-moe-q8_0", "deepseek2-v3"] {
        let Some(folder) = shared("arch") else { return };
        let original = Gguf::open(folder.join(format!("{name}.gguf"))).unwrap();
        let fused = |(name, shape, ty, bytes): Tensor| match name.strip_suffix("gate_exps.weight") {
            Some(front) => {
                let up = original.tensor(&format!("{front}up_exps.weight")).unwrap();
                let of_expert = bytes.len() / shape[0];
                let gates = bytes.chunks_exact(of_expert);
                let ups = original.tensor_bytes(up).chunks_exact(of_expert);
                let both: Vec<u8> = gates
                    .zip(ups)
                    .flat_map(|pair| [pair.0, pair.1].concat())
                    .collect();
                let name = format!("{front}gate_up_exps.weight");
                vec![(name, vec![shape[0], 2 * shape[1], shape[2]], ty, both)]
            }
            None if name.ends_with("ffn_up_exps.weight") => vec![],
            None => vec![(name, shape, ty, bytes)],
        };
        assert_same(name, rewritten(name, &[], fused).unwrap());
    }
}

#[test]
fn layers_that_predict_tokens_further_ahead_are_left_out() {
    for (name, key) in [
        ("deepseek2-v3", "deepseek2.nextn_predict_layers"),
        ("glm4moe", "glm4moe.nextn_predict_layers"),
    ] {
        let with_last = |n: u32| rewritten(name, &[(key, Value::from(n))], unchanged);
        let Some(gguf) = with_last(1) else { return };
        let without = model(gguf).unwrap();
        let mut shortened = model(with_last(0).unwrap()).unwrap();
        let n_layer = shortened.spec.n_layer();
        assert_eq!(
            (without.spec.n_layer(), without.spec.n_layer_unused),
            (n_layer - 1, 1)
        );
        shortened.keep_layers(n_layer - 1).unwrap();
        assert_eq!(logits(&without), logits(&shortened), "{name}");

        let error = model(with_last(n_layer as u32).unwrap()).err().unwrap();
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn joint_keys_and_values_are_those_of_two_tensors() {
    let Some(folder) = shared("arch") else { return };
    let original = Gguf::open(folder.join("deepseek2-lite.gguf")).unwrap();
    let [n_head, rank, fixed, value] = [4, 20, 16, 12];
    let values = |name: &str| -> Vec<f32> {
        let tensor = original.tensor(name).unwrap();
        let mut values = vec![0.0; tensor.shape.iter().product()];
        let ty = tensor.weight_type().unwrap();
        ty.decode(original.tensor_bytes(tensor), &mut values);
        values
    };
    let joint = |(name, shape, ty, bytes): Tensor| match name.strip_suffix("k_b.weight") {
        Some(front) => {
            let (k, v) = (values(&name), values(&format!("{front}v_b.weight")));
            let mut rows = Vec::new();
            for head in 0..n_head {
                for column in 0..fixed {
                    rows.extend((0..rank).map(|row| k[(head * rank + row) * fixed + column]));
                }
                rows.extend(&v[head * value * rank..][..value * rank]);
            }
            let shape = vec![n_head * (fixed + value), rank];
            let name = format!("{front}kv_b.weight");
            vec![(name, shape, WeightType::F32, WeightType::F32.encode(&rows))]
        }
        None if name.ends_with("v_b.weight") => vec![],
        None => vec![(name, shape, ty, bytes)],
    };
    assert_same(
        "deepseek2-lite",
        rewritten("deepseek2-lite", &[], joint).unwrap(),
    );
}

#[test]
fn dense_widths_need_not_be_stated_where_every_layer_has_experts() {
    let left_out = Some("qwen35moe.feed_forward_length");
    let Some(gguf) = rewritten_without("qwen35moe", left_out, &[], unchanged) else {
        return;
    };
    assert_same("qwen35moe", gguf);

    let left_out = Some("qwen35.feed_forward_length");
    let error = model(rewritten_without("qwen35", left_out, &[], unchanged).unwrap());
    let error = error.err().unwrap().to_string();
    assert!(error.contains("feed_forward_length`: missing"), "{error}");
}

#[test]
fn keys_that_layers_do_not_use_may_be_there() {
    let with_more = |(name, shape, ty, bytes): Tensor| {
        let mut tensors = Vec::new();
        for unused in ["attn_k.weight", "attn_k_norm.weight"] {
            if name == format!("blk.0.{unused}") {
                let more = format!("blk.5.{unused}");
                tensors.push((more, shape.clone(), ty, bytes.clone()));
            }
        }
        tensors.push((name, shape, ty, bytes));
        tensors
    };
    let Some(gguf) = rewritten("gemma4-e2b", &[], with_more) else {
        return;
    };
    let last = "blk.5.attn_k.weight";
    assert!(gguf.tensor(last).is_some(), "layer 5 has keys of its own");
    assert_same("gemma4-e2b", gguf);
}
