//! The options of an engine, and its load.

use super::{Engine, Inner};
use crate::cache_file;
use crate::chat_template::ChatTemplate;
use crate::device::cpu::CpuBackend;
use crate::device::reference::ReferenceBackend;
use crate::device::wgpu::{Gpu, GpuBackend, GpuFeatures, TuneOptions};
use crate::device::{Activations, Backend, Device, Executor, Sentinels, Tune};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{DecoderModel, DecoderSpec, Lora, WeightStorage, decoder_plan};
use crate::plan::Plan;
use crate::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The context without a wish from the caller, where the model and the memory allow it.
const DEFAULT_CONTEXT_TOKENS: usize = 8192;
/// The same of an encoder, which runs a whole text as one batch.
const DEFAULT_TEXT_TOKENS: usize = 2048;
/// The most that such a batch may have: less than a dimension of a grid of workgroups counts.
const MAX_TEXT_TOKENS: usize = 1 << 15;
/// Below this a smaller context is no way out of a lack of memory.
const LEAST_CONTEXT_TOKENS: usize = 256;
/// Rows of logits that one batch may give: they are wide.
const MAX_OUTPUTS: usize = 64;

/// How far a load has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights on the device.
    pub done_bytes: u64,
    /// Bytes of all weights.
    pub total_bytes: u64,
}

/// Where the model comes from.
pub(super) enum Source {
    Path(PathBuf),
    Open(Gguf),
}

/// Options of an [`Engine`]; made by [`Engine::builder`].
pub struct EngineBuilder {
    source: Source,
    device: Device,
    gpu_features: GpuFeatures,
    context_length: Option<usize>,
    n_layer: Option<usize>,
    weights: WeightStorage,
    activations: Activations,
    kv: Option<KvType>,
    sentinels: Sentinels,
    threads: Option<usize>,
    cache_folder: Option<PathBuf>,
    tune: Tune,
    tuning_budget: Duration,
    chat_template: Option<String>,
    loras: Vec<(PathBuf, f32)>,
    #[cfg(test)]
    tampering: crate::device::wgpu::tampering::Tampering,
    progress: Box<dyn FnMut(Progress) + Send>,
}

impl EngineBuilder {
    pub(super) fn new(source: Source) -> Self {
        EngineBuilder {
            source,
            device: Device::default(),
            gpu_features: GpuFeatures::default(),
            context_length: None,
            n_layer: None,
            weights: WeightStorage::default(),
            activations: Activations::default(),
            kv: None,
            sentinels: Sentinels::default(),
            threads: None,
            cache_folder: cache_file::user_folder(),
            tune: Tune::default(),
            tuning_budget: TuneOptions::BUDGET,
            chat_template: None,
            loras: Vec::new(),
            #[cfg(test)]
            tampering: Default::default(),
            progress: Box::new(|_| ()),
        }
    }

    /// Where the model runs; [`Device::Auto`] without this.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Which optional GPU features may be used; all without this.
    pub fn gpu_features(mut self, features: GpuFeatures) -> Self {
        self.gpu_features = features;
        self
    }

    /// Tokens that a session can hold; the model's context, at most 8192 and what fits, without this. Of an encoder
    /// the tokens that a text may have; at most 2048 without this, and at most 32768.
    pub fn context_length(mut self, tokens: usize) -> Self {
        self.context_length = Some(tokens);
        self
    }

    /// Only the first `n_layer` layers, and the output behind them: to see where an answer goes wrong.
    pub fn layers(mut self, n_layer: usize) -> Self {
        self.n_layer = Some(n_layer);
        self
    }

    /// The type in which the device holds matrices; as in the file without this.
    pub fn weights(mut self, storage: WeightStorage) -> Self {
        self.weights = storage;
        self
    }

    /// What products with weights round their activations to; [`Activations::Auto`] without this.
    pub fn activations(mut self, activations: Activations) -> Self {
        self.activations = activations;
        self
    }

