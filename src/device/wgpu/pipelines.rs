//! Kernels compiled for a device: each variant once, found again by what its text depends on.

use super::context::Context;
use crate::error::Result;
use crate::gguf::WeightType;
use crate::kernels::attention_few::Heads;
use crate::kernels::matmul_coop::Tile;
use crate::kernels::{Access, BatchParams, Constants, Kernel, Src, Variant, attention_coop};
use crate::kv_cache::KvType;
use rayon::prelude::*;
use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};

/// A kernel compiled for a device.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) compiled: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// A kernel's name and the parts of [`Variant`] that it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    name: &'static str,
    weight: Option<WeightType>,
    src: Option<Src>,
    kv: Option<KvType>,
    subgroups: Option<bool>,
    tile: Option<Tile>,
    heads: Option<Heads>,
    workgroup: Option<u32>,
    int8_pairs: Option<u32>,
    constants: Option<Constants>,
    attention_tile: Option<attention_coop::Tile>,
}

impl fmt::Display for Key {
    /// The kernel's name and what tells its variants apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(weight) = self.weight {
            write!(f, " {}", weight.name())?;
        }
        let is_set = |flag: Option<bool>| flag == Some(true);
        let parts = [
            self.src.map(|src| format!("{src:?}")),
            self.kv.map(|kv| format!("{kv:?}")),
            self.tile.map(|tile| tile.to_string()),
            self.heads.map(|heads| format!("{heads:?}")),
            self.attention_tile.map(|tile| format!("{tile:?}")),
            is_set(self.subgroups).then(|| "subgroups".to_owned()),
            self.workgroup.map(|workgroup| format!("of {workgroup}")),
            self.int8_pairs.map(|pairs| format!("{pairs} pairs")),
            self.constants.map(|constants| constants.to_string()),
        ];
        for part in parts.into_iter().flatten() {
            write!(f, " {part}")?;
        }
        Ok(())
    }
}

impl Key {
    fn new(kernel: &Kernel, variant: &Variant) -> Key {
        Key {
            name: kernel.name,
            weight: kernel.uses.weight.then_some(variant.weight),
            src: kernel.uses.matvec.then_some(variant.src),
            kv: kernel.uses.kv.then_some(variant.kv),
            subgroups: kernel.reduces(variant).then_some(variant.subgroups),
            tile: variant.tile.filter(|_| kernel.uses.tile),
            heads: variant.heads.filter(|_| kernel.uses.heads),
            workgroup: kernel.uses.matvec.then_some(variant.workgroup),
            int8_pairs: (kernel.uses.matvec && variant.src != Src::F32)
                .then_some(variant.int8_pairs),
            constants: variant.constants,
            attention_tile: variant
                .attention_tile
                .filter(|_| kernel.uses.attention_tile),
        }
    }
}

/// The pipelines of a [`Context`].
#[derive(Debug, Default)]
pub(super) struct PipelineCache {
    compiled: Mutex<HashMap<Key, Arc<Pipeline>>>,
}

