//! One opened GPU: which adapter, its device and queue, and every failure turned into an [`Error`].

use super::kept_pipelines::KeptPipelines;
use super::pipelines::PipelineCache;
use crate::device::memory::{Ledger, Purpose};
use crate::device::{Device, DeviceInfo, DeviceKind, GpuChoice};
use crate::error::{Error, Result};
use crate::kernels::matmul_coop::CooperativeMatrix;
use std::fmt;
use std::sync::{Arc, OnceLock, mpsc};

/// Optional features that may be used on GPUs that have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuFeatures {
    /// Sums across the lanes of a subgroup.
    pub subgroups: bool,
    /// Products of small matrices of 16-bit floats by a subgroup (they need `subgroups`), the only kernels with 16-bit
    /// floats in shaders. Without them [`Activations::F16`](crate::Activations::F16) is 32-bit floats.
    pub cooperative_matrices: bool,
    /// Products of four packed bytes at once, and the rounding to them. Without them
    /// [`Activations::Int8`](crate::Activations::Int8) is 32-bit floats in batches of few rows.
    pub int8_dot: bool,
    /// Kernels that compute several steps, and results that are written in the form the next step takes.
    pub fusion: bool,
    /// Parameters as constants of the text of kernels for few rows.
    pub constants: bool,
}

impl GpuFeatures {
    const ALL: GpuFeatures = GpuFeatures {
        subgroups: true,
        cooperative_matrices: true,
        int8_dot: true,
        fusion: true,
        constants: true,
    };

    /// All features but one, for each of them by its name.
    pub fn each_left_out() -> Vec<(&'static str, GpuFeatures)> {
        let without = |name, leave_out: fn(&mut GpuFeatures)| {
            let mut features = GpuFeatures::ALL;
            leave_out(&mut features);
            (name, features)
        };
        vec![
            without("subgroups", |all| all.subgroups = false),
            without("cooperative_matrices", |all| {
                all.cooperative_matrices = false
            }),
            without("int8_dot", |all| all.int8_dot = false),
            without("fusion", |all| all.fusion = false),
            without("constants", |all| all.constants = false),
        ]
    }
}

impl Default for GpuFeatures {
    fn default() -> Self {
        GpuFeatures::ALL
    }
}

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

/// The adapters of this machine.
pub(crate) fn adapters() -> Vec<DeviceInfo> {
    enumerate().into_iter().map(|(info, _)| info).collect()
}

const BACKENDS: wgpu::Backends = wgpu::Backends::VULKAN
    .union(wgpu::Backends::METAL)
    .union(wgpu::Backends::DX12);

/// Bytes of the blocks that buffers share; larger ones have memory of their own. Of the sizes that were
/// simulated for models of 0.1 to 8 billion weights these waste the least: 2 to 6 %.
const MEMORY_HINTS: wgpu::MemoryHints = wgpu::MemoryHints::Manual {
    suballocated_device_memory_block_size: 8 << 20..32 << 20,
};

/// The one instance of the process. NVIDIA's Vulkan driver cannot be loaded and unloaded at will: after some
/// thirty instances it reports no device, or crashes.
fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE.get_or_init(|| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = BACKENDS;
        descriptor.flags = if cfg!(debug_assertions) {
            wgpu::InstanceFlags::debugging()
        } else {
            wgpu::InstanceFlags::empty()
        };
        wgpu::Instance::new(descriptor)
    })
}

fn enumerate() -> Vec<(DeviceInfo, wgpu::Adapter)> {
    let adapters = pollster::block_on(instance().enumerate_adapters(BACKENDS));
    adapters
        .into_iter()
        .map(|adapter| (describe(&adapter), adapter))
        .collect()
}

fn describe(adapter: &wgpu::Adapter) -> DeviceInfo {
    let info = adapter.get_info();
    DeviceInfo {
        name: info.name,
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu,
            wgpu::DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu,
            wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => DeviceKind::VirtualGpu,
            wgpu::DeviceType::Cpu => DeviceKind::SoftwareGpu,
        },
        backend: info.backend.to_str().to_owned(),
        driver: format!("{} {}", info.driver, info.driver_info)
            .trim()
            .to_owned(),
        n_threads: 0,
    }
}

/// What cooperative matrices need.
const COOPERATION: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

/// The largest cooperative matrices of an adapter that the kernels can use.
fn cooperative_matrix(adapter: &wgpu::Adapter) -> Option<CooperativeMatrix> {
    // A driver may list shapes and still lack the feature; asking for it would panic then.
    if !adapter.features().contains(COOPERATION) {
        return None;
    }
    let info = adapter.get_info();
    let properties = adapter.cooperative_matrix_properties();
    let subgroups = match info.backend {
        // wgpu says 4 to 64 for all that Metal runs on; Apple's own GPUs have 32.
        wgpu::Backend::Metal if info.name.starts_with("Apple") => [32, 32],
        _ => [info.subgroup_min_size, info.subgroup_max_size],
    };
    let size = largest_matrix(&properties, subgroups)?;
    Some(CooperativeMatrix {
        size,
        subgroup_size: subgroups[0] as usize,
        from_vectors: info.backend != wgpu::Backend::Metal,
    })
}

