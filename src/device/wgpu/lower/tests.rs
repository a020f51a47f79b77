//! What is compiled and bound for the plan of a tiny model.

use super::{Dispatch, SessionBuffers, lower};
use crate::device::wgpu::adapter::GpuFeatures;
use crate::device::wgpu::chain::Chain;
use crate::device::wgpu::context::Context;
use crate::device::wgpu::select::Choice;
use crate::device::wgpu::testing::gpu;
use crate::device::wgpu::{GpuBackend, Shared};
use crate::device::{Activations, Backend, GpuChoice};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, WeightType};
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{DecoderModel, WeightStorage, decoder_plan};
use crate::plan::{Batch, Outputs, Plan};
use crate::support::shared;
use crate::tiny;
use std::sync::Arc;

const N_TOKENS: usize = 16;

/// A tiny model on a GPU, with a plan and a cache for [`N_TOKENS`].
fn tiny_on(context: Context) -> (GpuBackend, Arc<Plan>, KvLayout) {
    let gguf = tiny::gguf(WeightType::Q4_0, None);
    on(context, gguf, Activations::Int8)
}

fn on(context: Context, gguf: Gguf, activations: Activations) -> (GpuBackend, Arc<Plan>, KvLayout) {
    let model = DecoderModel::from_gguf(Arc::new(gguf), WeightStorage::Native).unwrap();
    let weights = model.weights.clone();
    let backend = GpuBackend::new(weights, context, activations, &mut |_, _| ()).unwrap();
    let plan = decoder_plan(&model, N_TOKENS, 1).unwrap();
    let plan = plan.with_int8_activations(&model.weights, backend.rounding().int8_rows);
    let kv = KvLayout {
        layers: model.spec.kv_layers(),
        capacity: N_TOKENS,
        ty: KvType::F16,
    };
    (backend, Arc::new(plan), kv)
}

#[test]
fn kernels_that_choose_tokens_are_compiled_with_those_of_the_plan() {
    if gpu().is_none() {
        return;
    }
    let context = Context::new(&GpuChoice::Best, GpuFeatures::default()).unwrap();
    let (backend, plan, kv) = tiny_on(context);
    let Shared {
        context, rounding, ..
    } = &*backend.shared;
    let choice = Choice::new(context, *rounding, kv.ty);
    let buffers = SessionBuffers::new(context, &plan, &kv, &choice).unwrap();
    lower(&backend.shared, &plan, &kv, &buffers, &choice).unwrap();
    let n_compiled = context.pipelines.len();
    Chain::new(context, &plan, &buffers, &choice.plain()).unwrap();
    assert_eq!(context.pipelines.len(), n_compiled);
}

/// The kernels that a token at the first position takes in the second layer.
fn kernels_of_a_layer((backend, plan, kv): &(GpuBackend, Arc<Plan>, KvLayout)) -> Vec<String> {
    let Shared {
        context, rounding, ..
    } = &*backend.shared;
    let choice = Choice::new(context, *rounding, kv.ty);
    let buffers = SessionBuffers::new(context, plan, kv, &choice).unwrap();
    let lowered = lower(&backend.shared, plan, kv, &buffers, &choice).unwrap();
    let runs = |dispatch: &&Dispatch| {
        let is_in_layer = plan.steps[dispatch.step].name.starts_with("blk.1.");
        let is_for_one = dispatch.rows.covers(1) && dispatch.visible.contains(&1);
        is_in_layer && is_for_one && !dispatch.is_sentinel
    };
    let dispatches = lowered.steps.iter().flatten().filter(runs);
    let name = |dispatch: &Dispatch| dispatch.kernel.name.to_owned();
    dispatches.map(name).collect()
}

fn context_with(fusion: bool) -> Context {
    let features = GpuFeatures {
        fusion,
        ..GpuFeatures::default()
    };
    Context::new(&GpuChoice::Best, features).unwrap()
}

