//! The judge of two traces: the first tensor in which they differ.

use super::compare::Pair;
use super::{Trace, TraceEntry};
use std::collections::{BTreeMap, BTreeSet};

/// How two traces are compared.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffOptions {
    /// The largest error that is none, as a share of the row's root mean square, or of the value itself
    /// where that is larger. 0 wants equal values.
    pub tolerance: f64,
}

impl Default for DiffOptions {
    fn default() -> Self {
        DiffOptions { tolerance: 1e-3 }
    }
}

/// How a tensor differs. `found` is what the first trace has, `expected` what the second has.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TraceFinding {
    /// A value differs by more than the bound, or is no number.
    Value {
        /// Position of its row.
        position: usize,
        /// Its place in the row.
        column: usize,
        /// In the first trace.
        found: f32,
        /// In the second.
        expected: f32,
        /// The largest difference allowed.
        bound: f64,
    },
    /// A statistic differs by more than the bound, or is no number.
    Statistic {
        /// `rms`, `min`, `max` or `mean`.
        what: &'static str,
        /// Of this position's row; `None` for that of the tensor.
        position: Option<usize>,
        /// In the first trace.
        found: f64,
        /// In the second.
        expected: f64,
        /// The largest difference allowed.
        bound: f64,
    },
    /// There are values that are not a number or infinite, in either trace.
    NotFinite {
        /// So many values that are not a number, in the first trace and in the second.
        n_nan: [u64; 2],
        /// So many infinite ones.
        n_infinite: [u64; 2],
    },
    /// The tensors have other shapes: those of a row where the rows may differ.
    Shape {
        /// In the first trace.
        found: Vec<usize>,
        /// In the second.
        expected: Vec<usize>,
    },
    /// The tensors have rows of other positions.
    Positions {
        /// In the first trace.
        found: Vec<usize>,
        /// In the second.
        expected: Vec<usize>,
    },
}

/// A tensor that both traces have.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorDiff {
    /// Its name.
    pub name: String,
    /// The largest error that could be seen, of values and statistics, measured as the tolerance is;
    /// NaN where something is no number.
    pub error: f64,
    /// What differs, at the first position where something does.
    pub finding: Option<TraceFinding>,
}

/// How two traces differ; made by [`Trace::diff`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TraceDiff {
    /// The tolerance it was made with.
    pub tolerance: f64,
    /// The first position at which other tokens ran, with both; [`None`] where all that ran in both
    /// were equal.
    pub tokens_differ: Option<(usize, u32, u32)>,
    /// The tensors that both have, in the first trace's order.
    pub tensors: Vec<TensorDiff>,
    /// Tensors that the second trace was asked for and lacks.
    pub only_in_first: Vec<String>,
    /// Tensors that the first trace was asked for and lacks.
    pub only_in_second: Vec<String>,
    /// Tensors of one trace that the other was not asked for.
    pub n_not_asked_for: usize,
}

impl TraceDiff {
    /// Whether something was compared, and nothing differs.
    pub fn agrees(&self) -> bool {
        self.tokens_differ.is_none()
            && self.first().is_none()
            && self.only_in_first.is_empty()
            && self.only_in_second.is_empty()
            && !self.tensors.is_empty()
    }

    /// The first tensor that differs.
    pub fn first(&self) -> Option<&TensorDiff> {
        self.tensors.iter().find(|tensor| tensor.finding.is_some())
    }

    /// The tensor with the largest error.
    pub fn largest(&self) -> Option<&TensorDiff> {
        self.tensors
            .iter()
            .max_by(|a, b| a.error.total_cmp(&b.error))
    }
}

impl Trace {
    /// Compares this trace with another, tensor by tensor: values where both have them, else first
    /// values and statistics.
    ///
    /// Where traces were asked for different names or positions, what both have is compared; a reference
    /// has what it has. What is not a number never agrees.
    pub fn diff(&self, other: &Trace, options: &DiffOptions) -> TraceDiff {
        let of_other: BTreeMap<&str, &TraceEntry> = other
            .entries
            .iter()
            .map(|entry| (entry.name.as_str(), entry))
            .collect();
        let of_self: BTreeSet<&str> = self
            .entries
            .iter()
            .map(|entry| entry.name.as_str())
            .collect();
        let must_have_equal_rows = self.has_every_position() && other.has_every_position();
        let mut diff = TraceDiff {
            tolerance: options.tolerance,
            tokens_differ: self.first_other_token(other),
            tensors: Vec::new(),
            only_in_first: Vec::new(),
            only_in_second: Vec::new(),
            n_not_asked_for: 0,
        };
        for entry in &self.entries {
            if let Some(expected) = of_other.get(entry.name.as_str()) {
                let pair = Pair::new(entry, expected, options.tolerance);
                diff.tensors.push(pair.compare(must_have_equal_rows));
            } else if other.was_asked_for(entry) {
                diff.only_in_first.push(entry.name.clone());
            } else {
                diff.n_not_asked_for += 1;
            }
        }
        let only_in_other = other
            .entries
            .iter()
            .filter(|entry| !of_self.contains(entry.name.as_str()));
        for entry in only_in_other {
            if self.was_asked_for(entry) {
                diff.only_in_second.push(entry.name.clone());
            } else {
                diff.n_not_asked_for += 1;
            }
        }
        diff
    }

    /// Whether some row of another trace's tensor ran and was asked for here.
    fn was_asked_for(&self, entry: &TraceEntry) -> bool {
        let Some(options) = &self.options else {
            return false;
        };
        let runs = self.position..self.position.saturating_add(self.tokens.len());
        let takes = |position| runs.contains(position) && options.takes_position(*position);
        options.takes(&entry.name) && entry.positions.iter().any(takes)
    }

    fn has_every_position(&self) -> bool {
        let options = self.options.as_ref();
        options.is_some_and(|options| options.positions.is_empty())
    }

    fn first_other_token(&self, other: &Trace) -> Option<(usize, u32, u32)> {
        let start = self.position.max(other.position);
        let tokens = |trace: &Trace| {
            let skipped = start - trace.position;
            trace
                .tokens
                .iter()
                .skip(skipped)
                .copied()
                .collect::<Vec<_>>()
        };
        let pairs = tokens(self).into_iter().zip(tokens(other)).enumerate();
        pairs
            .map(|(index, (found, expected))| (start + index, found, expected))
            .find(|(_, found, expected)| found != expected)
    }
}
