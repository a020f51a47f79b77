//! The engine: a file and a device, made into a model that is ready to run.

mod builder;

pub use builder::{EngineBuilder, Progress};

use self::builder::Source;
use crate::chat_template::ChatTemplate;
use crate::device::{
    Backend, DeviceInfo, Executor, MemoryReport, Rounding, Sentinels, TuningReport,
};
use crate::diagnostics::{BisectReport, VerifyOptions, VerifyReport};
use crate::diagnostics::{bisect, logits_with_reference, verify};
use crate::embedder::{EmbedOptions, Embedder};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::kv_cache::KvLayout;
use crate::model::{DecoderModel, DecoderSpec, Weights, encoders};
use crate::plan::Plan;
use crate::session::Session;
use crate::tokenizer::Tokenizer;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

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
    /// Made at load to see that it fits; the first session takes it, or each [`Engine::embed`] in turn.
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
    /// [`Error::OutOfMemory`] where the device has no room for another cache, [`Error::Unsupported`] for an encoder,
    /// which has [`Engine::embedder`].
    pub fn session(&self) -> Result<Session> {
        if self.spec().pooling.is_some() {
            return Err(Error::Unsupported {
                kind: "generation by",
                name: self.spec().architecture.clone(),
                supported: "decoders; an encoder embeds texts, see `Engine::embed`".to_owned(),
            });
        }
        Ok(Session::new(self.clone(), self.new_executor()?))
    }

    /// What makes vectors of texts.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a decoder, which has [`Engine::session`], [`Error::OutOfMemory`] where the device has
    /// no room.
    pub fn embedder(&self) -> Result<Embedder> {
        if self.spec().pooling.is_none() {
            return Err(Error::Unsupported {
                kind: "embedding by",
                name: self.spec().architecture.clone(),
                supported: encoders().collect::<Vec<_>>().join(", "),
            });
        }
        Ok(Embedder::new(self.clone(), self.new_executor()?))
    }

    /// The vector of a text, `[hidden_size] f32` and of length 1, by an encoder: as [`Embedder::embed`] of an embedder
    /// that the engine keeps. A file without pooling gives one for each token, unless [`Engine::embed_with`] asks for some.
    ///
    /// ```no_run
    /// let vector = trueshot::Engine::load("bge-small-en-v1.5.gguf")?.embed("A cat sat on the mat.")?;
    /// # Ok::<(), trueshot::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::embedder`] and [`Embedder::embed`].
    pub fn embed(&self, text: &str) -> Result<Vec<f32>> {
        self.embed_with(text, &EmbedOptions::default())
    }

    /// As [`Engine::embed`], with options.
    ///
    /// # Errors
    /// As [`Engine::embed`].
    pub fn embed_with(&self, text: &str, options: &EmbedOptions) -> Result<Vec<f32>> {
        let mut embedder = self.embedder()?;
        let vector = embedder.embed_with(text, options);
        // The next one takes it up.
        self.first_executor()
            .get_or_insert(embedder.into_executor());
        vector
    }

    fn first_executor(&self) -> MutexGuard<'_, Option<Box<dyn Executor>>> {
        match self.inner.first_executor.lock() {
            Ok(first) => first,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// The executor that was made at load, or another.
    fn new_executor(&self) -> Result<Box<dyn Executor>> {
        let first = self.first_executor().take();
        let mut executor = match first {
            Some(executor) => executor,
            None => self.executor(&self.inner.kv)?,
        };
        executor.watch(self.inner.sentinels);
        Ok(executor)
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

    /// What was found to be fastest on the GPU, with what was tried; `None` where nobody has looked, as
    /// [`EngineBuilder::tune`] says.
    pub fn tuning(&self) -> Option<&TuningReport> {
        self.inner.backend.tuning()
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
