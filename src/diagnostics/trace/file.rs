//! A trace as JSONL: a line of what it is, and a line for each tensor. And the traces of other programs.

use super::{Trace, TraceEntry, TraceOptions};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

/// Of the format below.
const VERSION: u32 = 1;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    trueshot_trace: u32,
    source: String,
    tokens: Vec<u32>,
    position: usize,
    options: Option<TraceOptions>,
    n_tensors: usize,
}

/// What is read of a reference: llama.cpp's names, shapes innermost first.
#[derive(Deserialize)]
struct Reference {
    #[serde(default)]
    model: String,
    prompts: Vec<ReferencePrompt>,
    trace: ReferenceTrace,
}

#[derive(Deserialize)]
struct ReferencePrompt {
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
struct ReferenceTrace {
    prompt: usize,
    tensors: Vec<ReferenceTensor>,
}

#[derive(Deserialize)]
struct ReferenceTensor {
    name: String,
    ne: Vec<usize>,
    #[serde(with = "super::numbers")]
    rms: f64,
    #[serde(with = "super::numbers")]
    min: f32,
    #[serde(with = "super::numbers")]
    max: f32,
    #[serde(with = "super::numbers")]
    last_token_first8: Vec<f32>,
}

impl Trace {
    /// Writes the trace as JSONL. Values that are no numbers in JSON are the texts `NaN`, `inf` and
    /// `-inf`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_jsonl(&self, mut out: impl Write) -> io::Result<()> {
        let header = Header {
            trueshot_trace: VERSION,
            source: self.source.clone(),
            tokens: self.tokens.clone(),
            position: self.position,
            options: self.options.clone(),
            n_tensors: self.entries.len(),
        };
        serde_json::to_writer(&mut out, &header)?;
        writeln!(out)?;
        for entry in &self.entries {
            serde_json::to_writer(&mut out, entry)?;
            writeln!(out)?;
        }
        Ok(())
    }

    /// Reads a file that [`Trace::from_json`] takes.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`Trace::from_json`].
    pub fn read(path: impl AsRef<Path>) -> Result<Trace> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source: source.into(),
        })?;
        Trace::from_json(&text).map_err(|error| match error {
            Error::InvalidArgument { name, message } => Error::InvalidArgument {
                name,
                message: format!("`{}`: {message}", path.display()),
            },
            other => other,
        })
    }

    /// Reads what [`Trace::write_jsonl`] wrote, or the trace of a reference: an object with
    /// `prompts[i].tokens`, and `trace` with `prompt` and `tensors`, each with `name` (`attn_norm-3` is
    /// `blk.3.attn_norm`), `ne` (llama.cpp's shape, innermost first), `rms`, `min`, `max` and
    /// `last_token_first8`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the line that is neither.
    pub fn from_json(text: &str) -> Result<Trace> {
        let first = text.lines().next().unwrap_or_default();
        let trace = match serde_json::from_str::<Header>(first) {
            Ok(header) => read_jsonl(header, text)?,
            Err(_) => match serde_json::from_str::<Reference>(text) {
                Ok(reference) => reference.into_trace()?,
                Err(error) => {
                    return invalid(format!("neither a trace nor a reference's: {error}"));
                }
            },
        };
        let mut names = BTreeSet::new();
        for entry in &trace.entries {
            if let Some(what) = contradiction(entry) {
                return invalid(format!("tensor `{}`: {what}", entry.name));
            }
            if !names.insert(&entry.name) {
                return invalid(format!("tensor `{}` is there twice", entry.name));
            }
        }
        Ok(trace)
    }
}

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::InvalidArgument {
        name: "trace",
        message,
    })
}

