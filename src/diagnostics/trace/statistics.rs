//! A tensor's statistics, gathered row by row as batches run.

use super::TraceEntry;
use crate::error::{Error, Result};

/// Sums over the finite values.
#[derive(Clone, Copy, Default)]
struct Sums {
    n: u64,
    sum: f64,
    squares: f64,
}

impl Sums {
    fn add(&mut self, value: f64) {
        self.n += 1;
        self.sum += value;
        self.squares += value * value;
    }

    fn mean(&self) -> f64 {
        self.sum / self.n as f64
    }

    fn rms(&self) -> f64 {
        (self.squares / self.n as f64).sqrt()
    }
}

/// An entry that grows. The order of the sums is that of the values, so batches of any size give the
/// same bits.
pub(super) struct Growing {
    entry: TraceEntry,
    n_first: usize,
    sums: Sums,
    n_zero: u64,
    n_nan: u64,
    n_infinite: u64,
}

impl Growing {
    /// For rows of a shape, of which `n_first` values of the last are kept, or all of all rows.
    pub(super) fn new(name: String, row_shape: &[usize], n_first: usize, whole: bool) -> Growing {
        let shape = std::iter::once(0).chain(row_shape.iter().copied());
        Growing {
            entry: TraceEntry {
                name,
                positions: Vec::new(),
                shape: shape.collect(),
                rms: f64::NAN,
                min: f32::NAN,
                max: f32::NAN,
                mean: None,
                n_zero: None,
                n_nan: None,
                n_infinite: None,
                row_rms: Vec::new(),
                first_values: Vec::new(),
                values: whole.then(Vec::new),
            },
            n_first,
            sums: Sums::default(),
            n_zero: 0,
            n_nan: 0,
            n_infinite: 0,
        }
    }

    pub(super) fn width(&self) -> usize {
        self.entry.width()
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where all values are kept and there is no room for them.
    pub(super) fn push(&mut self, position: usize, row: &[f32]) -> Result<()> {
        let mut of_row = Sums::default();
        for &value in row {
            self.n_zero += u64::from(value == 0.0);
            self.n_nan += u64::from(value.is_nan());
            self.n_infinite += u64::from(value.is_infinite());
            if value.is_finite() {
                of_row.add(value.into());
                self.sums.add(value.into());
                // `min` and `max` pass over the NaN of the start.
                self.entry.min = self.entry.min.min(value);
                self.entry.max = self.entry.max.max(value);
            }
        }
        self.entry.positions.push(position);
        self.entry.row_rms.push(of_row.rms());
        self.entry.first_values.clear();
        let first = &row[..row.len().min(self.n_first)];
        self.entry.first_values.extend_from_slice(first);
        if let Some(values) = &mut self.entry.values {
            values
                .try_reserve(row.len())
                .map_err(|_| Error::OutOfMemory {
                    what: format!("all values of `{}`", self.entry.name),
                    bytes: (values.len() + row.len()) as u64 * 4,
                    device: "the host".to_owned(),
                })?;
            values.extend_from_slice(row);
        }
        Ok(())
    }

    /// The entry; `None` where no row came.
    pub(super) fn finish(mut self) -> Option<TraceEntry> {
        self.entry.shape[0] = self.entry.positions.len();
        self.entry.rms = self.sums.rms();
        self.entry.mean = Some(self.sums.mean());
        self.entry.n_zero = Some(self.n_zero);
        self.entry.n_nan = Some(self.n_nan);
        self.entry.n_infinite = Some(self.n_infinite);
        (self.entry.shape[0] > 0).then_some(self.entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(rows: &[&[f32]]) -> Option<TraceEntry> {
        let width = rows.first().map_or(0, |row| row.len());
        let mut growing = Growing::new("x".to_owned(), &[width], 2, true);
        for (row, values) in rows.iter().enumerate() {
            growing.push(row + 3, values).unwrap();
        }
        growing.finish()
    }

    #[test]
    fn statistics_are_those_of_the_finite_values() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let entry = entry(&[&[3.0, 0.0, nan, -0.0], &[-inf, -4.0, inf, nan]]).unwrap();
        assert_eq!(entry.shape, [2, 4]);
        assert_eq!(entry.positions, [3, 4]);
        assert_eq!(
            (entry.n_zero, entry.n_nan, entry.n_infinite),
            (Some(2), Some(2), Some(2))
        );
        assert_eq!((entry.min, entry.max), (-4.0, 3.0));
        assert_eq!(entry.mean, Some(-0.25));
        assert_eq!(entry.rms, 2.5);
        assert_eq!(entry.row_rms, [3.0f64.sqrt(), 4.0]);
        assert_eq!(entry.first_values, [-inf, -4.0]);
        assert_eq!(entry.values.unwrap().len(), 8);
    }

    #[test]
    fn statistics_are_not_numbers_where_no_value_is_finite() {
        let entry = entry(&[&[f32::NAN, f32::INFINITY]]).unwrap();
        let mean = entry.mean.unwrap();
        assert!(entry.min.is_nan() && entry.max.is_nan());
        assert!(entry.rms.is_nan() && mean.is_nan() && entry.row_rms[0].is_nan());
    }

    #[test]
    fn statistics_do_not_overflow() {
        let entry = entry(&[&[f32::MAX, -f32::MAX, f32::MIN_POSITIVE]]).unwrap();
        assert!((entry.rms / (f64::from(f32::MAX) * (2.0f64 / 3.0).sqrt()) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn tensor_without_rows_is_none() {
        assert!(entry(&[]).is_none());
    }
}