    /// The element type of the cache; without this 16-bit floats, and 32-bit ones for an encoder, whose cache holds
    /// one layer of one text.
    pub fn kv(mut self, ty: KvType) -> Self {
        self.kv = Some(ty);
        self
    }

    /// How often sessions look for results that cannot be right; every 32nd token without this.
    pub fn sentinels(mut self, sentinels: Sentinels) -> Self {
        self.sentinels = sentinels;
        self
    }

    /// Threads of the CPU device; one a core without this.
    pub fn threads(mut self, n_threads: usize) -> Self {
        self.threads = Some(n_threads);
        self
    }

    /// The folder that keeps compiled kernels for the next start, where the GPU's driver gives them out, and what
    /// [tuning](EngineBuilder::tune) found; `None` keeps none. `trueshot` in the user's folder of caches without this.
    pub fn cache_folder(mut self, folder: Option<PathBuf>) -> Self {
        self.cache_folder = folder;
        self
    }

    /// Whether a GPU is measured to find what is fastest on it; [`Tune::Auto`] without this, at first use.
    pub fn tune(mut self, tune: Tune) -> Self {
        self.tune = tune;
        self
    }

    /// The template that turns messages into a prompt, in Jinja; the file's own without this.
    pub fn chat_template(mut self, source: impl Into<String>) -> Self {
        self.chat_template = Some(source.into());
        self
    }

    /// Adds an adapter of low rank (LoRA) in a GGUF file to the weights at load: each matrix W that it has a pair for
    /// becomes W + `scale` * alpha / rank * B A, whose alpha and rank the file has. 1 is as strong as it was trained; 0
    /// leaves the weights as they are. Several adapters add up.
    ///
    /// Such a matrix is held in 16-bit floats, or in 32-bit ones where the file has them, BF16 or MXFP4, unless
    /// [`EngineBuilder::weights`] asks for a type: quantised again it would lose much of what was added. Where the
    /// logits are products with the embedding too, these stay as the file has them, and the embedding is held twice.
    pub fn lora(mut self, path: impl Into<PathBuf>, scale: f32) -> Self {
        self.loras.push((path.into(), scale));
        self
    }

    /// As long as tuning may take.
    #[cfg(test)]
    pub(crate) fn tuning_budget(mut self, budget: Duration) -> Self {
        self.tuning_budget = budget;
        self
    }

    /// Damages what runs on the GPU.
    #[cfg(test)]
    pub(crate) fn tamper(mut self, damage: crate::device::wgpu::tampering::Tampering) -> Self {
        self.tampering = damage;
        self.cache_folder = None;
        self
    }

