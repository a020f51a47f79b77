//! Measure speed: `cargo run --release --example bench -- --pp 512 --tg 128 --repeat 5`.

mod support;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use support::{Result, options};
use trueshot::gguf::{Gguf, TensorType};
use trueshot::{Engine, GenerateOptions, KvType, SamplingOptions, Session, Tune, WeightStorage};

const ABOUT: &str = "\
bench: tokens a second, one line a test

usage: cargo run --release --example bench -- [OPTIONS]

  --pp N             run a prompt of N tokens [512]; 0 leaves it out
  --tg N             generate and run N tokens [128]; 0 leaves it out
  --depth N          both behind N tokens, which are not counted [0]
  --sampled          choose them as the options say; without it each is the most probable one
  --repeat N         runs of each test, after one that does not count [5]
  --json             an object a line

With --tune what was tried and what it came to is written to stderr.
";

fn main() -> ExitCode {
    support::run(bench)
}

fn bench() -> Result {
    let (mut pp, mut tg, mut depth, mut repeat) = (512, 128, 0, 5);
    let (mut sampled, mut json) = (false, false);
    let mut options = options::Options::parse(ABOUT, |name, parser| {
        match name {
            "pp" => pp = options::value(name, parser)?,
            "tg" => tg = options::value(name, parser)?,
            "depth" => depth = options::value(name, parser)?,
            "repeat" => repeat = options::value(name, parser)?,
            "sampled" => sampled = true,
            "json" => json = true,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if repeat == 0 {
        return Err("`--repeat 0`: expected at least 1".into());
    }
    options.context = options.context.or(Some(depth + pp.max(tg + 2)));
    if !sampled {
        options.generate.sampling = SamplingOptions::greedy();
    }
    let (model, gguf) = options.open()?;
    let weight_type = match options.weights {
        WeightStorage::Native => main_type(&gguf).name(),
        WeightStorage::F16 => "f16",
        WeightStorage::F32 => "f32",
    };
    let kv = if options.kv.unwrap_or_default() == KvType::F16 {
        "f16"
    } else {
        "f32"
    };
    let engine = options.build(gguf)?;
    if let Some(tuning) = engine.tuning().filter(|_| options.tune == Tune::Again) {
        eprintln!("{tuning}");
    }
    let mut session = engine.session()?;

    let behind = prompt(&session, depth);
    if depth > 0 {
        session.eval(&behind)?;
    }
    let tests: [(&str, usize, Run); 2] = [("pp", pp, run_prompt), ("tg", tg, run_generation)];
    for (kind, n_tokens, run) in tests {
        if n_tokens == 0 {
            continue;
        }
        let mut run = || {
            session.rewind(depth)?;
            run(&mut session, n_tokens, &options.generate)
        };
        run()?;
        let times = (0..repeat).map(|_| run()).collect::<Result<Vec<_>>>()?;
        let line = Line {
            model: &model,
            weight_type,
            kv,
            test: match depth {
                0 => format!("{kind}{n_tokens}"),
                _ => format!("{kind}{n_tokens} @ {depth}"),
            },
            engine: &engine,
            speeds: Speeds::new(n_tokens, &times),
        };
        let text = if json { line.json() } else { line.text() };
        writeln!(io::stdout(), "{text}")?;
    }
    Ok(())
}

/// Runs that many tokens and says how long they took.
type Run = fn(&mut Session, usize, &GenerateOptions) -> Result<Duration>;

/// Tokens from all over the vocabulary.
fn prompt(session: &Session, n_tokens: usize) -> Vec<u32> {
    let vocab_size = session.engine().tokenizer().vocab_size();
    (0..n_tokens)
        .map(|i| (i * 7919 % vocab_size) as u32)
        .collect()
}

fn run_prompt(session: &mut Session, n_tokens: usize, _: &GenerateOptions) -> Result<Duration> {
    let tokens = prompt(session, n_tokens);
    let started = Instant::now();
    session.eval(&tokens)?;
    Ok(started.elapsed())
}

fn run_generation(
    session: &mut Session,
    n_tokens: usize,
    options: &GenerateOptions,
) -> Result<Duration> {
    let first = session.engine().tokenizer().bos().unwrap_or(0);
    let options = GenerateOptions {
        // The last token of an answer is not run.
        max_tokens: n_tokens + 1,
        ignore_eos: true,
        ..options.clone()
    };
    session.eval(&[first])?;
    let started = Instant::now();
    session.generate("", &options)?.complete()?;
    Ok(started.elapsed())
}

/// The type that most of the file's bytes have.
fn main_type(gguf: &Gguf) -> TensorType {
    let bytes_of = |ty| -> u64 {
        gguf.tensors()
            .iter()
            .filter(|tensor| tensor.ty == ty)
            .map(|tensor| tensor.n_bytes)
            .sum()
    };
    TensorType::ALL
        .into_iter()
        .max_by_key(|&ty| bytes_of(ty))
        .unwrap_or(TensorType::F32)
}

/// Tokens a second of several runs.
struct Speeds {
    median: f64,
    min: f64,
    max: f64,
    n_runs: usize,
}

impl Speeds {
    fn new(n_tokens: usize, times: &[Duration]) -> Speeds {
        let mut speeds: Vec<f64> = times
            .iter()
            .map(|time| n_tokens as f64 / time.as_secs_f64())
            .collect();
        speeds.sort_by(f64::total_cmp);
        let n_runs = speeds.len();
        Speeds {
            median: (speeds[(n_runs - 1) / 2] + speeds[n_runs / 2]) / 2.0,
            min: speeds[0],
            max: speeds[n_runs - 1],
            n_runs,
        }
    }
}

struct Line<'a> {
    model: &'a str,
    weight_type: &'a str,
    kv: &'a str,
    test: String,
    engine: &'a Engine,
    speeds: Speeds,
}

impl Line<'_> {
    fn text(&self) -> String {
        let device = self.engine.device_info();
        let threads = match device.n_threads {
            0 => String::new(),
            n => format!("  {n} threads"),
        };
        let speeds = &self.speeds;
        format!(
            "{}  {}  {}  {} ({}){threads}  {:.1} tokens/s ({:.1}..{:.1})",
            self.model,
            self.weight_type,
            self.test,
            device.name,
            device.backend,
            speeds.median,
            speeds.min,
            speeds.max,
        )
    }

    fn json(&self) -> String {
        let device = self.engine.device_info();
        serde_json::json!({
            "model": self.model,
            "weight_type": self.weight_type,
            "kv": self.kv,
            "test": self.test,
            "device": device.name,
            "backend": device.backend,
            "driver": device.driver,
            "threads": device.n_threads,
            "tokens_per_second": self.speeds.median,
            "tokens_per_second_min": self.speeds.min,
            "tokens_per_second_max": self.speeds.max,
            "repeat": self.speeds.n_runs,
        })
        .to_string()
    }
}
