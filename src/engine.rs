//! The engine: a file and a device, made into a model that is ready to run.

use crate::cache_file;
use crate::chat_template::ChatTemplate;
use crate::device::cpu::CpuBackend;
use crate::device::reference::ReferenceBackend;
use crate::device::wgpu::{Gpu, GpuBackend, GpuFeatures};
use crate::device::{
    Activations, Backend, Device, DeviceInfo, Executor, MemoryReport, Rounding, Sentinels,
};
use crate::diagnostics::{BisectReport, VerifyOptions, VerifyReport};
use crate::diagnostics::{bisect, logits_with_reference, verify};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::kv_cache::{KvLayout, KvType};
use crate::model::{DecoderModel, DecoderSpec, Lora, WeightStorage, Weights, decoder_plan};
use crate::plan::Plan;
use crate::session::Session;
use crate::tokenizer::Tokenizer;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The context without a wish from the caller, where the model and the memory allow it.
const DEFAULT_CONTEXT_TOKENS: usize = 8192;
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

/// A model on a device. Clones share it; sessions made from it run apart from each other.
///
/// ```no_run
/// let engine = trueshot::Engine::load("model.gguf")?;
/// let mut session = engine.session()?;
/// for piece in session.generate("The capital of France is", &Default::default())? {
///     print!("{}", piece?.text);
/// }
/// # Ok::<(), trueshot::Error>(())
/// ```
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    gguf: Arc<Gguf>,
    model: DecoderModel,
    tokenizer: Tokenizer,
    /// A broken template is an error when it is used, not at load.
    chat_template: Result<Option<ChatTemplate>>,
    backend: Box<dyn Backend>,
    plan: Arc<Plan>,
    kv: KvLayout,
    sentinels: Sentinels,
    /// The adapters in the weights, and how strong each is.
    loras: Vec<(PathBuf, f32)>,
    /// Made at load to see that it fits; the first session takes it.
    first_executor: Mutex<Option<Box<dyn Executor>>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("model", &self.inner.model.spec.name)
            .field("device", &self.inner.backend.info().name)
            .field("context_length", &self.context_length())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Loads a model with every choice left to the engine.
    ///
    /// # Errors
    /// As [`EngineBuilder::build`].
    pub fn load(path: impl AsRef<Path>) -> Result<Engine> {
        Engine::builder(path).build()
    }

    /// Chooses device, context and types before loading.
    pub fn builder(path: impl AsRef<Path>) -> EngineBuilder {
        EngineBuilder::new(Source::Path(path.as_ref().to_owned()))
    }

    /// As [`Engine::builder`], from a file that is already open.
    pub fn builder_from(gguf: Gguf) -> EngineBuilder {
        EngineBuilder::new(Source::Open(gguf))
    }

    /// Starts an empty session with its own cache.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the device has no room for another cache.
    pub fn session(&self) -> Result<Session> {
        let mut first = match self.inner.first_executor.lock() {
            Ok(first) => first,
            Err(poisoned) => poisoned.into_inner(),
        };
        let mut executor = match first.take() {
            Some(executor) => executor,
            None => self
                .inner
                .backend
                .executor(&self.inner.plan, &self.inner.kv)?,
        };
        executor.watch(self.inner.sentinels);
        Ok(Session::new(self.clone(), executor))
    }

    /// Turns text into the model's tokens and back. Where the file has no tokenizer
    /// ([`Tokenizer::is_absent`]) text is an error, and [`Session::generate_tokens`] takes ids.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// The shape and constants of the model.
    pub fn spec(&self) -> &DecoderSpec {
        &self.inner.model.spec
    }

    /// The template that turns messages into a prompt.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] where the file has none, or one that cannot be parsed.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        let message = match &self.inner.chat_template {
            Ok(Some(template)) => return Ok(template),
            Ok(None) => "the file has none (key `tokenizer.chat_template`)".to_owned(),
            Err(Error::ChatTemplate { message }) => message.clone(),
            Err(error) => error.to_string(),
        };
        Err(Error::ChatTemplate { message })
    }

    /// The device that was chosen.
    pub fn device_info(&self) -> &DeviceInfo {
        self.inner.backend.info()
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.inner.gguf
    }

    /// The forward pass, step by step.
    pub fn plan(&self) -> &Plan {
        &self.inner.plan
    }

    /// The shape of each session's cache.
    pub fn kv_layout(&self) -> &KvLayout {
        &self.inner.kv
    }

    /// Tokens that a session can hold.
    pub fn context_length(&self) -> usize {
        self.inner.kv.capacity
    }

    /// Model and device in a few words.
    pub(crate) fn summary(&self) -> String {
        let (spec, info) = (self.spec(), self.device_info());
        let model = match spec.name.as_str() {
            "" => &spec.architecture,
            name => name,
        };
        format!("{model} on {} ({})", info.name, info.backend)
    }

    /// How often sessions look for results that cannot be right.
    pub fn sentinels(&self) -> Sentinels {
        self.inner.sentinels
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.inner.model.weights
    }

    /// Bytes of the weights as the device holds them.
    pub fn weight_bytes(&self) -> u64 {
        self.inner.model.weights.stored_bytes()
    }

    /// What the engine and all its sessions hold on the device now, by what it is for. A session's part is gone
    /// once it is dropped, but for the first: its room is made when the engine is.
    ///
    /// # Errors
    /// Those of a GPU that failed; it is waited for.
    pub fn memory(&self) -> Result<MemoryReport> {
        Ok(MemoryReport {
            file_bytes: self.inner.gguf.file_bytes(),
            ..self.inner.backend.memory()?
        })
    }

    /// Answers whether the engine is right, here, on this device, with this file: see [`Checked`] for what is
    /// looked at.
    ///
    /// What is wrong is in the report, not an error, and so is a device that fails.
    ///
    /// # Errors
    /// [`Error::Tokenizer`], [`Error::InvalidArgument`] for an empty prompt, [`Error::ContextFull`] for a context too
    /// short for one token and [`VerifyOptions::decode_tokens`].
    ///
    /// [`Checked`]: crate::Checked
    pub fn verify(&self, options: &VerifyOptions) -> Result<VerifyReport> {
        verify(self, options)
    }

    /// Finds the first steps that make the answer to the options' prompt wrong: runs it by the device and the
    /// reference together, and halves the steps that the device runs. For answers that are wrong although
    /// [`Engine::verify`] finds each step right, and as a second opinion.
    ///
    /// # Errors
    /// Those of the device and the tokenizer.
    pub fn bisect(&self, options: &VerifyOptions) -> Result<BisectReport> {
        bisect(self, options)
    }

    /// The logits of the last of `tokens`, run as one batch in an empty session, `[vocab_size] f32`, where the steps
    /// `on_reference` of the [plan](Engine::plan) run on the reference and the others on the device. Steps that the
    /// device computes together with one of them run on the reference too.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no tokens, more than one batch has, one beyond the vocabulary, or steps that the
    /// plan does not have; [`Error::ContextFull`]; those of the device.
    pub fn logits_with_reference(
        &self,
        tokens: &[u32],
        on_reference: Range<usize>,
    ) -> Result<Vec<f32>> {
        logits_with_reference(self, tokens, on_reference)
    }

    /// The adapters in the weights, and how strong each is.
    pub(crate) fn loras(&self) -> &[(PathBuf, f32)] {
        &self.inner.loras
    }

    /// What products with weights round their activations to.
    pub(crate) fn rounding(&self) -> Rounding {
        self.inner.backend.rounding()
    }

    /// Whether one batch can have so many tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`].
    pub(crate) fn check_batch(&self, tokens: &[u32]) -> Result<()> {
        let max_rows = self.plan().max_rows;
        if (1..=max_rows).contains(&tokens.len()) {
            return Ok(());
        }
        let message = format!("{} tokens, expected 1 to {max_rows}", tokens.len());
        Err(Error::InvalidArgument {
            name: "tokens",
            message,
        })
    }

    /// Whether the model has all of these tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first that it has not.
    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab_size = self.spec().vocab_size;
        match tokens.iter().find(|&&token| token as usize >= vocab_size) {
            None => Ok(()),
            Some(bad) => Err(Error::InvalidArgument {
                name: "tokens",
                message: format!("token {bad}, expected less than {vocab_size}"),
            }),
        }
    }

    /// Its clones, with those of sessions.
    pub(crate) fn n_users(&self) -> usize {
        Arc::strong_count(&self.inner)
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        self.inner.backend.as_ref()
    }

    pub(crate) fn plan_shared(&self) -> Arc<Plan> {
        self.inner.plan.clone()
    }

    /// Room for one run of the plan, with a cache of another size than a session's.
    pub(crate) fn executor(&self, kv: &KvLayout) -> Result<Box<dyn Executor>> {
        self.inner.backend.executor(&self.inner.plan, kv)
    }
}

