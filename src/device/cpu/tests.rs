//! The device as a whole against the reference; the kernels are tested beside their modules.

use super::{CpuBackend, elementwise};
use crate::device::reference::ReferenceBackend;
use crate::device::{Backend, Observation};
use crate::gguf::{Gguf, WeightType, Writer};
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{DecoderModel, WeightStorage, decoder_plan};
use crate::plan::{Activation, Batch, Function, Outputs};
use crate::tiny::Random;
use std::sync::Arc;

const VOCAB: usize = 77;
const MAX_ROWS: usize = 24;
const CAPACITY: usize = 40;

/// Numbers in -1..1.
pub(super) fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.next_f32()).collect()
}

/// A Gemma 3 of six small layers: the last one global, the others with a window of 5.
fn tiny_gemma3() -> Gguf {
    const HIDDEN: usize = 256;
    const FFN: usize = 512;
    const HEAD_DIM: usize = 12;
    const N_HEAD: usize = 4;
    const N_HEAD_KV: usize = 2;
    let key = |suffix: &str| format!("gemma3.{suffix}");
    let mut seed = 0;
    let mut writer = Writer::new()
        .metadata("general.architecture", "gemma3")
        .metadata(key("block_count"), 6_u32)
        .metadata(key("context_length"), 64_u32)
        .metadata(key("embedding_length"), HIDDEN as u32)
        .metadata(key("feed_forward_length"), FFN as u32)
        .metadata(key("attention.head_count"), N_HEAD as u32)
        .metadata(key("attention.head_count_kv"), N_HEAD_KV as u32)
        .metadata(key("attention.key_length"), HEAD_DIM as u32)
        .metadata(key("attention.value_length"), HEAD_DIM as u32)
        .metadata(key("attention.sliding_window"), 5_u32)
        .metadata(key("attention.layer_norm_rms_epsilon"), 1e-6_f32);
    let mut tensor = |name: String, ty: WeightType, shape: &[usize]| {
        seed += 1;
        let scale = if shape.len() == 1 { 1.0 } else { 0.1 };
        let offset = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values = random(seed, shape.iter().product());
        let values: Vec<f32> = values.iter().map(|x| offset + scale * x).collect();
        let written = std::mem::replace(&mut writer, Writer::new());
        writer = written.tensor(name, shape, ty, ty.encode(&values)).unwrap();
    };
    use WeightType::{BF16, F16, F32, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    tensor("token_embd.weight".to_owned(), Q8_0, &[VOCAB, HIDDEN]);
    tensor("output_norm.weight".to_owned(), F32, &[HIDDEN]);
    for (layer, ty) in [Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K].into_iter().enumerate() {
        let name = |suffix: &str| format!("blk.{layer}.{suffix}.weight");
        let norms = [
            "attn_norm",
            "post_attention_norm",
            "ffn_norm",
            "post_ffw_norm",
        ];
        norms
            .iter()
            .for_each(|norm| tensor(name(norm), F32, &[HIDDEN]));
        tensor(name("attn_q_norm"), F32, &[HEAD_DIM]);
        tensor(name("attn_k_norm"), F32, &[HEAD_DIM]);
        tensor(name("attn_q"), ty, &[N_HEAD * HEAD_DIM, HIDDEN]);
        tensor(name("attn_k"), Q6_K, &[N_HEAD_KV * HEAD_DIM, HIDDEN]);
        tensor(name("attn_v"), F16, &[N_HEAD_KV * HEAD_DIM, HIDDEN]);
        tensor(name("attn_output"), BF16, &[HIDDEN, N_HEAD * HEAD_DIM]);
        tensor(name("ffn_gate"), ty, &[FFN, HIDDEN]);
        tensor(name("ffn_up"), Q8_0, &[FFN, HIDDEN]);
        tensor(name("ffn_down"), ty, &[HIDDEN, FFN]);
    }
    Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap()
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 31 % VOCAB) as u32).collect()
}

/// The logits of every token, fed in chunks.
fn logits(model: &DecoderModel, backend: &dyn Backend, ty: KvType, chunk: usize) -> Vec<f32> {
    let plan = Arc::new(decoder_plan(model, MAX_ROWS, MAX_ROWS).unwrap());
    let kv = KvLayout {
        layers: model.spec.kv_layers(),
        capacity: CAPACITY,
        ty,
    };
    let mut executor = backend.executor(&plan, &kv).unwrap();
    let (mut all, mut rows) = (Vec::new(), Vec::new());
    for (index, tokens) in tokens(MAX_ROWS).chunks(chunk).enumerate() {
        let batch = Batch {
            tokens,
            position: index * chunk,
            outputs: Outputs::All,
        };
        executor.run(&batch, &mut rows, None).unwrap();
        all.extend_from_slice(&rows);
    }
    all
}

fn cpu(model: &DecoderModel, n_threads: usize) -> CpuBackend {
    CpuBackend::new(model.weights.clone(), Some(n_threads), &mut |_, _| {}).unwrap()
}

/// The L2 norm of the difference over that of `expected`.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let pairs = found.iter().zip(expected);
    let error = squares(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (error / squares(&mut expected.iter().map(|&x| f64::from(x)))).sqrt()
}

