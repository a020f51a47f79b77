//! Where a plan runs: the reference (the truth, slow), the CPU (fast) or a GPU through wgpu.

pub(crate) mod cpu;
mod held;
pub(crate) mod memory;
mod recurrent;
pub(crate) mod reference;
pub(crate) mod sentinel;
pub(crate) mod stepwise;
mod tuning;
pub(crate) mod wgpu;

use crate::error::{Error, Result};
use crate::gguf::WeightType;
use crate::kv_cache::KvLayout;
use crate::model::WeightId;
use crate::plan::{Batch, Plan, Step};
use crate::sampler::PlainSampling;
pub use sentinel::Sentinels;
use serde::Serialize;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
pub(crate) use stepwise::Stepwise;

pub(crate) use held::Held;
pub use held::HeldDifference;

pub use memory::{AllocatorMemory, MemoryReport};
pub use tuning::{Tune, TuningChoice, TuningReport, TuningTrial};

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

/// What products with weights, and attention, round their activations to. Sums are 32-bit floats always;
/// what a device has no use for is 32-bit floats there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activations {
    /// The fastest that the device is good at: [`Activations::Int8`] on most GPUs, [`Activations::F16`] on
    /// Metal, [`Activations::F32`] on CPUs.
    #[default]
    Auto,
    /// 32-bit floats everywhere.
    F32,
    /// Batches of many rows: 16-bit floats, scaled row by row so that none overflows, where a GPU has
    /// cooperative matrices; attention rounds a cache of 32-bit floats likewise. Batches of few rows:
    /// 32-bit floats.
    F16,
    /// Batches of few rows: 8-bit integers with a scale for each 32 elements, where they meet quantised
    /// weights on a GPU. Batches of many rows: as [`Activations::F16`].
    Int8,
}

impl FromStr for Activations {
    type Err = Error;

    /// `auto`, `f32`, `f16` or `int8`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Activations::Auto),
            "f32" => Ok(Activations::F32),
            "f16" => Ok(Activations::F16),
            "int8" => Ok(Activations::Int8),
            _ => Err(Error::InvalidArgument {
                name: "activations",
                message: format!("`{text}`, expected auto, f32, f16 or int8"),
            }),
        }
    }
}

/// What kind of hardware a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    /// The step's state behind the batch, where it keeps one.
    pub(crate) state: Option<&'a [f32]>,
}

/// Called after each step of an observed run. An error ends the run.
pub(crate) type Observer<'a> = dyn FnMut(&Observation<'_>) -> Result<()> + 'a;

/// What [`Activations`] come to on a device: what products, and attention, round their activations
/// to, by their rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rounding {
    /// At most this many rows become 8-bit integers where the weights are quantised; 0 for none.
    pub(crate) int8_rows: usize,
    /// More rows than this become 16-bit floats where the weights [fit](Rounding::fits_f16) too.
    pub(crate) f16_above: Option<usize>,
}

impl Rounding {
    /// Whether weights become 16-bit floats without leaving their range: the scales of MXFP4 have the range of F32.
    pub(crate) fn fits_f16(weight: WeightType) -> bool {
        !matches!(
            weight,
            WeightType::F32 | WeightType::BF16 | WeightType::MXFP4
        )
    }

    /// Whether attention of `n_rows` rows may be one of 16-bit floats.
    pub(crate) fn is_f16_attention(&self, n_rows: usize) -> bool {
        self.f16_above.is_some_and(|above| n_rows > above)
    }

    /// Whether a product of `n_rows` rows is one of 16-bit floats.
    pub(crate) fn is_f16(&self, weight: WeightType, n_rows: usize) -> bool {
        Rounding::fits_f16(weight) && self.f16_above.is_some_and(|above| n_rows > above)
    }
}

/// What the times of a profile were read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Clock {
    /// The GPU's, when a dispatch ended and the one before it had: a dispatch's time has in it what it
    /// waited, and the times of a batch add up to all of it.
    Dispatches,
    /// The GPU's, at both ends of a pass for each dispatch.
    Passes,
    /// The host's, from the end of a step to the end of the next.
    Host,
}

/// How long each dispatch of a batch took.
pub(crate) struct BatchTimes {
    pub(crate) clock: Clock,
    /// In the order of execution; without the overhead.
    pub(crate) dispatches: Vec<DispatchTime>,
    /// What reading the clock added to each time.
    pub(crate) overhead: Duration,
}

impl BatchTimes {
    /// Times that have in them what reading the clock took, of a batch that took `total` without.
    pub(crate) fn new(clock: Clock, mut dispatches: Vec<DispatchTime>, total: Duration) -> Self {
        let sum: Duration = dispatches.iter().map(|dispatch| dispatch.time).sum();
        let overhead = sum.saturating_sub(total) / dispatches.len().max(1) as u32;
        for dispatch in &mut dispatches {
            dispatch.time = dispatch.time.saturating_sub(overhead);
        }
        BatchTimes {
            clock,
            dispatches,
            overhead,
        }
    }
}

/// How long a dispatch took: a run of a kernel, or a step where a device has no kernels of its own.
pub(crate) struct DispatchTime {
    /// The step at whose turn it ran.
    pub(crate) step: usize,
    /// The steps whose results it wrote; none where it prepared the input of its step.
    pub(crate) writes: Vec<usize>,
    pub(crate) kernel: Option<&'static str>,
    pub(crate) time: Duration,
}

/// A model's weights on a device.
pub(crate) trait Backend: Send + Sync {
    /// The device.
    fn info(&self) -> &DeviceInfo;

    /// What its products with weights round their activations to.
    fn rounding(&self) -> Rounding {
        Rounding::default()
    }

    /// What was found to be fastest, where it was looked for.
    fn tuning(&self) -> Option<&TuningReport> {
        None
    }

