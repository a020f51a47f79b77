//! One batch under a graphics debugger: Xcode on Apple's systems, RenderDoc elsewhere.

use super::{GpuExecutor, Rows, dispatches};
use crate::device::wgpu::context::{Context, named};
use crate::error::Result;
use crate::plan::Batch;
use std::sync::{Mutex, MutexGuard, PoisonError};
use wgpu::hal::{Api, Device as _, api};

/// A capture that is under way until this is dropped.
struct Capture<'a> {
    context: &'a Context,
    has_started: bool,
    /// A process has one capture at a time.
    _alone: MutexGuard<'static, ()>,
}

impl Capture<'_> {
    fn start(context: &Context) -> Capture<'_> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Capture {
            context,
            has_started: start(&context.device),
            _alone: alone,
        }
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.has_started {
            #[expect(unsafe_code, reason = "debuggers reach into the driver")]
            // SAFETY: the capture that `start` began, on this device, is the only one of the process: the lock
            // is held until after this.
            unsafe {
                self.context.device.stop_graphics_debugger_capture();
            }
        }
    }
}

/// Whether a debugger is there, and captures from now on.
fn start(device: &wgpu::Device) -> bool {
    #[cfg(target_vendor = "apple")]
    let started = start_on::<api::Metal>(device);
    #[cfg(windows)]
    let started = start_on::<api::Vulkan>(device).or_else(|| start_on::<api::Dx12>(device));
    #[cfg(not(any(target_vendor = "apple", windows)))]
    let started = start_on::<api::Vulkan>(device);
    started.unwrap_or(false)
}

/// As [`start`], on one kind of device; `None` for any other. wgpu's own call does not say whether it began.
fn start_on<A: Api>(device: &wgpu::Device) -> Option<bool> {
    #[expect(unsafe_code, reason = "debuggers reach into the driver")]
    // SAFETY: the device is only asked to begin a capture, and not destroyed; no other capture is under way,
    // since the caller holds the lock. What a debugger does to the driver is the debugger's.
    unsafe {
        let device = device.as_hal::<A>()?;
        Some(device.start_graphics_debugger_capture())
    }
}

impl GpuExecutor {
    /// Runs a batch with the name of its step around each dispatch, which costs time; a debugger that is there
    /// captures it. False where there is none.
    pub(super) fn run_captured(
        &mut self,
        batch: &Batch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<bool> {
        // It was recorded without names.
        self.next = None;
        let shared = self.shared.clone();
        let context = &shared.context;
        context.wait()?;
        let capture = Capture::start(context);
        let has_started = capture.has_started;
        self.write_batch(batch)?;
        let rows = Rows::of(batch);
        for steps in self.submissions(rows) {
            context.scoped("run of a captured batch", || {
                let mut encoder = context.encoder("captured batch");
                let mut pass = encoder.begin_compute_pass(&named("captured batch"));
                for (dispatch, grid) in dispatches(steps, rows) {
                    let step = &self.plan.steps[dispatch.step].name;
                    pass.push_debug_group(&format!("{step}: {}", dispatch.kernel.name));
                    dispatch.record(&mut pass, grid);
                    pass.pop_debug_group();
                }
                drop(pass);
                context.queue.submit([encoder.finish()]);
            })?;
        }
        self.submit_copy_of_logits(rows)?;
        self.read_logits(rows, logits)?;
        // Also where there are no logits to wait for.
        context.wait()?;
        drop(capture);
        Ok(has_started)
    }
}

#[cfg(test)]
mod tests {
    use crate::device::wgpu::GpuBackend;
    use crate::device::wgpu::adapter::GpuFeatures;
    use crate::device::wgpu::buffer::INTERNAL;
    use crate::device::wgpu::context::Context;
    use crate::device::wgpu::testing::gpu;
    use crate::device::{Activations, Backend, GpuChoice};
    use crate::gguf::WeightType;
    use crate::kv_cache::{KvLayout, KvType};
    use crate::model::{DecoderModel, WeightStorage, decoder_plan};
    use crate::tiny;
    use std::sync::Arc;

    /// The names of what two sessions have in buffers, but for wgpu's own.
    fn names_of_buffers() -> Option<Vec<String>> {
        gpu()?;
        let context = Context::new(&GpuChoice::Best, GpuFeatures::default()).unwrap();
        let device = context.device.clone();
        let gguf = Arc::new(tiny::gguf(WeightType::Q4_0, None));
        let model = DecoderModel::from_gguf(gguf, WeightStorage::Native).unwrap();
        let kv = KvLayout {
            layers: model.spec.kv_layers(),
            capacity: 32,
            ty: KvType::F16,
        };
        // All the buffers that there can be: for int8 and for 16-bit activations.
        let weights = model.weights.clone();
        let backend = GpuBackend::new(weights, context, Activations::Int8, &mut |_, _| ()).unwrap();
        let plan = decoder_plan(&model, 32, 1).unwrap();
        let plan = plan.with_int8_activations(&model.weights, backend.rounding().int8_rows);
        let executor = backend.executor(&Arc::new(plan), &kv).unwrap();
        backend.memory().unwrap();
        let report = device.generate_allocator_report()?;
        drop(executor);
        let names = report.allocations.into_iter().map(|found| found.name);
        Some(names.filter(|name| !name.starts_with(INTERNAL)).collect())
    }

    #[test]
    fn every_buffer_has_a_name_of_its_own() {
        let Some(names) = names_of_buffers() else {
            return;
        };
        assert!(names.len() > 50, "{names:?}");
        let mut sorted = names.clone();
        sorted.sort();
        for (name, next) in sorted.iter().zip(&sorted[1..]) {
            assert_ne!(name, next, "{sorted:?}");
        }
        for name in &names {
            let is_of_model = name.starts_with("blk.") || name.ends_with(".weight");
            assert!(
                !name.is_empty() && !name.starts_with("Unlabeled"),
                "{names:?}"
            );
            assert!(is_of_model || name.len() > 3, "`{name}`");
        }
        for expected in ["blk.1.keys", "blk.0.attn_norm.weight", "logits staging"] {
            assert!(names.iter().any(|name| name == expected), "{names:?}");
        }
    }
}
