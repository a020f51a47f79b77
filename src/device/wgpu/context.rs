//! One opened GPU: its device and queue, and every failure turned into an [`Error`].

use super::adapter::{COOPERATION, GpuFeatures, choose, cooperative_matrix, enumerate, no_device};
use super::buffer::Buffer;
use super::kept_pipelines::KeptPipelines;
use super::mapping::Mapping;
use super::pipelines::PipelineCache;
use crate::device::memory::{Ledger, Purpose};
use crate::device::{DeviceInfo, DeviceKind, GpuChoice};
use crate::error::{Error, Result};
use crate::kernels::matmul_coop::CooperativeMatrix;
use std::sync::{Arc, OnceLock};

/// An opened GPU.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) info: DeviceInfo,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) limits: wgpu::Limits,
    /// What was asked for and is there.
    pub(crate) features: wgpu::Features,
    /// What may be used.
    pub(crate) allowed: GpuFeatures,
    /// The cooperative matrices that kernels may use.
    pub(crate) cooperative_matrix: Option<CooperativeMatrix>,
    pub(super) pipelines: PipelineCache,
    pub(super) kept: Option<KeptPipelines>,
    #[cfg(test)]
    pub(crate) tampering: super::tampering::Tampering,
    /// Bytes of the buffers that are alive.
    pub(super) ledger: Arc<Ledger>,
    /// The first failure that no call could be blamed for.
    failure: Arc<OnceLock<String>>,
}

/// Bytes of the blocks that buffers share; larger ones have memory of their own. Of the sizes that were
/// simulated for models of 0.1 to 8 billion weights these waste the least: 2 to 6 %.
const MEMORY_HINTS: wgpu::MemoryHints = wgpu::MemoryHints::Manual {
    suballocated_device_memory_block_size: 8 << 20..32 << 20,
};

impl Context {
    /// Opens the adapter that `choice` means, with those of `features` that it has.
    ///
    /// # Errors
    /// [`Error::NoDevice`] where there is no such adapter, [`Error::Gpu`] where it refuses to open.
    pub(crate) fn new(choice: &GpuChoice, features: GpuFeatures) -> Result<Context> {
        let (info, adapter) = find(choice)?;
        Context::open(info, &adapter, features, adapter.limits())
    }

    /// The best adapter with the limits that each adapter of WebGPU has, and with no wider ones.
    #[cfg(test)]
    pub(crate) fn with_default_limits() -> Result<Context> {
        let (info, adapter) = find(&GpuChoice::Best)?;
        let limits = wgpu::Limits::default();
        Context::open(info, &adapter, GpuFeatures::default(), limits)
    }

    /// Opens the best adapter that is not software; `None` where there is none, or where it refuses
    /// to open (which the log says).
    pub(crate) fn open_real(features: GpuFeatures) -> Option<Context> {
        let (infos, mut adapters): (Vec<_>, Vec<_>) = enumerate().into_iter().unzip();
        let place = choose(&infos, &GpuChoice::Best)
            .filter(|&place| infos[place].kind != DeviceKind::SoftwareGpu)?;
        let adapter = adapters.swap_remove(place);
        Context::open(infos[place].clone(), &adapter, features, adapter.limits())
            .inspect_err(|error| log::warn!("{error}; the CPU is used"))
            .ok()
    }