/// The size of the largest square matrices with 16-bit factors and 32-bit sums, where all subgroups
/// are of one size, which a matrix divides.
fn largest_matrix(
    properties: &[wgpu::CooperativeMatrixProperties],
    [least, most]: [u32; 2],
) -> Option<usize> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let is_usable = |shape: &&wgpu::CooperativeMatrixProperties| {
        shape.ab_type == F16
            && shape.cr_type == F32
            && shape.m_size == shape.n_size
            && shape.m_size == shape.k_size
            && [8, 16].contains(&shape.m_size)
            && least.is_multiple_of(shape.m_size)
    };
    let usable = properties.iter().filter(is_usable);
    let largest = usable.map(|shape| shape.m_size as usize).max();
    largest.filter(|_| least == most)
}

/// The place in `infos` of the adapter that `choice` means.
fn choose(infos: &[DeviceInfo], choice: &GpuChoice) -> Option<usize> {
    let rank = |kind| match kind {
        DeviceKind::DiscreteGpu => 0,
        DeviceKind::IntegratedGpu => 1,
        DeviceKind::VirtualGpu => 2,
        DeviceKind::SoftwareGpu | DeviceKind::Cpu => 3,
    };
    match choice {
        GpuChoice::Best => (0..infos.len()).min_by_key(|&index| rank(infos[index].kind)),
        GpuChoice::Index(index) => (*index < infos.len()).then_some(*index),
        GpuChoice::Name(name) => {
            let name = name.to_lowercase();
            infos
                .iter()
                .position(|info| info.name.to_lowercase().contains(&name))
        }
    }
}

fn no_device(infos: &[DeviceInfo], choice: &GpuChoice) -> Error {
    let found: Vec<String> = (0..)
        .zip(infos)
        .map(|(index, info)| format!("{index}: `{}` ({})", info.name, info.backend))
        .collect();
    let found = if found.is_empty() {
        "no GPU".to_owned()
    } else {
        found.join(", ")
    };
    let wanted = Device::Gpu(choice.clone());
    Error::NoDevice {
        message: format!("`{wanted}` was asked for, there is {found}"),
    }
}

impl Context {
    /// Opens the adapter that `choice` means, with those of `features` that it has.
    ///
    /// # Errors
    /// [`Error::NoDevice`] where there is no such adapter, [`Error::Gpu`] where it refuses to open.
    pub(crate) fn new(choice: &GpuChoice, features: GpuFeatures) -> Result<Context> {
        let (infos, mut adapters): (Vec<_>, Vec<_>) = enumerate().into_iter().unzip();
        let Some(place) = choose(&infos, choice) else {
            return Err(no_device(&infos, choice));
        };
        Context::open(infos[place].clone(), &adapters.swap_remove(place), features)
    }

    /// Opens the best adapter that is not software; `None` where there is none, or where it refuses
    /// to open (which the log says).
    pub(crate) fn open_real(features: GpuFeatures) -> Option<Context> {
        let (infos, mut adapters): (Vec<_>, Vec<_>) = enumerate().into_iter().unzip();
        let place = choose(&infos, &GpuChoice::Best)
            .filter(|&place| infos[place].kind != DeviceKind::SoftwareGpu)?;
        Context::open(infos[place].clone(), &adapters.swap_remove(place), features)
            .inspect_err(|error| log::warn!("{error}; the CPU is used"))
            .ok()
    }

    fn open(info: DeviceInfo, adapter: &wgpu::Adapter, features: GpuFeatures) -> Result<Context> {
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
            required_limits: adapter.limits(),
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
        let value = self.guard(calls).map_err(|error| {
            self.lost().unwrap_or_else(|| match error {
                wgpu::Error::OutOfMemory { .. } => self.out_of_memory(what, 0),
                error => self.error(format!("{what}: {error}")),
            })
        })?;
        self.check()?;
        Ok(value)
    }

    /// The failure that is behind one that comes after it, as calls on a lost device raise: that it is lost.
    fn lost(&self) -> Option<Error> {
        // Whether this fails too does not matter: it is for the callback.
        let _ = self.device.poll(wgpu::PollType::Poll);
        self.check().err()
    }

    /// An [`Error::OutOfMemory`] on this adapter; 0 bytes where their number is not known.
    pub(crate) fn out_of_memory(&self, what: impl Into<String>, bytes: u64) -> Error {
        Error::OutOfMemory {
            what: what.into(),
            bytes,
            device: self.info.name.clone(),
        }
    }

