//! What the steps of a running model computed: statistics, first values, or all of it; written to a
//! file, read again, and compared until the first tensor that differs is found.

mod compare;
mod diff;
mod file;
mod numbers;
mod recorder;
mod report;
mod select;
mod statistics;
#[cfg(test)]
mod tests;

pub use diff::{DiffOptions, TensorDiff, TraceDiff, TraceFinding};
pub(crate) use recorder::Recorder;

use serde::{Deserialize, Serialize};

/// What [`Session::trace`](crate::Session::trace) records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceOptions {
    /// Globs (`*` any text, `?` one character), each for a whole name as in `blk.3.attn_norm` or for
    /// the name without its layer as in `attn_norm`. None: every step.
    ///
    /// A store to the cache has two tensors, e.g. `blk.3.kv_cache.keys` and `blk.3.kv_cache.values`.
    /// Attention has its result (`blk.3.kqv_out`) and its weights, `blk.3.attn_weights`, which are
    /// large and not recorded unless a glob matches them.
    pub names: Vec<String>,
    /// Layers; none: all of them, and the steps of no layer.
    pub layers: Vec<usize>,
    /// Positions of rows, counted from the start of the session; none: all.
    pub positions: Vec<usize>,
    /// So many values of each tensor's last row are kept.
    pub first_values: usize,
    /// Whether every value is kept.
    pub whole: bool,
    /// The most tokens in a batch: 1 runs them as an answer does. `None`: as many as the device takes.
    pub batch_tokens: Option<usize>,
}

impl Default for TraceOptions {
    fn default() -> Self {
        TraceOptions {
            names: Vec::new(),
            layers: Vec::new(),
            positions: Vec::new(),
            first_values: 8,
            whole: false,
            batch_tokens: None,
        }
    }
}

/// What a model's steps computed for some tokens; made by [`Session::trace`](crate::Session::trace).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Trace {
    /// Model and device, for people.
    pub source: String,
    /// The tokens that ran.
    pub tokens: Vec<u32>,
    /// The position of the first of them.
    pub position: usize,
    /// What was asked for; `None` for a reference that has what it has.
    pub options: Option<TraceOptions>,
    /// In the order of execution.
    pub entries: Vec<TraceEntry>,
}

/// One tensor of a [`Trace`]. Statistics are those of the finite values, summed in `f64`; they are
/// NaN where there are none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TraceEntry {
    /// The step's name, e.g. `blk.3.attn_norm`.
    pub name: String,
    /// The position of each row.
    pub positions: Vec<usize>,
    /// Outermost first, the rows at first: `[n_rows, width]`. Attention weights are
    /// `[n_rows, n_head, n_positions]`, and zero where a position is not visible.
    pub shape: Vec<usize>,
    /// Root of the mean square.
    #[serde(with = "numbers")]
    pub rms: f64,
    /// The smallest value.
    #[serde(with = "numbers")]
    pub min: f32,
    /// The largest value.
    #[serde(with = "numbers")]
    pub max: f32,
    /// The mean; `None` where a reference does not say.
    #[serde(with = "numbers")]
    pub mean: Option<f64>,
    /// Values that are zero; `None` where a reference does not say.
    pub n_zero: Option<u64>,
    /// Values that are not a number.
    pub n_nan: Option<u64>,
    /// Values that are infinite.
    pub n_infinite: Option<u64>,
    /// Root of the mean square of each row; empty where a reference does not say.
    #[serde(with = "numbers")]
    pub row_rms: Vec<f64>,
    /// The first values of the last row.
    #[serde(with = "numbers")]
    pub first_values: Vec<f32>,
    /// All values, of the shape stated, where they were asked for.
    #[serde(default, with = "numbers", skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<f32>>,
}

impl TraceEntry {
    /// Elements in a row.
    pub fn width(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// A row of all values, by its place in [`TraceEntry::positions`].
    fn row(&self, row: usize) -> Option<&[f32]> {
        let width = self.width();
        self.values.as_ref()?.chunks(width.max(1)).nth(row)
    }
}

impl Trace {
    /// The tensor of a name.
    pub fn entry(&self, name: &str) -> Option<&TraceEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}