    fn open(
        info: DeviceInfo,
        adapter: &wgpu::Adapter,
        features: GpuFeatures,
        limits: wgpu::Limits,
    ) -> Result<Context> {
        let mut wanted = wgpu::Features::empty();
        wanted |= wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        wanted |= wgpu::Features::PIPELINE_CACHE;
        wanted.set(wgpu::Features::SUBGROUP, features.subgroups);
        let may_cooperate = features.subgroups && features.cooperative_matrices;
        let cooperative_matrix = may_cooperate.then(|| cooperative_matrix(adapter)).flatten();
        if cooperative_matrix.is_some() {
            wanted |= COOPERATION;
        }
        #[expect(unsafe_code, reason = "cooperative matrices are experimental in wgpu")]
        // SAFETY: the one experimental feature that is asked for is cooperative matrices, which the
        // adapter has; the kernels use them as WGSL validation and the driver's list of shapes allow.
        let experimental_features = match cooperative_matrix {
            Some(_) => unsafe { wgpu::ExperimentalFeatures::enabled() },
            None => wgpu::ExperimentalFeatures::disabled(),
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("trueshot"),
            required_features: wanted & adapter.features(),
            experimental_features,
            required_limits: limits,
            memory_hints: MEMORY_HINTS,
            ..Default::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(|error| {
                Error::Gpu {
                    device: info.name.clone(),
                    message: error.to_string(),
                }
            })?;

        let failure = Arc::new(OnceLock::new());
        let first = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            first.get_or_init(|| error.to_string());
        }));
        let first = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, message| {
            first.get_or_init(|| format!("the device was lost ({reason:?}): {message}"));
        });
        log::info!("GPU {} ({}, {})", info.name, info.backend, info.driver);
        Ok(Context {
            limits: device.limits(),
            features: device.features(),
            allowed: features,
            cooperative_matrix,
            pipelines: PipelineCache::default(),
            kept: None,
            #[cfg(test)]
            tampering: Default::default(),
            ledger: Arc::default(),
            info,
            device,
            queue,
            failure,
        })
    }

    /// Whether kernels may use subgroup operations.
    pub(crate) fn subgroups(&self) -> bool {
        self.features.contains(wgpu::Features::SUBGROUP)
    }

    /// The most bytes that one storage binding may have.
    pub(crate) fn max_binding_bytes(&self) -> u64 {
        self.limits
            .max_storage_buffer_binding_size
            .min(self.limits.max_buffer_size)
    }

    /// An [`Error::Gpu`] on this adapter.
    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        Error::Gpu {
            device: self.info.name.clone(),
            message: message.into(),
        }
    }

    /// Whether the GPU is well: no failure came in since it was opened.
    ///
    /// # Errors
    /// [`Error::Gpu`] with the first failure.
    pub(crate) fn check(&self) -> Result<()> {
        match self.failure.get() {
            Some(message) => Err(self.error(message)),
            None => Ok(()),
        }
    }

    /// Runs GPU calls that belong together and gives back the first error they raised.
    /// `what` names them in it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where memory runs out, [`Error::Gpu`] where a call is refused or the
    /// device is lost.
    pub(crate) fn scoped<T>(&self, what: &str, calls: impl FnOnce() -> T) -> Result<T> {
        self.sized(what, 0, calls)
    }

    /// As [`Context::scoped`], for calls that take `bytes` bytes of memory.
    pub(super) fn sized<T>(&self, what: &str, bytes: u64, calls: impl FnOnce() -> T) -> Result<T> {
        let outcome = self.guard(calls);
        if outcome.is_err() {
            // Calls on a lost device raise errors of their own: the callback says that it is lost. Whether this
            // fails too does not matter.
            let _ = self.device.poll(wgpu::PollType::Poll);
        }
        self.check()?;
        outcome.map_err(|error| match error {
            wgpu::Error::OutOfMemory { .. } => self.out_of_memory(what, bytes),
            error => self.error(format!("{what}: {error}")),
        })
    }

    /// An [`Error::OutOfMemory`] on this adapter; 0 bytes where their number is not known.
    pub(crate) fn out_of_memory(&self, what: impl Into<String>, bytes: u64) -> Error {
        Error::OutOfMemory {
            what: what.into(),
            bytes,
            device: self.info.name.clone(),
        }
    }

    fn guard<T>(&self, calls: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let value = calls();
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        let memory = pollster::block_on(memory.pop());
        match memory.or(internal).or(validation) {
            Some(error) => Err(error),
            None => Ok(value),
        }
    }

    /// An encoder of commands, which a graphics debugger shows as `label`.
    pub(crate) fn encoder(&self, label: &str) -> wgpu::CommandEncoder {
        let descriptor = wgpu::CommandEncoderDescriptor { label: Some(label) };
        self.device.create_command_encoder(&descriptor)
    }

    /// Waits until the GPU has done all that was submitted.
    ///
    /// # Errors
    /// [`Error::Gpu`] where it failed meanwhile.
    pub(crate) fn wait(&self) -> Result<()> {
        self.wait_for(None)
    }

    /// Waits until the GPU has done what was submitted up to `submission`, and no longer; all where there is none.
    ///
    /// # Errors
    /// [`Error::Gpu`] where it failed meanwhile.
    pub(super) fn wait_for(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let wait = wgpu::PollType::Wait {
            submission_index: submission,
            timeout: None,
        };
        self.device
            .poll(wait)
            .map_err(|error| self.error(format!("wait: {error}")))?;
        self.check()
    }

    /// A copy of `bytes` bytes of a buffer (multiples of 4, usage `COPY_SRC`) from `offset` on,
    /// once everything submitted is done. For inspection: it allocates and blocks.
    ///
    /// # Errors
    /// As [`Context::create_buffer`] and [`Context::wait`].
    pub(crate) fn read_buffer(
        &self,
        buffer: &wgpu::Buffer,
        offset: u64,
        bytes: u64,
    ) -> Result<Vec<u8>> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = self.create_buffer(Purpose::Staging, "read staging", bytes, usage)?;
        self.scoped("read of a buffer", || {
            let mut encoder = self.encoder("read of a buffer");
            encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, bytes);
            self.queue.submit([encoder.finish()]);
        })?;
        Ok(self
            .map_staging("read of a buffer", &staging, bytes)?
            .to_vec())
    }

    /// The first `bytes` bytes of a buffer of usage `MAP_READ`, once everything submitted is done.
    /// The caller drops the view and unmaps the buffer. `what` names the read in an error.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the GPU failed meanwhile or the buffer cannot be mapped.
    pub(super) fn map_staging(
        &self,
        what: &'static str,
        staging: &Buffer,
        bytes: u64,
    ) -> Result<wgpu::BufferView> {
        Mapping::new(self, what, wgpu::MapMode::Read, staging, bytes, None)?.read(self)
    }
}