    /// Called during the load, from its thread.
    pub fn progress(mut self, progress: impl FnMut(Progress) + Send + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Opens and checks the file, picks the device and puts the weights on it.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Gguf`] for a file that cannot be read or is damaged,
    /// [`Error::Unsupported`] and [`Error::InvalidModel`] for one that cannot run, [`Error::NoDevice`],
    /// [`Error::OutOfMemory`] and [`Error::Gpu`] for the device, [`Error::InvalidArgument`] for an
    /// option out of range, [`Error::ChatTemplate`] for a template of the caller's that is none. An adapter that is
    /// none, or for another model, is [`Error::InvalidModel`].
    pub fn build(self) -> Result<Engine> {
        let sentinels = self.sentinels.checked()?;
        let gguf = Arc::new(match self.source {
            Source::Path(path) => Gguf::open(path)?,
            Source::Open(gguf) => gguf,
        });
        // Either takes some tenths of a second.
        let (gpu, read) = rayon::join(
            || {
                open_gpu(
                    &self.device,
                    self.gpu_features,
                    self.cache_folder.as_deref(),
                )
            },
            || -> Result<_> {
                let loras = self.loras.iter().map(|(path, scale)| {
                    Lora::from_gguf(&Gguf::open(path)?, &path.display().to_string(), *scale)
                });
                let loras = loras.collect::<Result<_>>()?;
                let mut model = DecoderModel::with_loras(gguf.clone(), self.weights, loras)?;
                if let Some(n_layer) = self.n_layer {
                    model.keep_layers(n_layer)?;
                }
                let n_tokens = model.spec.vocab_size;
                Ok((model, Tokenizer::of_model(gguf.metadata(), n_tokens)?))
            },
        );
        let (mut model, tokenizer) = read?;
        if tokenizer.vocab_size() > model.spec.vocab_size {
            let message = format!(
                "the tokenizer has {} tokens, the embedding {} rows",
                tokenizer.vocab_size(),
                model.spec.vocab_size
            );
            return Err(Error::InvalidModel { message });
        }
        let chat_template = match &self.chat_template {
            Some(source) => Ok(Some(ChatTemplate::for_tokenizer(source, &tokenizer)?)),
            None => ChatTemplate::from_metadata(gguf.metadata(), &tokenizer),
        };
        let capacity = wanted_context(self.context_length, &model.spec)?;
        model.context_length = capacity;

        let mut progress = self.progress;
        let mut report = |done_bytes, total_bytes| {
            progress(Progress {
                done_bytes,
                total_bytes,
            })
        };
        let kv_layout = |spec: &DecoderSpec| KvLayout {
            layers: spec.kv_layers(),
            capacity,
            ty: match spec.pooling {
                None => self.kv.unwrap_or_default(),
                Some(_) => self.kv.unwrap_or(KvType::F32),
            },
        };
        let weights = model.weights.clone();
        let gpu = gpu?;
        #[cfg(test)]
        let gpu = gpu.map(|gpu| gpu.tampered(self.tampering));
        let started = Instant::now();
        let backend: Box<dyn Backend> = match (gpu, self.device) {
            (Some(gpu), _) => {
                let mut backend = GpuBackend::new(weights, gpu, self.activations, &mut report)?;
                // What is tuned is for tokens that follow each other.
                if self.tune != Tune::Off && model.spec.pooling.is_none() {
                    let max_rows = backend.preferred_rows().min(capacity).max(1);
                    let plan = decoder_plan(&model, max_rows, MAX_OUTPUTS.min(max_rows))?;
                    let kv = kv_layout(&model.spec);
                    let options = TuneOptions {
                        tune: self.tune,
                        folder: self.cache_folder.as_deref(),
                        may_float: self.activations == Activations::Auto,
                        budget: self.tuning_budget,
                    };
                    backend.tune(&plan, &kv, &options)?;
                }
                Box::new(backend)
            }
            (None, Device::Reference) => Box::new(ReferenceBackend::new(weights)),
            (None, _) => Box::new(CpuBackend::new(weights, self.threads, &mut report)?),
        };
        model.weights.check_merged()?;
        log::info!(
            "{} MiB of weights ready in {:.2} s",
            model.weights.stored_bytes() >> 20,
            started.elapsed().as_secs_f64()
        );
        let kv = kv_layout(&model.spec);
        let is_encoder = model.spec.pooling.is_some();
        // An encoder sees a text as a whole, and gives a row for each token.
        let (max_rows, max_outputs) = match is_encoder {
            true => (capacity, capacity),
            false => {
                let max_rows = backend.preferred_rows().min(capacity).max(1);
                (max_rows, MAX_OUTPUTS.min(max_rows))
            }
        };
        let int8_rows = backend.rounding().int8_rows;
        let plan_of = |model: &DecoderModel| -> Result<_> {
            let plan = decoder_plan(model, max_rows, max_outputs)?;
            Ok(Arc::new(
                plan.with_int8_activations(&model.weights, int8_rows),
            ))
        };
        let mut plan = plan_of(&model)?;
        // A batch has as many tokens as an encoder's context, which thus cannot shrink.
        let is_wish = self.context_length.is_some() || is_encoder;
        let (kv, mut executor) = fit_cache(backend.as_ref(), &plan, kv, is_wish)?;
        if model.shrink_context(kv.capacity) {
            // The angles of a shorter context are others.
            drop(executor);
            plan = plan_of(&model)?;
            executor = backend.executor(&plan, &kv)?;
        }
        log::info!(
            "{} on {}: context of {} tokens (model: {}, cache: {} MiB)",
            model.spec.name,
            backend.info().name,
            kv.capacity,
            model.spec.context_length,
            kv.total_bytes() >> 20
        );
        Ok(Engine {
            inner: Arc::new(Inner {
                gguf,
                model,
                tokenizer,
                chat_template,
                backend,
                plan,
                kv,
                sentinels,
                loras: self.loras,
                first_executor: Mutex::new(Some(executor)),
            }),
        })
    }
}

/// The GPU that a device means; `None` where it means none, or any and there is none.
fn open_gpu(
    device: &Device,
    features: GpuFeatures,
    cache_folder: Option<&Path>,
) -> Result<Option<Gpu>> {
    let gpu = match device {
        Device::Cpu | Device::Reference => None,
        Device::Gpu(choice) => Some(Gpu::new(choice, features)?),
        Device::Auto => Gpu::open_real(features),
    };
    match (gpu, cache_folder) {
        (Some(mut gpu), Some(folder)) => {
            gpu.keep_pipelines(folder)?;
            Ok(Some(gpu))
        }
        (gpu, _) => Ok(gpu),
    }
}

fn wanted_context(wish: Option<usize>, spec: &DecoderSpec) -> Result<usize> {
    let (default, most) = match spec.pooling {
        None => (DEFAULT_CONTEXT_TOKENS, u32::MAX as usize / 2),
        Some(_) => (DEFAULT_TEXT_TOKENS, MAX_TEXT_TOKENS),
    };
    let most = spec.n_positions.unwrap_or(most).min(most);
    match wish {
        None => Ok(spec.context_length.min(default).min(most)),
        Some(tokens) if (1..=most).contains(&tokens) => {
            if tokens > spec.context_length {
                log::warn!(
                    "a context of {tokens} tokens, but the model was trained for {}",
                    spec.context_length
                );
            }
            Ok(tokens)
        }
        Some(tokens) => Err(Error::InvalidArgument {
            name: "context_length",
            message: format!("{tokens}, expected 1 to {most}"),
        }),
    }
}

/// Makes the first session's executor; without a wish from the caller the context shrinks until it fits.
fn fit_cache(
    backend: &dyn Backend,
    plan: &Arc<Plan>,
    mut kv: KvLayout,
    is_wish: bool,
) -> Result<(KvLayout, Box<dyn Executor>)> {
    if let Some(budget) = backend.cache_budget_bytes() {
        let budget = budget.saturating_sub(plan.state_bytes());
        if !is_wish {
            let fits = budget / kv.bytes_per_position().max(1);
            let fits = usize::try_from(fits).unwrap_or(usize::MAX);
            kv.capacity = kv.capacity.min(fits.max(LEAST_CONTEXT_TOKENS));
        }
        if kv.total_bytes() > budget {
            return Err(Error::OutOfMemory {
                what: format!("a cache of {} tokens", kv.capacity),
                bytes: kv.total_bytes(),
                device: backend.info().name.clone(),
            });
        }
    }
    loop {
        match backend.executor(plan, &kv) {
            Err(Error::OutOfMemory { .. }) if !is_wish && kv.capacity > LEAST_CONTEXT_TOKENS => {
                kv.capacity = (kv.capacity / 2).max(LEAST_CONTEXT_TOKENS);
            }
            Err(error) => return Err(error),
            Ok(executor) => return Ok((kv, executor)),
        }
    }
}
