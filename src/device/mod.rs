//! Where a plan runs: the reference (the truth, slow), the CPU (fast) or a GPU through wgpu.

pub(crate) mod cpu;
pub(crate) mod reference;
pub(crate) mod wgpu;

use crate::error::{Error, Result};
use crate::kv_cache::KvLayout;
use crate::plan::{Batch, Plan, Step};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Where a model runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best real GPU (discrete before integrated), or the CPU where there is none.
    #[default]
    Auto,
    /// The CPU, with SIMD and threads.
    Cpu,
    /// A GPU. Software adapters count when they are asked for by index or name, or are all there is.
    Gpu(GpuChoice),
    /// Plain loops with `f64` sums on the CPU: slow, and what the others are checked against.
    Reference,
}

/// Which GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GpuChoice {
    /// Discrete before integrated before virtual before software.
    #[default]
    Best,
    /// By its place in [`gpus`].
    Index(usize),
    /// The first whose name contains this, ignoring case.
    Name(String),
}

impl FromStr for Device {
    type Err = Error;

    /// `auto`, `cpu`, `gpu`, `gpu:INDEX`, `gpu:NAME` or `reference`.
    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            None => match text {
                "auto" => Ok(Device::Auto),
                "cpu" => Ok(Device::Cpu),
                "gpu" => Ok(Device::Gpu(GpuChoice::Best)),
                "reference" => Ok(Device::Reference),
                _ => Err(unknown_device(text)),
            },
            Some(("gpu", choice)) if !choice.is_empty() => Ok(Device::Gpu(match choice.parse() {
                Ok(index) => GpuChoice::Index(index),
                Err(_) => GpuChoice::Name(choice.to_owned()),
            })),
            Some(_) => Err(unknown_device(text)),
        }
    }
}

fn unknown_device(text: &str) -> Error {
    Error::InvalidArgument {
        name: "device",
        message: format!("`{text}`, expected auto, cpu, gpu, gpu:INDEX, gpu:NAME or reference"),
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Gpu(GpuChoice::Best) => f.write_str("gpu"),
            Device::Gpu(GpuChoice::Index(index)) => write!(f, "gpu:{index}"),
            Device::Gpu(GpuChoice::Name(name)) => write!(f, "gpu:{name}"),
            Device::Reference => f.write_str("reference"),
        }
    }
}

/// The precision of activations in products with weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// The fastest that the device is good at.
    #[default]
    Auto,
    /// 32-bit floats everywhere.
    F32,
    /// 8-bit integers with a scale for each 32 elements, where few rows meet quantised weights on a
    /// GPU; 32-bit floats elsewhere.
    Int8,
}

/// What kind of hardware a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A GPU with its own memory.
    DiscreteGpu,
    /// A GPU that shares the CPU's memory.
    IntegratedGpu,
    /// A GPU of a virtual machine, or one whose driver does not say.
    VirtualGpu,
    /// A Vulkan driver that runs on the CPU.
    SoftwareGpu,
    /// The CPU.
    Cpu,
}

/// The device an engine runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// As the driver says it, e.g. `NVIDIA H200`; for the CPU its instruction sets.
    pub name: String,
    /// Kind of hardware.
    pub kind: DeviceKind,
    /// `vulkan`, `metal`, `dx12`, `cpu` or `reference`.
    pub backend: String,
    /// Driver and version; empty on the CPU.
    pub driver: String,
    /// Threads that compute; 0 on a GPU.
    pub n_threads: usize,
}

/// The GPUs of this machine in the order that [`GpuChoice::Index`] counts.
pub fn gpus() -> Vec<DeviceInfo> {
    wgpu::adapters()
}

/// The values that a step of a running plan has just computed.
pub(crate) struct Observation<'a> {
    /// The index of the step in the plan.
    pub(crate) index: usize,
    /// The step.
    pub(crate) step: &'a Step,
    /// `[n_rows, width]`, dense: the step's destination. For a cache store the rows of the batch as
    /// the cache gives them back, keys `[n_rows, width]` and then values `[n_rows, width]`.
    pub(crate) values: &'a [f32],
    /// Elements in a row.
    pub(crate) width: usize,
}

/// Called after each step of an observed run. An error ends the run.
pub(crate) type Observer<'a> = dyn FnMut(&Observation<'_>) -> Result<()> + 'a;

/// A model's weights on a device.
pub(crate) trait Backend: Send + Sync {
    /// The device.
    fn info(&self) -> &DeviceInfo;

    /// The most tokens that one batch should have here.
    fn preferred_rows(&self) -> usize;

    /// Bytes that a cache may take beside the weights; `None` where the device does not say.
    fn cache_budget_bytes(&self) -> Option<u64>;

    /// Batches of at most this many rows round activations to int8 in products with quantised
    /// weights; 0 for none.
    fn int8_rows(&self, activations: Activations) -> usize;

    /// Makes room for one session: scratch buffers and a zeroed cache.
    fn executor(&self, plan: &Arc<Plan>, kv: &KvLayout) -> Result<Box<dyn Executor>>;
}

/// Runs the plan of one session. Coarse on purpose: called once for each batch.
pub(crate) trait Executor: Send {
    /// Runs a batch: fills the cache at its positions and replaces `logits` by
    /// `[n_outputs, vocab_size] f32`.
    ///
    /// The caller keeps `batch` within the plan's rows and the cache's capacity, and its tokens
    /// within the vocabulary.
    fn run(
        &mut self,
        batch: &Batch<'_>,
        logits: &mut Vec<f32>,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_reads_what_it_writes() {
        for text in ["auto", "cpu", "gpu", "gpu:1", "gpu:llvmpipe", "reference"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn device_refuses_unknown_words() {
        for text in ["", "gpus", "gpu:", "cpu:1", "Metal"] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains("expected auto, cpu"), "{error}");
        }
    }
}