fn read_jsonl(header: Header, text: &str) -> Result<Trace> {
    if header.trueshot_trace != VERSION {
        return invalid(format!(
            "version {}, expected {VERSION}",
            header.trueshot_trace
        ));
    }
    if header.position.checked_add(header.tokens.len()).is_none() {
        return invalid(format!(
            "position {} leaves no room for {} tokens",
            header.position,
            header.tokens.len()
        ));
    }
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate().skip(1) {
        match serde_json::from_str::<TraceEntry>(line) {
            Ok(entry) => entries.push(entry),
            Err(error) => return invalid(format!("line {}: {error}", index + 1)),
        }
    }
    if entries.len() != header.n_tensors {
        return invalid(format!(
            "{} tensors, expected {}",
            entries.len(),
            header.n_tensors
        ));
    }
    Ok(Trace {
        source: header.source,
        tokens: header.tokens,
        position: header.position,
        options: header.options,
        entries,
    })
}

/// Where what an entry says of its shape does not fit together.
fn contradiction(entry: &TraceEntry) -> Option<String> {
    let n_rows = entry.positions.len();
    let n_values = entry
        .shape
        .iter()
        .try_fold(1, |n: usize, &d| n.checked_mul(d));
    let unequal = |what: &str, found: usize, expected: Option<usize>| {
        let expected = expected.filter(|&expected| expected != found)?;
        Some(format!("{found} {what}, expected {expected}"))
    };
    if n_values.is_none() || n_rows == 0 || entry.shape.first() != Some(&n_rows) {
        return Some(format!("shape {:?} of {n_rows} rows", entry.shape));
    }
    if !entry.positions.is_sorted_by(|a, b| a < b) {
        return Some("its positions do not rise".to_owned());
    }
    let stated = entry.values.as_ref().and(n_values);
    let n_found = entry.values.as_ref().map_or(0, Vec::len);
    unequal("values", n_found, stated).or_else(|| {
        let n_found = entry.row_rms.len();
        unequal("rows", n_found, (n_found > 0).then_some(n_rows))
    })
}

impl Reference {
    fn into_trace(self) -> Result<Trace> {
        let ReferenceTrace { prompt, tensors } = self.trace;
        let Some(ReferencePrompt { tokens }) = self.prompts.into_iter().nth(prompt) else {
            return invalid(format!(
                "its trace is of prompt {prompt}, which is not there"
            ));
        };
        if tokens.is_empty() {
            return invalid(format!(
                "its trace is of prompt {prompt}, which has no tokens"
            ));
        }
        let entries = tensors
            .into_iter()
            .map(|tensor| tensor.into_entry(tokens.len()))
            .collect::<Result<_>>()?;
        Ok(Trace {
            source: self.model,
            tokens,
            position: 0,
            options: None,
            entries,
        })
    }
}

impl ReferenceTensor {
    /// The entry, of a prompt of `n_tokens`, at least one. Heads are dimensions of their own in
    /// llama.cpp, and the last layer keeps the last row alone from some tensor on.
    fn into_entry(self, n_tokens: usize) -> Result<TraceEntry> {
        let ne = |dimension: usize| self.ne.get(dimension).copied().unwrap_or(1);
        let n_rows = match (ne(1), ne(2)) {
            (_, n) if n == n_tokens => n,
            (n, 1) if n == n_tokens => n,
            (1, 1) => 1,
            _ => {
                let message = format!(
                    "tensor `{}`: shape {:?} for {n_tokens} tokens",
                    self.name, self.ne
                );
                return invalid(message);
            }
        };
        let n_values = self.ne.iter().try_fold(1, |n: usize, &d| n.checked_mul(d));
        let row_rms = if n_rows == 1 {
            vec![self.rms]
        } else {
            Vec::new()
        };
        Ok(TraceEntry {
            name: match self.name.rsplit_once('-') {
                Some((name, layer)) => format!("blk.{layer}.{name}"),
                None => self.name,
            },
            positions: (n_tokens - n_rows..n_tokens).collect(),
            shape: vec![n_rows, n_values.unwrap_or(0) / n_rows.max(1)],
            rms: self.rms,
            min: self.min,
            max: self.max,
            mean: None,
            n_zero: None,
            n_nan: None,
            n_infinite: None,
            row_rms,
            first_values: self.last_token_first8,
            values: None,
        })
    }
}
