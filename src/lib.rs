//! Runs GGUF language models on any GPU through wgpu, and on the CPU; and proves on your machine that
//! the answers are right.
//!
//! ```no_run
//! let engine = trueshot::Engine::load("model.gguf")?; // the best GPU; the CPU where there is none
//! let mut session = engine.session()?;
//! for piece in session.generate("The capital of France is", &Default::default())? {
//!     print!("{}", piece?.text);
//! }
//! # Ok::<(), trueshot::Error>(())
//! ```
//!
//! # From a prompt to text
//!
//! [`Engine::builder`] opens a file ([`gguf`]), reads its [`model`] spec and weights, writes the forward
//! pass as a [`plan`] and puts the weights on a [`Device`]. [`Session::generate`] turns text into tokens
//! ([`tokenizer`]), runs them through the plan, keeps keys and values in the [`kv_cache`], chooses each
//! next token ([`sampler`]) and turns it back into text.
//!
//! An encoder has no sessions: [`Engine::embed`] and [`Embedder`] make vectors of texts.

/// The README's example is tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

// Test models are found and written by code that unit tests and integration tests share.
#[cfg(test)]
extern crate self as trueshot;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
#[cfg(test)]
#[path = "../tests/support/tiny.rs"]
mod tiny;

mod cache_file;
mod chat_template;
mod device;
mod diagnostics;
mod embedder;
mod engine;
mod error;
mod generation;
pub mod gguf;
mod kernels;
pub mod kv_cache;
pub mod model;
pub mod plan;
#[cfg(test)]
mod readme;
pub mod sampler;
mod session;
pub mod tokenizer;

pub use chat_template::{ChatOptions, ChatTemplate, Json, Message, ToolCall};
pub use device::wgpu::GpuFeatures;
#[doc(hidden)]
pub use device::wgpu::measure;
pub use device::{
    Activations, AllocatorMemory, Clock, Device, DeviceInfo, DeviceKind, GpuChoice, HeldDifference,
    MemoryReport, Sentinels, Tune, TuningChoice, TuningReport, TuningTrial, gpus,
};
pub use diagnostics::compare;
pub use diagnostics::{
    Adapter, BisectReport, BlockScale, Check, Checked, Culprit, Depth, DiffOptions, Divergence,
    FeatureReport, FeatureTrial, FileReport, Finding, Input, Outcome, Phase, Problem, Profile,
    ProfiledDispatch, TensorDiff, TensorFault, TensorReport, Trace, TraceDiff, TraceEntry,
    TraceFinding, TraceOptions, TrialOutcome, UploadReport, VerifyOptions, VerifyReport,
    find_feature,
};
pub use embedder::{EmbedOptions, Embedder};
pub use engine::{Engine, EngineBuilder, Progress};
pub use error::{Error, Result};
pub use generation::{Completion, FinishReason, GenerateOptions, GenerateStats, Generation, Piece};
pub use kv_cache::KvType;
pub use model::{Pooling, WeightStorage};
pub use sampler::SamplingOptions;
pub use session::{Intermediate, Session};
pub use tokenizer::Tokenizer;