impl PipelineCache {
    fn with<T>(&self, access: impl FnOnce(&mut HashMap<Key, Arc<Pipeline>>) -> T) -> T {
        access(&mut self.compiled.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
impl PipelineCache {
    /// Pipelines that are compiled.
    pub(super) fn len(&self) -> usize {
        self.with(|compiled| compiled.len())
    }
}

impl Context {
    /// Compiles what is not there yet, on all cores.
    ///
    /// # Errors
    /// As [`Context::pipeline`].
    pub(super) fn compile_all(
        &self,
        wanted: impl Iterator<Item = (&'static Kernel, Variant)>,
    ) -> Result<()> {
        let wanted: HashMap<Key, _> = wanted
            .map(|(kernel, variant)| (Key::new(kernel, &variant), (kernel, variant)))
            .collect();
        wanted
            .into_par_iter()
            .try_for_each(|(_, (kernel, variant))| self.pipeline(kernel, &variant).map(drop))
    }

    /// The pipeline of a variant of a kernel, compiled at its first use.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with the kernel's name, and the line where its text is at fault.
    pub(crate) fn pipeline(&self, kernel: &Kernel, variant: &Variant) -> Result<Arc<Pipeline>> {
        let key = Key::new(kernel, variant);
        if let Some(pipeline) = self.pipelines.with(|compiled| compiled.get(&key).cloned()) {
            return Ok(pipeline);
        }
        let pipeline = Arc::new(self.compile(kernel, variant)?);
        Ok(self
            .pipelines
            .with(|compiled| Arc::clone(compiled.entry(key).or_insert(pipeline))))
    }

    fn compile(&self, kernel: &Kernel, variant: &Variant) -> Result<Pipeline> {
        let name = kernel.name;
        let label = Key::new(kernel, variant).to_string();
        let source = kernel.source(variant);
        #[cfg(test)]
        let source = self.tampering.source(name, source);
        let module = self.shader_module(name, &label, &source)?;
        let entries = layout_entries(kernel, variant);
        self.scoped(&format!("kernel `{name}`"), || {
            let layout = self
                .device
                .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                    label: Some(&label),
                    entries: &entries,
                });
            let pipeline_layout =
                self.device
                    .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                        label: Some(&label),
                        bind_group_layouts: &[Some(&layout)],
                        immediate_size: 0,
                    });
            let compiled = self
                .device
                .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label: Some(&label),
                    layout: Some(&pipeline_layout),
                    module: &module,
                    entry_point: Some("main"),
                    compilation_options: wgpu::PipelineCompilationOptions {
                        zero_initialize_workgroup_memory: false,
                        ..Default::default()
                    },
                    cache: self.kept.as_ref().map(|kept| &kept.cache),
                });
            Pipeline { compiled, layout }
        })
    }

    fn shader_module(&self, name: &str, label: &str, source: &str) -> Result<wgpu::ShaderModule> {
        let mut fault = None;
        let created = self.scoped(&format!("kernel `{name}`"), || {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(label),
                source: wgpu::ShaderSource::Wgsl(source.into()),
            };
            let checks = wgpu::ShaderRuntimeChecks::unchecked();
            #[expect(
                unsafe_code,
                reason = "bounds checks cost time in every load of every kernel"
            )]
            // SAFETY: the texts are this crate's own; each kernel guards its indices against the
            // sizes in its parameters, its loops end and its divisors are not zero.
            let module = unsafe { self.device.create_shader_module_trusted(descriptor, checks) };
            fault = first_error(&module);
            module
        });
        match (created, fault) {
            (Err(_), Some(fault)) => {
                let text = source
                    .lines()
                    .nth(fault.line.saturating_sub(1))
                    .unwrap_or_default();
                Err(self.error(format!(
                    "kernel `{name}`, line {} (`{}`): {}",
                    fault.line,
                    text.trim(),
                    fault.message
                )))
            }
            (created, _) => created,
        }
    }

    /// Binds the batch, the parameters and the storage buffers of a kernel, in the order of its bindings.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) where they do not fit the kernel.
    pub(crate) fn bind_group(
        &self,
        label: &str,
        pipeline: &Pipeline,
        buffers: &[wgpu::BufferBinding<'_>],
    ) -> Result<wgpu::BindGroup> {
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(buffer.clone()),
            })
            .collect();
        self.scoped(&format!("bindings of `{label}`"), || {
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(label),
                layout: &pipeline.layout,
                entries: &entries,
            })
        })
    }
}

/// The batch, the parameters, then the storage buffers.
fn layout_entries(kernel: &Kernel, variant: &Variant) -> Vec<wgpu::BindGroupLayoutEntry> {
    let uniform = |bytes: usize| wgpu::BindingType::Buffer {
        ty: wgpu::BufferBindingType::Uniform,
        has_dynamic_offset: false,
        min_binding_size: NonZeroU64::new(bytes as u64),
    };
    let storage = |access: Access| wgpu::BindingType::Buffer {
        ty: wgpu::BufferBindingType::Storage {
            read_only: access == Access::Read,
        },
        has_dynamic_offset: false,
        min_binding_size: None,
    };
    let uniforms = [
        uniform(size_of::<BatchParams>()),
        uniform(kernel.params_bytes),
    ];
    let storages = kernel.bindings(variant);
    let storages = storages.into_iter().map(|(_, access)| storage(access));
    (0..)
        .zip(uniforms.into_iter().chain(storages))
        .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty,
            count: None,
        })
        .collect()
}