/// The adapter that `choice` means.
fn find(choice: &GpuChoice) -> Result<(DeviceInfo, wgpu::Adapter)> {
    let (infos, mut adapters): (Vec<_>, Vec<_>) = enumerate().into_iter().unzip();
    match choose(&infos, choice) {
        Some(place) => Ok((infos[place].clone(), adapters.swap_remove(place))),
        None => Err(no_device(&infos, choice)),
    }
}

/// A pass that a graphics debugger shows as `label`.
pub(crate) fn named(label: &str) -> wgpu::ComputePassDescriptor<'_> {
    wgpu::ComputePassDescriptor {
        label: Some(label),
        timestamp_writes: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::wgpu::testing::gpu;

    #[test]
    fn an_adapter_that_there_is_not_is_refused() {
        let choice = GpuChoice::Index(usize::MAX);
        let error = Context::new(&choice, GpuFeatures::default()).unwrap_err();
        assert!(matches!(error, Error::NoDevice { .. }), "{error}");
    }

    #[test]
    fn a_buffer_too_large_is_out_of_memory_with_its_name_and_size() {
        let Some(context) = gpu() else { return };
        let bytes = context.limits.max_buffer_size + 4;
        let error = context
            .create_buffer(
                Purpose::Scratch,
                "cache",
                bytes,
                wgpu::BufferUsages::STORAGE,
            )
            .unwrap_err();
        assert!(
            matches!(&error, Error::OutOfMemory { what, bytes: b, .. } if what == "cache" && b == &bytes),
            "{error}"
        );
        context.check().unwrap();
    }

    #[test]
    fn a_refused_call_is_an_error_of_its_scope_and_leaves_the_context_well() {
        let Some(context) = gpu() else { return };
        let usage = wgpu::BufferUsages::STORAGE;
        let buffer = context
            .create_buffer(Purpose::Scratch, "no copies", 16, usage)
            .unwrap();
        let error = context.read_buffer(&buffer, 0, 16).unwrap_err();
        assert!(
            matches!(&error, Error::Gpu { message, .. } if message.contains("read of a buffer"))
        );
        context.check().unwrap();
    }

    #[test]
    fn a_buffer_never_written_reads_zeros() {
        let Some(context) = gpu() else { return };
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let buffer = context
            .create_buffer(Purpose::Scratch, "fresh", 64, usage)
            .unwrap();
        assert_eq!(context.read_buffer(&buffer, 16, 32).unwrap(), vec![0; 32]);
    }

    #[test]
    fn an_error_outside_a_scope_and_a_lost_device_come_back_from_check() {
        let Some(_) = gpu() else { return };
        let open = || Context::new(&GpuChoice::Best, GpuFeatures::default()).unwrap();
        let refused = open();
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE;
        let descriptor = wgpu::BufferDescriptor {
            label: None,
            size: 16,
            usage,
            mapped_at_creation: false,
        };
        drop(refused.device.create_buffer(&descriptor));
        assert!(matches!(refused.check(), Err(Error::Gpu { .. })));

        let lost = open();
        lost.device.destroy();
        assert!(matches!(lost.wait(), Err(Error::Gpu { message, .. }) if message.contains("lost")));
        let usage = wgpu::BufferUsages::STORAGE;
        assert!(
            lost.create_buffer(Purpose::Scratch, "after the loss", 16, usage)
                .is_err()
        );
    }
}