#[test]
fn projections_are_as_many_dispatches_as_their_weights_have_types() {
    use WeightType::{Q4_K, Q6_K};
    if gpu().is_none() {
        return;
    }
    let kernels = |gguf| kernels_of_a_layer(&on(context_with(true), gguf, Activations::Int8));
    let heads = "matvec_heads";
    let rest = ["attention_few", "matvec", "matvec_gated", "matvec"];
    let alike = tiny::gguf(Q4_K, None);
    assert_eq!(kernels(alike), [&[heads][..], &rest].concat());
    // Weights that do not follow each other lie apart.
    for (part, n_heads) in [("attn_v", 2), ("attn_k", 3), ("attn_q", 2), ("attn_o", 1)] {
        let found = kernels(tiny::mixed(Q4_K, part, Q6_K));
        let expected = [&vec![heads; n_heads][..], &rest].concat();
        assert_eq!(found, expected, "{part} of another type");
    }
    let unfused = on(
        context_with(false),
        tiny::gguf(Q4_K, None),
        Activations::Int8,
    );
    let of_projections = ["matvec"; 3];
    let found = kernels_of_a_layer(&unfused);
    assert!(!found.iter().any(|name| name == heads), "{found:?}");
    let start = found.iter().position(|name| name == "matvec").unwrap();
    assert_eq!(found[start..][..3], of_projections);
}

#[test]
fn projections_of_tiny_architectures_are_one_dispatch() {
    if gpu().is_none() {
        return;
    }
    let Some(folder) = shared("arch") else { return };
    // With biases; with norms between projection and rotation; with neither bias nor rotation.
    for name in ["qwen2", "qwen3", "gemma3", "gpt2", "bloom"] {
        let gguf = Gguf::open(folder.join(format!("{name}.gguf"))).unwrap();
        let found = kernels_of_a_layer(&on(context_with(true), gguf, Activations::F32));
        let n_heads = found.iter().filter(|name| *name == "matvec_heads").count();
        assert_eq!(n_heads, 1, "{name}: {found:?}");
    }
}

#[test]
fn fused_projections_give_what_single_ones_give() {
    use WeightType::{Q4_K, Q6_K};
    if gpu().is_none() {
        return;
    }
    for part in ["nothing", "attn_v", "attn_k", "attn_q"] {
        for activations in [Activations::F32, Activations::Int8] {
            let [fused, single] = [true, false].map(|fusion| {
                let gguf = tiny::mixed(Q4_K, part, Q6_K);
                logits_of(on(context_with(fusion), gguf, activations)).unwrap()
            });
            // Measured 0 on lavapipe; with int8 some integers are one off where sums end in other bits.
            let part_of_largest = match activations {
                Activations::F32 => 1e-5,
                _ => 0.02,
            };
            assert_near(&fused, &single, part_of_largest);
        }
    }
}

/// [`logits_of`] a tiny model.
fn logits(context: Context) -> Result<Vec<f32>> {
    logits_of(tiny_on(context))
}

/// The logits behind a prompt of many rows, one token and three more.
fn logits_of((backend, plan, kv): (GpuBackend, Arc<Plan>, KvLayout)) -> Result<Vec<f32>> {
    let mut executor = backend.executor(&plan, &kv)?;
    let mut logits = Vec::new();
    for (position, tokens) in [
        (0, &[3, 5, 7, 4, 6, 9, 8][..]),
        (7, &[5]),
        (8, &[11, 4, 17]),
    ] {
        let batch = Batch {
            tokens,
            position,
            outputs: Outputs::Last,
        };
        executor.run(&batch, &mut logits, None)?;
    }
    Ok(logits)
}

#[test]
fn device_with_the_least_limits_gets_kernels_that_fit_it() {
    if gpu().is_none() {
        return;
    }
    let least = || Context::with_default_limits().unwrap();
    assert_eq!(least().limits.max_storage_buffers_per_shader_stage, 8);
    let wide = Context::new(&GpuChoice::Best, GpuFeatures::default()).unwrap();
    assert!(wide.limits.max_storage_buffers_per_shader_stage > 8);
    let expected = logits(wide).unwrap();
    let found = logits(least()).unwrap();
    // Measured 0 on lavapipe. Where the sums of the two norms end in other bits some integers are one off.
    assert_near(&found, &expected, 0.02);
    let mut boastful = least();
    boastful.limits.max_storage_buffers_per_shader_stage = 9;
    let refused = logits(boastful).unwrap_err();
    assert!(
        matches!(&refused, Error::Gpu { message, .. } if message.contains("matvec_heads")),
        "{refused}"
    );
}

/// Compares logits within a part of the largest.
#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], part_of_largest: f32) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    let bound = part_of_largest * largest;
    for (j, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= bound,
            "logit {j}: {found}, expected {expected} within {bound}"
        );
    }
}