struct Fault {
    line: usize,
    message: String,
}

fn first_error(module: &wgpu::ShaderModule) -> Option<Fault> {
    let messages = pollster::block_on(module.get_compilation_info()).messages;
    let error =
        |m: &wgpu::CompilationMessage| m.message_type == wgpu::CompilationMessageType::Error;
    messages.into_iter().find(error).map(|m| Fault {
        line: m
            .location
            .map_or(0, |location| location.line_number as usize),
        message: m.message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::wgpu::testing::gpu;
    use crate::error::Error;
    use crate::kernels::{Uses, add, rms_norm};

    const ANY_VARIANT: Variant = Variant::PLAIN;

    const BROKEN: Kernel = Kernel {
        name: "broken",
        wgsl: "\n@compute @workgroup_size(64)\nfn main() {\n    let x = absent;\n}\n",
        bindings: &[],
        params_bytes: 16,
        uses: Uses::NOTHING,
    };

    #[test]
    fn a_broken_kernel_is_refused_with_its_name_and_line() {
        let Some(context) = gpu() else { return };
        let error = context.pipeline(&BROKEN, &ANY_VARIANT).unwrap_err();
        let Error::Gpu { message, .. } = &error else {
            panic!("{error}")
        };
        assert!(message.contains("kernel `broken`, line "), "{message}");
        assert!(message.contains("(`let x = absent;`)"), "{message}");
        context.check().unwrap();
    }

    #[test]
    fn a_pipeline_is_compiled_once_for_what_its_text_depends_on() {
        let Some(context) = gpu() else { return };
        let other_kv = Variant {
            kv: KvType::F16,
            ..ANY_VARIANT
        };
        let first = context.pipeline(&rms_norm::KERNEL, &ANY_VARIANT).unwrap();
        let same = context.pipeline(&rms_norm::KERNEL, &other_kv).unwrap();
        assert!(Arc::ptr_eq(&first, &same));
        let other = context.pipeline(&add::KERNEL, &ANY_VARIANT).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
    }

    #[test]
    fn variants_of_a_kernel_have_names_of_their_own() {
        let kernel = &crate::kernels::matvec::KERNEL;
        let label = |variant: &Variant| Key::new(kernel, variant).to_string();
        let plain = label(&ANY_VARIANT);
        assert!(plain.starts_with("matvec f32"), "{plain}");
        let others = [
            Variant {
                weight: WeightType::Q4_K,
                ..ANY_VARIANT
            },
            Variant {
                src: Src::Int8,
                ..ANY_VARIANT
            },
            Variant {
                workgroup: 256,
                ..ANY_VARIANT
            },
            Variant {
                src: Src::Int8,
                int8_pairs: 2,
                ..ANY_VARIANT
            },
            Variant {
                constants: Constants::new(bytemuck::bytes_of(&[7_u32, 0, 9, 0])),
                ..ANY_VARIANT
            },
        ];
        let mut labels: Vec<_> = others.iter().map(label).collect();
        labels.push(plain);
        let different: std::collections::BTreeSet<_> = labels.iter().collect();
        assert_eq!(different.len(), 6, "{labels:?}");
        assert!(labels[4].ends_with("[7, 0, 9]"), "{labels:?}");
    }

    #[test]
    fn bindings_that_do_not_fit_the_kernel_are_refused() {
        let Some(context) = gpu() else { return };
        let pipeline = context.pipeline(&add::KERNEL, &ANY_VARIANT).unwrap();
        let error = context.bind_group("blk.0.add", &pipeline, &[]).unwrap_err();
        assert!(
            error.to_string().contains("bindings of `blk.0.add`"),
            "{error}"
        );
    }
}