    pub(super) fn guard<T>(&self, calls: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
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
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|error| self.error(format!("wait: {error}")))?;
        self.check()
    }

    /// Waits until the GPU has done what was submitted up to `submission`, and no longer.
    ///
    /// # Errors
    /// [`Error::Gpu`] where it failed meanwhile.
    pub(crate) fn wait_for(&self, submission: wgpu::SubmissionIndex) -> Result<()> {
        let poll = wgpu::PollType::Wait {
            submission_index: Some(submission),
            timeout: None,
        };
        self.device
            .poll(poll)
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
    pub(crate) fn map_staging(
        &self,
        what: &str,
        staging: &wgpu::Buffer,
        bytes: u64,
    ) -> Result<wgpu::BufferView> {
        let failed = |message: &dyn fmt::Display| self.error(format!("{what}: {message}"));
        let (sender, receiver) = mpsc::channel();
        self.scoped(what, || {
            staging.map_async(wgpu::MapMode::Read, ..bytes, move |outcome| {
                sender.send(outcome).ok();
            });
        })?;
        self.wait()?;
        // Where other threads wait too, one of theirs may run the callback, after this wait is over.
        match receiver.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(failed(&"the GPU did not answer")),
        }
        staging
            .get_mapped_range(..bytes)
            .map_err(|error| failed(&error))
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

    fn machine(kinds: &[(&str, DeviceKind)]) -> Vec<DeviceInfo> {
        let info = |&(name, kind): &(&str, DeviceKind)| DeviceInfo {
            name: name.to_owned(),
            kind,
            backend: "vulkan".to_owned(),
            driver: String::new(),
            n_threads: 0,
        };
        kinds.iter().map(info).collect()
    }

    const KINDS: [(&str, DeviceKind); 4] = [
        ("llvmpipe", DeviceKind::SoftwareGpu),
        ("Intel UHD", DeviceKind::IntegratedGpu),
        ("NVIDIA RTX", DeviceKind::DiscreteGpu),
        ("NVIDIA GTX", DeviceKind::DiscreteGpu),
    ];

    #[test]
    fn the_best_adapter_is_discrete_then_integrated_then_software() {
        let best = |kinds| choose(&machine(kinds), &GpuChoice::Best);
        assert_eq!(best(&KINDS), Some(2));
        assert_eq!(best(&KINDS[..2]), Some(1));
        assert_eq!(best(&KINDS[..1]), Some(0));
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn index_and_name_find_any_adapter() {
        let infos = machine(&KINDS);
        assert_eq!(choose(&infos, &GpuChoice::Index(0)), Some(0));
        assert_eq!(choose(&infos, &GpuChoice::Index(4)), None);
        assert_eq!(choose(&infos, &GpuChoice::Name("gtx".into())), Some(3));
        assert_eq!(choose(&infos, &GpuChoice::Name("LLVM".into())), Some(0));
        assert_eq!(choose(&infos, &GpuChoice::Name("radeon".into())), None);
    }

    #[test]
    fn an_absent_adapter_is_refused_with_what_there_is() {
        let error = no_device(&machine(&KINDS[..1]), &GpuChoice::Name("radeon".into()));
        assert_eq!(
            error.to_string(),
            "no such device: `gpu:radeon` was asked for, there is 0: `llvmpipe` (vulkan)"
        );
        let choice = GpuChoice::Index(usize::MAX);
        let error = Context::new(&choice, GpuFeatures::default()).unwrap_err();
        assert!(matches!(error, Error::NoDevice { .. }), "{error}");
    }

    #[test]
    fn matrices_are_used_where_they_are_square_with_f32_sums_and_subgroups_have_one_size() {
        use wgpu::CooperativeScalarType::{F16, F32};
        let shape = |[m_size, n_size, k_size]: [u32; 3], ab_type, cr_type| {
            wgpu::CooperativeMatrixProperties {
                m_size,
                n_size,
                k_size,
                ab_type,
                cr_type,
                saturating_accumulation: false,
            }
        };
        let small = shape([8, 8, 8], F16, F32);
        let large = shape([16, 16, 16], F16, F32);
        let flat = shape([16, 8, 16], F16, F32);
        let f16_sums = shape([16, 16, 16], F16, F16);
        let f32_factors = shape([8, 8, 8], F32, F32);
        assert_eq!(largest_matrix(&[flat, small, large], [32, 32]), Some(16));
        assert_eq!(largest_matrix(&[small, large], [8, 8]), Some(8));
        assert_eq!(largest_matrix(&[small, large], [8, 32]), None);
        assert_eq!(largest_matrix(&[small], [4, 4]), None);
        assert_eq!(
            largest_matrix(&[flat, f16_sums, f32_factors], [32, 32]),
            None
        );
        assert_eq!(largest_matrix(&[], [32, 32]), None);
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