    /// The most tokens that one batch should have here.
    fn preferred_rows(&self) -> usize;

    /// Bytes that a cache may take beside the weights; `None` where the device does not say.
    fn cache_budget_bytes(&self) -> Option<u64>;

    /// Compares, bit by bit, what it holds of some rows of a weight (runs of them, in order) with what
    /// the file gives. Neighbours of these rows may be compared too.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and [`Error::Gpu`] where it cannot be read back.
    fn compare_weight(&self, id: WeightId, runs: &[Range<usize>]) -> Result<Held>;

    /// Compares the tables of angles that it holds with new ones.
    ///
    /// # Errors
    /// As [`Backend::compare_weight`].
    fn compare_rope_tables(&self) -> Result<Held> {
        Ok(Held::Same { bytes: 0 })
    }

    /// What it and its executors hold; without the file.
    ///
    /// # Errors
    /// Those of a GPU that failed.
    fn memory(&self) -> Result<MemoryReport>;

    /// Makes room for one session: scratch buffers and a zeroed cache.
    fn executor(&self, plan: &Arc<Plan>, kv: &KvLayout) -> Result<Box<dyn Executor>>;
}

/// Runs the plan of one session. Coarse on purpose: called once for each batch.
pub(crate) trait Executor: Stepwise + Send {
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

    /// As [`Executor::run`], and says how long each dispatch took.
    fn profile(&mut self, batch: &Batch<'_>, logits: &mut Vec<f32>) -> Result<BatchTimes> {
        let mut dispatches = Vec::new();
        let mut started = Instant::now();
        let mut observer = |seen: &Observation<'_>| {
            dispatches.push(DispatchTime {
                step: seen.index,
                writes: vec![seen.index],
                kernel: None,
                time: started.elapsed(),
            });
            started = Instant::now();
            Ok(())
        };
        self.run(batch, logits, Some(&mut observer))?;
        Ok(BatchTimes {
            clock: Clock::Host,
            dispatches,
            overhead: Duration::ZERO,
        })
    }

    /// Has batches looked at as `sentinels` say, from now on; without this none is. Runs that are observed or
    /// profiled are not. What a batch without logits has wrong is an error of the next one with logits.
    fn watch(&mut self, sentinels: Sentinels);

    /// As [`Executor::run`], under a graphics debugger. False where none is attached.
    fn capture(&mut self, _batch: &Batch<'_>, _logits: &mut Vec<f32>) -> Result<bool> {
        Err(Error::Unsupported {
            kind: "capture on",
            name: "a device without a GPU".to_owned(),
            supported: "GPUs, in Xcode and RenderDoc".to_owned(),
        })
    }

    /// For devices that can choose tokens themselves.
    fn chain(&mut self) -> Option<&mut dyn TokenChain> {
        None
    }
}

/// So many tokens are queued on a device while the host reads the one before them.
pub(crate) const TOKENS_AHEAD: usize = 2;

/// Tokens that a device chooses by itself and runs, each from the logits of the one before.
pub(crate) trait TokenChain {
    /// Makes ready to choose behind the last batch, which gave the logits of its last token. Choices that
    /// were not read are forgotten. False where the device cannot choose as `sampling` says.
    fn start(&mut self, sampling: &PlainSampling) -> Result<bool>;

    /// Queues the choice of the token at `position` by a random number. It goes by the logits of the
    /// last batch at first, and then by those of the token queued before it, which runs for that.
    ///
    /// The caller lets no more than [`TOKENS_AHEAD`] + 1 wait to be read.
    fn queue(&mut self, position: usize, random: u32) -> Result<()>;

    /// Waits for the oldest choice that was not read.
    ///
    /// # Errors
    /// [`Error::WrongResult`] for logits, or results of layers, that cannot be right, [`Error::Gpu`].
    fn read(&mut self) -> Result<ChosenToken>;
}

/// A token that was chosen from logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChosenToken {
    pub(crate) token: u32,
    /// The largest of the logits, as an integer of the same order.
    pub(crate) largest_logit: u32,
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
    fn reading_the_clock_is_taken_off_every_time_alike() {
        let times = |times: &[u64], total| {
            let dispatch = |&time: &u64| DispatchTime {
                step: 0,
                writes: vec![0],
                kernel: None,
                time: Duration::from_micros(time),
            };
            let dispatches = times.iter().map(dispatch).collect();
            let times = BatchTimes::new(Clock::Passes, dispatches, Duration::from_micros(total));
            let micros = |time: Duration| time.as_micros();
            let rest: Vec<u128> = times.dispatches.iter().map(|d| micros(d.time)).collect();
            (micros(times.overhead), rest)
        };
        assert_eq!(times(&[8, 12, 40], 45), (5, vec![3, 7, 35]));
        assert_eq!(times(&[8, 12, 40], 70), (0, vec![8, 12, 40]));
        assert_eq!(times(&[1, 20], 11), (5, vec![0, 15]));
        assert_eq!(times(&[], 1), (0, vec![]));
    }

    #[test]
    fn activations_are_read_or_refused() {
        assert_eq!("f16".parse::<Activations>().unwrap(), Activations::F16);
        assert_eq!("int8".parse::<Activations>().unwrap(), Activations::Int8);
        assert_eq!("auto".parse::<Activations>().unwrap(), Activations::Auto);
        let error = "half".parse::<Activations>().unwrap_err().to_string();
        assert!(error.contains("expected auto, f32, f16 or int8"), "{error}");
    }

    #[test]
    fn device_refuses_unknown_words() {
        for text in ["", "gpus", "gpu:", "cpu:1", "Metal"] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains("expected auto, cpu"), "{error}");
        }
    }
}
