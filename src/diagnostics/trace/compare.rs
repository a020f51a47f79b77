//! The judge of one tensor in two traces.

use super::{TensorDiff, TraceEntry, TraceFinding};
use std::collections::BTreeMap;

/// A tensor of two traces, and what was found of it so far.
pub(super) struct Pair<'a> {
    found: &'a TraceEntry,
    expected: &'a TraceEntry,
    tolerance: f64,
    /// The rows that both have: their position, and their place in each.
    rows: Vec<(usize, usize, usize)>,
    error: f64,
    /// With the position; that of a whole tensor counts as behind all others.
    first: Option<(usize, TraceFinding)>,
}

impl<'a> Pair<'a> {
    pub(super) fn new(found: &'a TraceEntry, expected: &'a TraceEntry, tolerance: f64) -> Pair<'a> {
        let places: BTreeMap<usize, usize> = (expected.positions.iter().copied())
            .enumerate()
            .map(|(row, position)| (position, row))
            .collect();
        let rows = found.positions.iter().enumerate();
        Pair {
            found,
            expected,
            tolerance,
            rows: rows
                .filter_map(|(row, position)| Some((*position, row, *places.get(position)?)))
                .collect(),
            error: 0.0,
            first: None,
        }
    }

    /// What differs. With `must_have_equal_rows` rows that one alone has do.
    pub(super) fn compare(mut self, must_have_equal_rows: bool) -> TensorDiff {
        let (found, expected) = (self.found, self.expected);
        let has_equal_rows = found.positions == expected.positions;
        if found.shape.get(1..) != expected.shape.get(1..) {
            let (found, expected) = (found.shape.clone(), expected.shape.clone());
            return self.differs(TraceFinding::Shape { found, expected });
        }
        if self.rows.is_empty() || (must_have_equal_rows && !has_equal_rows) {
            let (found, expected) = (found.positions.clone(), expected.positions.clone());
            return self.differs(TraceFinding::Positions { found, expected });
        }
        self.values();
        self.first_values();
        self.row_statistics();
        if has_equal_rows {
            self.statistics();
        }
        self.not_finite();
        TensorDiff {
            name: found.name.clone(),
            error: self.error,
            finding: self.first.map(|(_, finding)| finding),
        }
    }

    fn differs(self, finding: TraceFinding) -> TensorDiff {
        TensorDiff {
            name: self.found.name.clone(),
            error: f64::NAN,
            finding: Some(finding),
        }
    }

    fn values(&mut self) {
        for (position, row, expected_row) in self.rows.clone() {
            let (found, expected) = (self.found.row(row), self.expected.row(expected_row));
            if let (Some(found), Some(expected)) = (found, expected) {
                self.row(position, found, expected, (row, expected_row));
            }
        }
    }

    /// Those of the last row, where it is the same one.
    fn first_values(&mut self) {
        let (last, expected_last) = (self.found.positions.last(), self.expected.positions.last());
        if let (Some(&position), true) = (last, last == expected_last) {
            let rows = (
                self.found.positions.len() - 1,
                self.expected.positions.len() - 1,
            );
            let (found, expected) = (&self.found.first_values, &self.expected.first_values);
            self.row(position, found, expected, rows);
        }
    }

    fn row(&mut self, position: usize, found: &[f32], expected: &[f32], rows: (usize, usize)) {
        let rms = *(self.expected.row_rms.get(rows.1))
            .or(self.found.row_rms.get(rows.0))
            .unwrap_or(&self.expected.rms);
        for (column, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let [f, e] = [found, expected].map(f64::from);
            if let Some(bound) = self.exceeds(f, e, rms) {
                let finding = TraceFinding::Value {
                    position,
                    column,
                    found,
                    expected,
                    bound,
                };
                self.keep(position, finding);
            }
        }
    }

    fn row_statistics(&mut self) {
        for (position, row, expected_row) in self.rows.clone() {
            let found = self.found.row_rms.get(row);
            let expected = self.expected.row_rms.get(expected_row);
            if let (Some(&found), Some(&expected)) = (found, expected) {
                self.statistic("rms", Some(position), [found, expected], expected);
            }
        }
    }

    fn statistics(&mut self) {
        let (found, expected) = (self.found, self.expected);
        let rms = expected.rms;
        self.statistic("rms", None, [found.rms, rms], rms);
        for (what, pair) in [
            ("min", [found.min, expected.min]),
            ("max", [found.max, expected.max]),
        ] {
            self.statistic(what, None, pair.map(f64::from), rms);
        }
        if let (Some(found), Some(expected)) = (found.mean, expected.mean) {
            self.statistic("mean", None, [found, expected], rms);
        }
    }

    fn statistic(
        &mut self,
        what: &'static str,
        position: Option<usize>,
        [found, expected]: [f64; 2],
        rms: f64,
    ) {
        if let Some(bound) = self.exceeds(found, expected, rms) {
            let finding = TraceFinding::Statistic {
                what,
                position,
                found,
                expected,
                bound,
            };
            self.keep(position.unwrap_or(usize::MAX), finding);
        }
    }

    /// The bound, where an error is above it.
    fn exceeds(&mut self, found: f64, expected: f64, rms: f64) -> Option<f64> {
        let size = rms.max(expected.abs());
        let difference = (found - expected).abs();
        let error = if difference == 0.0 {
            0.0
        } else {
            difference / size
        };
        if error.is_nan() {
            self.error = f64::NAN;
        } else if error > self.error {
            self.error = error;
        }
        let is_within = error <= self.tolerance && found.is_finite() && expected.is_finite();
        (!is_within).then_some(self.tolerance * size)
    }

    /// Keeps the finding of the first position; of several there the first.
    fn keep(&mut self, position: usize, finding: TraceFinding) {
        if self
            .first
            .as_ref()
            .is_none_or(|(first, _)| position < *first)
        {
            self.first = Some((position, finding));
        }
    }

    fn not_finite(&mut self) {
        let counts = |entry: &TraceEntry| {
            let count = |n: Option<u64>| n.unwrap_or(0);
            [count(entry.n_nan), count(entry.n_infinite)]
        };
        let ([n_nan, n_infinite], [expected_nan, expected_infinite]) =
            (counts(self.found), counts(self.expected));
        if n_nan + n_infinite + expected_nan + expected_infinite > 0 {
            self.error = f64::NAN;
            // Statistics without those values may differ too, and say less.
            if !matches!(self.first, Some((_, TraceFinding::Value { .. }))) {
                let finding = TraceFinding::NotFinite {
                    n_nan: [n_nan, expected_nan],
                    n_infinite: [n_infinite, expected_infinite],
                };
                self.first = Some((0, finding));
            }
        }
    }
}
