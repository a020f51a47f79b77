//! The GPUs of this machine: which there are, which one is meant, and what of it may be used.

use crate::device::{Device, DeviceInfo, DeviceKind, GpuChoice};
use crate::error::Error;
use crate::kernels::matmul_coop::CooperativeMatrix;
use std::sync::OnceLock;

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

/// The adapters of this machine.
pub(crate) fn adapters() -> Vec<DeviceInfo> {
    enumerate().into_iter().map(|(info, _)| info).collect()
}

const BACKENDS: wgpu::Backends = wgpu::Backends::VULKAN
    .union(wgpu::Backends::METAL)
    .union(wgpu::Backends::DX12);

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

pub(super) fn enumerate() -> Vec<(DeviceInfo, wgpu::Adapter)> {
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
pub(super) const COOPERATION: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

/// The largest cooperative matrices of an adapter that the kernels can use.
pub(super) fn cooperative_matrix(adapter: &wgpu::Adapter) -> Option<CooperativeMatrix> {
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
pub(super) fn choose(infos: &[DeviceInfo], choice: &GpuChoice) -> Option<usize> {
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

pub(super) fn no_device(infos: &[DeviceInfo], choice: &GpuChoice) -> Error {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
