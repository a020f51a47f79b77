//! What is compiled and bound for the plan of a tiny model.

use super::{SessionBuffers, lower};
use crate::device::wgpu::adapter::GpuFeatures;
use crate::device::wgpu::chain::Chain;
use crate::device::wgpu::context::Context;
use crate::device::wgpu::select::Choice;
use crate::device::wgpu::testing::gpu;
use crate::device::wgpu::{GpuBackend, Shared};
use crate::device::{Activations, Backend, GpuChoice};
use crate::gguf::WeightType;
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{DecoderModel, WeightStorage, decoder_plan};
use crate::plan::Plan;
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
