//! The options that all examples take, and the engine they ask for.

use super::{Result, model, synthetic};
use lexopt::{Arg, Parser, ValueExt};
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use trueshot::gguf::Gguf;
use trueshot::{
    Activations, Device, Engine, EngineBuilder, GenerateOptions, KvType, Progress, Sentinels, Tune,
    WeightStorage,
};

const HELP: &str = "\
Options of every example:
  --model MODEL      path of a GGUF file; `smollm2` (the default) or `gemma-3-270m`, fetched once;
                     or random weights as `synthetic:SHAPE:TYPE`, e.g. `synthetic:llama3-8b:q4_0`
  --device DEVICE    auto, cpu, gpu, gpu:INDEX, gpu:NAME or reference [auto]
  --threads N        threads of the CPU device [one a core]
  --context N        tokens that a session holds [the model's, at most 8192 and what fits]
  --first-layers N   that many layers of the model alone, to see where an answer goes wrong [all]
  --weights TYPE     native (as in the file), f16 or f32 [native]
  --lora FILE        adds an adapter of low rank to the weights; several add up
  --lora-scale X     how much of the adapters [1]
  --kv TYPE          the cache: f16 or f32 [f16; f32 of an encoder]
  --activations TYPE auto, f32, f16 or int8: what products with weights take in [auto]
  --sentinels N      looks for values that cannot be right in every Nth token; `off` never does [32]
  --cache FOLDER     keeps compiled kernels for the next start; `none` for no such folder
                     [that of the user]
  --tune             measures anew what is fastest on the GPU; `--no-tune` goes by rules alone
                     [measured at first use, then kept in the cache folder]
  --prompt TEXT
  --max-tokens N     the longest answer [512]
  --temperature X    0 takes the most probable token [0.8]
  --top-k N          0 is off [40]
  --top-p X          1 is off [0.95]
  --min-p X          0 is off [0.05]
  --seed N           repeats an answer [drawn anew]
  --help

Answers go to stdout, all else to stderr. RUST_LOG sets what is logged, e.g. RUST_LOG=debug.
";

/// The options of a run.
pub struct Options {
    pub model: OsString,
    pub device: Device,
    pub threads: Option<usize>,
    pub context: Option<usize>,
    pub layers: Option<usize>,
    pub weights: WeightStorage,
    pub loras: Vec<PathBuf>,
    pub lora_scale: f32,
    pub kv: Option<KvType>,
    pub activations: Activations,
    pub sentinels: Option<Sentinels>,
    pub cache: Option<PathBuf>,
    pub tune: Tune,
    pub prompt: Option<String>,
    pub generate: GenerateOptions,
}

impl Options {
    /// Reads the command line. `about` is the head of the help; `own` takes the options that only
    /// this example has, and says whether it knows one.
    pub fn parse(
        about: &str,
        mut own: impl FnMut(&str, &mut Parser) -> Result<bool, lexopt::Error>,
    ) -> Result<Options> {
        let mut options = Options {
            model: model::SMOLLM2.name.into(),
            device: Device::Auto,
            threads: None,
            context: None,
            layers: None,
            weights: WeightStorage::Native,
            loras: Vec::new(),
            lora_scale: 1.0,
            kv: None,
            activations: Activations::Auto,
            sentinels: None,
            cache: None,
            tune: Tune::Auto,
            prompt: None,
            generate: GenerateOptions::default(),
        };
        let mut parser = Parser::from_env();
        while let Some(arg) = parser.next()? {
            let name = match arg {
                Arg::Long(name) => name.to_owned(),
                Arg::Short('h') => "help".to_owned(),
                other => return Err(other.unexpected().into()),
            };
            if name == "help" {
                write!(io::stdout(), "{about}\n{HELP}")?;
                std::process::exit(0);
            }
            if !options.take(&name, &mut parser)? && !own(&name, &mut parser)? {
                return Err(lexopt::Error::UnexpectedOption(format!("--{name}")).into());
            }
        }
        Ok(options)
    }

    fn take(&mut self, name: &str, parser: &mut Parser) -> Result<bool, lexopt::Error> {
        let sampling = &mut self.generate.sampling;
        match name {
            "model" => self.model = parser.value()?,
            "device" => self.device = value(name, parser)?,
            "threads" => self.threads = Some(value(name, parser)?),
            "context" => self.context = Some(value(name, parser)?),
            "first-layers" => self.layers = Some(value(name, parser)?),
            "weights" => {
                let types = [
                    ("native", WeightStorage::Native),
                    ("f16", WeightStorage::F16),
                    ("f32", WeightStorage::F32),
                ];
                self.weights = choice(name, parser, &types)?;
            }
            "lora" => self.loras.push(parser.value()?.into()),
            "lora-scale" => self.lora_scale = value(name, parser)?,
            "kv" => {
                let types = [("f16", KvType::F16), ("f32", KvType::F32)];
                self.kv = Some(choice(name, parser, &types)?);
            }
            "activations" => self.activations = value(name, parser)?,
            "sentinels" => self.sentinels = Some(value(name, parser)?),
            "cache" => self.cache = Some(parser.value()?.into()),
            "tune" => self.tune = Tune::Again,
            "no-tune" => self.tune = Tune::Off,
            "prompt" => self.prompt = Some(parser.value()?.string()?),
            "max-tokens" => self.generate.max_tokens = value(name, parser)?,
            "temperature" => sampling.temperature = value(name, parser)?,
            "top-k" => sampling.top_k = value(name, parser)?,
            "top-p" => sampling.top_p = value(name, parser)?,
            "min-p" => sampling.min_p = value(name, parser)?,
            "seed" => sampling.seed = Some(value(name, parser)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The model file with a short name for it.
    pub fn open(&self) -> Result<(String, Gguf)> {
        let name = self.model.to_str().unwrap_or_default();
        if let Some(recipe) = name.strip_prefix("synthetic:") {
            return Ok((recipe.to_owned(), synthetic::gguf(recipe)?));
        }
        let path = match model::ALL.iter().find(|model| model.name == name) {
            Some(model) => model.path()?,
            None => PathBuf::from(&self.model),
        };
        let gguf = match Gguf::open(&path) {
            Ok(gguf) => gguf,
            Err(error) => return Err(FileError { path, error }.into()),
        };
        let stem = path.file_stem().unwrap_or(path.as_os_str());
        Ok((stem.to_string_lossy().into_owned(), gguf))
    }

    /// The engine for an open file, with the load's progress on stderr.
    pub fn build(&self, gguf: Gguf) -> Result<Engine> {
        Ok(self.builder(gguf).build()?)
    }

    /// As [`Options::build`], before it is built.
    pub fn builder(&self, gguf: Gguf) -> EngineBuilder {
        let mut builder = Engine::builder_from(gguf)
            .device(self.device.clone())
            .weights(self.weights)
            .activations(self.activations)
            .tune(self.tune)
            .progress(progress());
        if let Some(kv) = self.kv {
            builder = builder.kv(kv);
        }
        for path in &self.loras {
            builder = builder.lora(path, self.lora_scale);
        }
        if let Some(folder) = &self.cache {
            let folder = Some(folder.clone()).filter(|folder| folder != Path::new("none"));
            builder = builder.cache_folder(folder);
        }
        if let Some(sentinels) = self.sentinels {
            builder = builder.sentinels(sentinels);
        }
        if let Some(tokens) = self.context {
            builder = builder.context_length(tokens);
        }
        if let Some(n_threads) = self.threads {
            builder = builder.threads(n_threads);
        }
        if let Some(n_layer) = self.layers {
            builder = builder.layers(n_layer);
        }
        builder
    }

    /// The engine of the model asked for.
    pub fn load(&self) -> Result<Engine> {
        let (_, gguf) = self.open()?;
        self.build(gguf)
    }
}

/// The value of option `--name`.
pub fn value<T: FromStr<Err: Display>>(
    name: &str,
    parser: &mut Parser,
) -> Result<T, lexopt::Error> {
    let text = parser.value()?.string()?;
    text.parse()
        .map_err(|error| format!("`--{name} {text}`: {error}").into())
}

fn choice<T: Copy>(
    name: &str,
    parser: &mut Parser,
    choices: &[(&str, T)],
) -> Result<T, lexopt::Error> {
    let text = parser.value()?.string()?;
    match choices.iter().find(|(known, _)| *known == text) {
        Some((_, value)) => Ok(*value),
        None => {
            let known: Vec<&str> = choices.iter().map(|(known, _)| *known).collect();
            Err(format!("`--{name} {text}`: expected {}", known.join(", ")).into())
        }
    }
}

/// A model file that cannot be used, with its path.
#[derive(Debug)]
pub struct FileError {
    path: PathBuf,
    /// What is wrong with it.
    pub error: trueshot::Error,
}

impl Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.error {
            error @ trueshot::Error::Io { .. } => error.fmt(f),
            other => write!(f, "`{}`: {other}", self.path.display()),
        }
    }
}

impl std::error::Error for FileError {}

/// Draws the progress of a load: one line that changes on a terminal, a line a quarter elsewhere.
fn progress() -> impl FnMut(Progress) {
    let is_terminal = io::stderr().is_terminal();
    let mut shown = None;
    move |progress| {
        let percent = progress.done_bytes * 100 / progress.total_bytes.max(1);
        let percent = if is_terminal {
            percent
        } else {
            percent / 25 * 25
        };
        if shown.replace(percent) == Some(percent) {
            return;
        }
        let mib = progress.total_bytes >> 20;
        match (is_terminal, percent) {
            (true, 100) => eprint!("\r\x1b[K"),
            (true, _) => eprint!("\rloading {percent:3} % of {mib} MiB"),
            (false, _) => eprintln!("loading: {percent} % of {mib} MiB"),
        }
    }
}
