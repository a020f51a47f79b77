//! What a trace and the difference of two say to people.

use super::{TensorDiff, Trace, TraceDiff, TraceEntry, TraceFinding};
use std::fmt;

impl fmt::Display for Trace {
    /// A line for each tensor, and below it all values where they are there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trace {
            source,
            tokens,
            position,
            ..
        } = self;
        writeln!(
            f,
            "{source}: {} tokens from position {position} on",
            tokens.len()
        )?;
        let name_width = self.entries.iter().map(|entry| entry.name.len()).max();
        let shape_width = self.entries.iter().map(|entry| shape(entry).len()).max();
        let (names, shapes) = (name_width.unwrap_or(0), shape_width.unwrap_or(0));
        writeln!(
            f,
            "{:names$}  {:shapes$}  {:>10} {:>10} {:>10} {:>10} {:>7} {:>5} {:>5}  first values \
             of the last row",
            "tensor", "shape", "rms", "mean", "min", "max", "zero", "NaN", "inf"
        )?;
        for entry in &self.entries {
            let count = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
            writeln!(
                f,
                "{:names$}  {:shapes$}  {} {} {} {} {:>7} {:>5} {:>5} {}",
                entry.name,
                shape(entry),
                number(entry.rms),
                entry.mean.map_or(format!("{:>10}", "?"), number),
                number(entry.min.into()),
                number(entry.max.into()),
                count(entry.n_zero),
                count(entry.n_nan),
                count(entry.n_infinite),
                values(&entry.first_values)
            )?;
            for (row, position) in entry.positions.iter().enumerate() {
                if let Some(row) = entry.row(row) {
                    writeln!(f, "    position {position}:{}", values(row))?;
                }
            }
        }
        Ok(())
    }
}

fn shape(entry: &TraceEntry) -> String {
    let dimensions: Vec<String> = entry.shape.iter().map(usize::to_string).collect();
    dimensions.join("x")
}

/// Ten characters, four digits.
fn number(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 || (1e-3..1e5).contains(&size) {
        let places = 3 - (size.max(1.0).log10().floor() as usize).min(3);
        let places = if size < 1.0 { 5 } else { places };
        format!("{value:>10.places$}")
    } else if size.is_finite() {
        format!("{value:>10.3e}")
    } else {
        format!("{value:>10}")
    }
}

fn values(values: &[f32]) -> String {
    let texts = values.iter().map(|&value| number(value.into()));
    texts.map(|text| format!(" {text}")).collect()
}

impl fmt::Display for TraceDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TraceDiff {
            tolerance, tensors, ..
        } = self;
        let n_tensors = tensors.len();
        if let Some((position, found, expected)) = self.tokens_differ {
            writeln!(
                f,
                "DIFFERENT TOKENS: {found} at position {position}, the other has {expected}"
            )?;
        }
        match (self.first(), self.largest()) {
            (Some(first), _) => {
                let n_differ = tensors.iter().filter(|t| t.finding.is_some()).count();
                writeln!(f, "DIFFERS: first in {first}")?;
                write!(
                    f,
                    "{n_differ} of {n_tensors} tensors differ by more than {tolerance:e}"
                )?;
            }
            (None, Some(largest)) => write!(
                f,
                "{n_tensors} tensors agree within {tolerance:e}; largest error {:.1e}, in `{}`",
                largest.error, largest.name
            )?,
            (None, None) => write!(f, "NOTHING TO COMPARE: the traces have no tensor in common")?,
        }
        for (names, which) in [
            (&self.only_in_first, "first"),
            (&self.only_in_second, "second"),
        ] {
            if !names.is_empty() {
                write!(
                    f,
                    "\nONLY IN THE {}: {}",
                    which.to_uppercase(),
                    some_of(names)
                )?;
            }
        }
        if self.n_not_asked_for > 0 {
            let n = self.n_not_asked_for;
            write!(f, "\n{n} tensors of one trace the other was not asked for")?;
        }
        self.growth(f)
    }
}

impl TraceDiff {
    /// The tensors whose error is at least twice that of all before them.
    fn growth(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut largest = 0.0;
        let mut lines = Vec::new();
        for tensor in &self.tensors {
            if tensor.error > 2.0 * largest {
                largest = tensor.error;
                lines.push(format!("  {:.1e}  {}", tensor.error, tensor.name));
            }
        }
        if lines.len() > 1 {
            write!(f, "\nthe error grows:\n{}", lines.join("\n"))?;
        }
        Ok(())
    }
}

/// The first names of a list that may be long.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    let rest = names.len() - shown.len();
    let more = if rest > 0 {
        format!(" and {rest} more")
    } else {
        String::new()
    };
    shown.join(", ") + &more
}

impl fmt::Display for TensorDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: ", self.name)?;
        match &self.finding {
            Some(finding) => write!(f, "{finding}"),
            None => write!(f, "largest error {:.1e}", self.error),
        }
    }
}

impl fmt::Display for TraceFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TraceFinding::Value {
                position,
                column,
                found,
                expected,
                bound,
            } => write!(
                f,
                "position {position}, column {column} is {found:e}, the other has {expected:e} \
                 (off by {:.2e}, bound {bound:.2e})",
                (found - expected).abs()
            ),
            TraceFinding::Statistic {
                what,
                position,
                found,
                expected,
                bound,
            } => {
                if let Some(position) = position {
                    write!(f, "position {position}, ")?;
                }
                write!(
                    f,
                    "{what} is {found:e}, the other has {expected:e} (off by {:.2e}, bound \
                     {bound:.2e})",
                    (found - expected).abs()
                )
            }
            TraceFinding::NotFinite { n_nan, n_infinite } => write!(
                f,
                "{} values are not a number and {} infinite, in the other {} and {}",
                n_nan[0], n_infinite[0], n_nan[1], n_infinite[1]
            ),
            TraceFinding::Shape { found, expected } => {
                write!(f, "shape {found:?}, the other has {expected:?}")
            }
            TraceFinding::Positions { found, expected } => {
                write!(
                    f,
                    "rows at {}, the other's at {}",
                    span(found),
                    span(expected)
                )
            }
        }
    }
}

/// `0-4` for positions one after the other, else all of them.
fn span(positions: &[usize]) -> String {
    match positions {
        [first, .., last] if last.checked_sub(*first) == Some(positions.len() - 1) => {
            format!("positions {first}-{last}")
        }
        [one] => format!("position {one}"),
        _ => format!("positions {positions:?}"),
    }
}
