//! What is compiled and bound for the plan of a tiny model.

use super::{SessionBuffers, lower};
use crate::device::wgpu::adapter::GpuFeatures;
use crate::device::wgpu::chain::Chain;
use crate::device::wgpu::context::Context;
use crate::device::wgpu::select::Choice;
use crate::device::wgpu::testing::gpu;
use crate::device::wgpu::{GpuBackend, Shared};
use crate::device::{Activations, Backend, GpuChoice};
use crate::error::{Error, Result};
use crate::gguf::WeightType;
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{DecoderModel, WeightStorage, decoder_plan};
use crate::plan::{Batch, Outputs, Plan};
use crate::tiny;
use std::sync::Arc;

const N_TOKENS: usize = 16;

/// A tiny model on a GPU, with a plan and a cache for [`N_TOKENS`].
fn tiny_on(context: Context) -> (GpuBackend, Arc<Plan>, KvLayout) {
    let gguf = Arc::new(tiny::gguf(WeightType::Q4_0, None));
    let model = DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap();
    let weights = model.weights.clone();
    let backend = GpuBackend::new(weights, context, Activations::Int8, &mut |_, _| ()).unwrap();
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

#[test]
fn attention_of_few_rows_goes_one_way_at_each_depth() {
    if gpu().is_none() {
        return;
    }
    let all = GpuFeatures::default();
    let without = GpuFeatures {
        cooperative_matrices: false,
        ..all
    };
    for (features, ty) in [
        (all, KvType::F16),
        (all, KvType::F32),
        (without, KvType::F16),
    ] {
        let context = Context::new(&GpuChoice::Best, features).unwrap();
        let (backend, plan, kv) = tiny_on(context);
        let kv = KvLayout { ty, ..kv };
        let Shared {
            context, rounding, ..
        } = &*backend.shared;
        let choice = Choice::new(context, *rounding, kv.ty);
        let buffers = SessionBuffers::new(context, &plan, &kv, &choice).unwrap();
        let lowered = lower(&backend.shared, &plan, &kv, &buffers, &choice).unwrap();
        let deep = match choice.matrix.is_some() && ty == KvType::F16 {
            true => "attention_deep",
            false => "attention_few",
        };
        let n_layer = kv.layers.len();
        for n_rows in 1..=4 {
            for (visible, wanted) in [
                (1, vec!["attention_few"]),
                (1536, vec!["attention_few"]),
                (1537, vec![deep, "attention_merge"]),
                (100_000, vec![deep, "attention_merge"]),
            ] {
                let dispatches = lowered.steps.iter().flatten();
                let names: Vec<_> = dispatches
                    .filter(|d| d.rows.covers(n_rows) && d.visible.contains(&visible))
                    .map(|dispatch| dispatch.kernel.name)
                    .filter(|name| name.starts_with("attention"))
                    .collect();
                assert_eq!(
                    names,
                    wanted.repeat(n_layer),
                    "{ty:?}, {n_rows} rows, {visible}"
                );
            }
        }
    }
}

/// Logits behind a prompt of many rows and behind one more token.
fn logits(context: Context) -> Result<Vec<f32>> {
    let (backend, plan, kv) = tiny_on(context);
    let mut executor = backend.executor(&plan, &kv)?;
    let mut logits = Vec::new();
    for (position, tokens) in [(0, &[3, 5, 7, 4, 6, 9, 8][..]), (7, &[5])] {
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
    assert_eq!(found.len(), expected.len());
    // Measured 0 on lavapipe. Where the sums of the two norms end in other bits some integers are one off.
    let largest = expected.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    let bound = 0.02 * largest;
    for (j, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= bound,
            "logit {j}: {found}, expected {expected} within {bound}"
        );
    }
    let mut boastful = least();
    boastful.limits.max_storage_buffers_per_shader_stage = 9;
    let refused = logits(boastful).unwrap_err();
    assert!(
        matches!(&refused, Error::Gpu { message, .. } if message.contains("matvec_heads")),
        "{refused}"
    );
}