#[test]
fn logits_agree_with_the_reference_for_every_storage_and_chunk() {
    let gguf = Arc::new(tiny_gemma3());
    for storage in [
        WeightStorage::Native,
        WeightStorage::F16,
        WeightStorage::F32,
    ] {
        let model = DecoderModel::from_gguf(gguf.clone(), storage).unwrap();
        let reference = ReferenceBackend::new(model.weights.clone());
        let cpu = cpu(&model, 2);
        // An f16 cache turns differences of the last bit into ones of 2^-11 here and there.
        for (ty, bound) in [(KvType::F32, 5e-6), (KvType::F16, 5e-4)] {
            let expected = logits(&model, &reference, ty, MAX_ROWS);
            for chunk in [1, 2, 7, MAX_ROWS] {
                let error = relative_error(&logits(&model, &cpu, ty, chunk), &expected);
                assert!(
                    error <= bound,
                    "{storage:?}, {ty:?}, chunks of {chunk}: {error}, bound {bound}"
                );
            }
        }
    }
}

#[test]
fn logits_are_the_same_for_any_number_of_threads() {
    let model = DecoderModel::from_gguf(Arc::new(tiny_gemma3()), WeightStorage::Native).unwrap();
    for chunk in [1, 5, MAX_ROWS] {
        let expected = logits(&model, &cpu(&model, 1), KvType::F16, chunk);
        for n_threads in [2, 3, 7] {
            let found = logits(&model, &cpu(&model, n_threads), KvType::F16, chunk);
            assert!(found == expected, "{n_threads} threads, chunks of {chunk}");
        }
    }
}

#[test]
fn observer_sees_what_the_reference_shows() {
    let model = DecoderModel::from_gguf(Arc::new(tiny_gemma3()), WeightStorage::Native).unwrap();
    let plan = Arc::new(decoder_plan(&model, MAX_ROWS, 1).unwrap());
    let kv = KvLayout {
        layers: model.spec.kv_layers(),
        capacity: CAPACITY,
        ty: KvType::F32,
    };
    let tokens = tokens(9);
    let observe = |backend: &dyn Backend, outputs: Outputs| {
        let mut executor = backend.executor(&plan, &kv).unwrap();
        let mut seen = Vec::new();
        let mut observer = |step: &Observation<'_>| {
            seen.push((step.step.name.clone(), step.width, step.values.to_vec()));
            Ok(())
        };
        let batch = Batch {
            tokens: &tokens,
            position: 0,
            outputs,
        };
        executor
            .run(&batch, &mut Vec::new(), Some(&mut observer))
            .unwrap();
        seen
    };
    let reference = ReferenceBackend::new(model.weights.clone());
    for outputs in [Outputs::None, Outputs::Last] {
        let expected = observe(&reference, outputs);
        let found = observe(&cpu(&model, 2), outputs);
        assert_eq!(found.len(), plan.steps.len());
        for ((name, width, values), (step, expected_width, expected)) in found.iter().zip(&expected)
        {
            assert_eq!((name, width), (step, expected_width));
            let error = if expected.is_empty() {
                0.0
            } else {
                relative_error(values, expected)
            };
            assert!(
                values.len() == expected.len() && error <= 1e-5,
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn an_observers_error_ends_the_run() {
    let model = DecoderModel::from_gguf(Arc::new(tiny_gemma3()), WeightStorage::Native).unwrap();
    let plan = Arc::new(decoder_plan(&model, 4, 1).unwrap());
    let kv = KvLayout {
        layers: model.spec.kv_layers(),
        capacity: 4,
        ty: KvType::F32,
    };
    let mut executor = cpu(&model, 1).executor(&plan, &kv).unwrap();
    let mut n_seen = 0;
    let mut observer = |_: &Observation<'_>| {
        n_seen += 1;
        match n_seen {
            3 => Err(crate::Error::InvalidModel {
                message: "stop".to_owned(),
            }),
            _ => Ok(()),
        }
    };
    let batch = Batch {
        tokens: &[1, 2],
        position: 0,
        outputs: Outputs::Last,
    };
    assert!(
        executor
            .run(&batch, &mut Vec::new(), Some(&mut observer))
            .is_err()
    );
    assert_eq!(n_seen, 3);
}

#[test]
fn progress_ends_at_the_bytes_of_all_weights() {
    for storage in [WeightStorage::Native, WeightStorage::F32] {
        let model = DecoderModel::from_gguf(Arc::new(tiny_gemma3()), storage).unwrap();
        let mut calls = Vec::new();
        let mut progress = |done, total| calls.push((done, total));
        CpuBackend::new(model.weights.clone(), None, &mut progress).unwrap();
        let total = model.weights.stored_bytes();
        assert_eq!(
            (calls.first(), calls.last()),
            (Some(&(0, total)), Some(&(total, total)))
        );
        assert!(calls.is_sorted());
    }
}

#[test]
fn no_threads_is_an_error() {
    let model = DecoderModel::from_gguf(Arc::new(tiny_gemma3()), WeightStorage::Native).unwrap();
    let error = CpuBackend::new(model.weights.clone(), Some(0), &mut |_, _| {})
        .err()
        .unwrap();
    assert_eq!(error.to_string(), "`threads`: 0, expected at least 1");
}

#[test]
fn available_memory_is_known_on_linux() {
    let bytes = super::available_memory_bytes();
    assert_eq!(bytes.is_some(), cfg!(target_os = "linux"));
    assert!(bytes.is_none_or(|bytes| bytes > 1 << 20));
}

#[test]
fn values_that_are_not_finite_are_seen_behind_functions() {
    let src = [f32::NAN, f32::INFINITY, 1.0];
    for function in [
        Function::SoftCap(4.0),
        Function::Activation(Activation::ReluSquared),
    ] {
        let mut dst = [0.0; 3];
        elementwise::map(function, 3, &src, &mut dst);
        assert!(dst[0].is_nan() && dst[1] == f32::INFINITY, "{dst:?}");
        assert!(dst[2].is_finite(), "{dst:?}");
    }
}