enum Source {
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
    kv: KvType,
    sentinels: Sentinels,
    threads: Option<usize>,
    cache_folder: Option<PathBuf>,
    chat_template: Option<String>,
    loras: Vec<(PathBuf, f32)>,
    #[cfg(test)]
    tampering: crate::device::wgpu::tampering::Tampering,
    progress: Box<dyn FnMut(Progress) + Send>,
}

impl EngineBuilder {
    fn new(source: Source) -> Self {
        EngineBuilder {
            source,
            device: Device::default(),
            gpu_features: GpuFeatures::default(),
            context_length: None,
            n_layer: None,
            weights: WeightStorage::default(),
            activations: Activations::default(),
            kv: KvType::default(),
            sentinels: Sentinels::default(),
            threads: None,
            cache_folder: cache_file::user_folder(),
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

    /// Tokens that a session can hold; the model's context, at most 8192 and what fits, without this.
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

    /// The element type of the cache; 16-bit floats without this.
    pub fn kv(mut self, ty: KvType) -> Self {
        self.kv = ty;
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

    /// The folder that keeps compiled kernels for the next start, where the GPU's driver gives them out;
    /// `None` keeps none. `trueshot` in the user's folder of caches without this.
    pub fn cache_folder(mut self, folder: Option<PathBuf>) -> Self {
        self.cache_folder = folder;
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
        let weights = model.weights.clone();
        let gpu = gpu?;
        #[cfg(test)]
        let gpu = gpu.map(|gpu| gpu.tampered(self.tampering));
        let started = Instant::now();
        let backend: Box<dyn Backend> = match (gpu, self.device) {
            (Some(gpu), _) => Box::new(GpuBackend::new(
                weights,
                gpu,
                self.activations,
                &mut report,
            )?),
            (None, Device::Reference) => Box::new(ReferenceBackend::new(weights)),
            (None, _) => Box::new(CpuBackend::new(weights, self.threads, &mut report)?),
        };
        model.weights.check_merged()?;
        log::info!(
            "{} MiB of weights ready in {:.2} s",
            model.weights.stored_bytes() >> 20,
            started.elapsed().as_secs_f64()
        );
        let kv = KvLayout {
            layers: model.spec.kv_layers(),
            capacity,
            ty: self.kv,
        };
        let max_rows = backend.preferred_rows().min(capacity).max(1);
        let plan = decoder_plan(&model, max_rows, MAX_OUTPUTS.min(max_rows))?;
        let int8_rows = backend.rounding().int8_rows;
        let plan = Arc::new(plan.with_int8_activations(&model.weights, int8_rows));
        let is_wish = self.context_length.is_some();
        let (kv, mut executor) = fit_cache(backend.as_ref(), &plan, kv, is_wish)?;
        let plan = match model.shrink_context(kv.capacity) {
            false => plan,
            // The angles of a shorter context are others.
            true => {
                let plan = decoder_plan(&model, max_rows, MAX_OUTPUTS.min(max_rows))?;
                let plan = Arc::new(plan.with_int8_activations(&model.weights, int8_rows));
                drop(executor);
                executor = backend.executor(&plan, &kv)?;
                plan
            }
        };
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
    let most = spec.n_positions.unwrap_or(u32::MAX as usize / 2);
    match wish {
        None => Ok(spec.context_length.min(DEFAULT_CONTEXT_TOKENS).min(most)),
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
