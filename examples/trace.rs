//! Show what the steps of a model compute: `cargo run --release --example trace -- --names Qcur,attn_weights`.

mod support;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use support::{Result, options};
use trueshot::{DiffOptions, Trace, TraceOptions};

const ABOUT: &str = "\
trace: what the steps of a model compute for a prompt, and where two such traces part

usage: cargo run --release --example trace -- [OPTIONS] [--json > FILE]
       cargo run --release --example trace -- --diff FILE FILE

With --diff it exits with 1 where the traces differ, and names the first tensor that does. The
second file may be a reference's.

  --names GLOBS      tensors, as `blk.3.attn_norm,*cur,attn_weights`; a name without a layer is that
                     of every layer [all but attn_weights]
  --layers LIST      layers, as `0,3-5` [all]
  --positions LIST   positions of tokens, as `0,3-5` [all]
  --values N         so many values of the last position [8]
  --whole            all values
  --batch N          at most so many tokens at once; 1 runs them as an answer does [the device's]
  --json             a line of JSON for each tensor, which --diff reads
  --diff FILE FILE   compares two traces
  --tolerance X      errors that are none, as a share of the root mean square [1e-3]
";

fn main() -> ExitCode {
    support::run(trace)
}

fn trace() -> Result {
    let mut trace = TraceOptions::default();
    let mut diff = DiffOptions::default();
    let (mut json, mut files) = (false, None);
    let options = options::Options::parse(ABOUT, |name, parser| {
        match name {
            "names" => {
                let globs: String = options::value(name, parser)?;
                trace.names.extend(globs.split(',').map(str::to_owned));
            }
            "layers" => trace.layers.extend(options::value::<List>(name, parser)?.0),
            "positions" => trace
                .positions
                .extend(options::value::<List>(name, parser)?.0),
            "values" => trace.first_values = options::value(name, parser)?,
            "whole" => trace.whole = true,
            "batch" => trace.batch_tokens = Some(options::value(name, parser)?),
            "json" => json = true,
            "diff" => files = Some([parser.value()?, parser.value()?].map(PathBuf::from)),
            "tolerance" => diff.tolerance = options::value(name, parser)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let mut out = BufWriter::new(io::stdout().lock());
    if let Some([first, second]) = files {
        let diff = Trace::read(first)?.diff(&Trace::read(second)?, &diff);
        writeln!(out, "{diff}")?;
        out.flush()?;
        return match diff.agrees() {
            true => Ok(()),
            false => Err("the traces differ".into()),
        };
    }
    let engine = options.load()?;
    let prompt = options
        .prompt
        .as_deref()
        .unwrap_or("The capital of France is");
    let tokens = engine.tokenizer().encode_prompt(prompt, &[], true)?;
    let trace = engine.session()?.trace(&tokens, &trace)?;
    if json {
        trace.write_jsonl(&mut out)?;
    } else {
        write!(out, "{trace}")?;
    }
    Ok(out.flush()?)
}

/// Numbers and ranges of them, both ends included.
struct List(Vec<usize>);

impl std::str::FromStr for List {
    type Err = String;

    fn from_str(text: &str) -> Result<List, String> {
        let mut numbers = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.parse::<usize>(), last.parse::<usize>()) {
                (Ok(first), Ok(last)) if first <= last && last < 1 << 24 => {
                    numbers.extend(first..=last);
                }
                _ => return Err(format!("`{part}`, expected a number or a range as in 3-5")),
            }
        }
        Ok(List(numbers))
    }
}
