//! Weights that are no contiguous part of one tensor.

use super::weights::WeightId;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Where the elements of a weight lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum View {
    /// One behind the other in its tensor.
    #[default]
    Contiguous,
    /// In tensors of equal shape, by their indices, one behind the other.
    Stacked(Arc<[usize]>),
    /// A part of each head of a tensor `[n_head * rows, n_cols]`.
    Heads(Heads),
    /// Nowhere: all are one.
    Ones,
}

/// Rows of each head (or expert) of a tensor, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    /// Rows of a head in the tensor.
    pub(super) rows: usize,
    /// The first of those that are taken of a head.
    pub(super) first: usize,
    /// How many are taken.
    pub(super) taken: usize,
    /// Columns of the tensor.
    pub(super) n_cols: usize,
    /// Whether the rows of a head become columns.
    pub(super) transposed: bool,
}

/// Rows that lie one behind the other in a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Index of the tensor among those of its weight.
    pub(super) tensor: usize,
    pub(super) rows: Range<usize>,
}

impl View {
    /// Whether rows of the weight are rows of tensors.
    pub(super) fn has_rows(&self) -> bool {
        match self {
            View::Contiguous | View::Stacked(_) => true,
            View::Heads(heads) => !heads.transposed,
            View::Ones => false,
        }
    }

    /// Where some rows of a weight of `n_rows` lie, if they are [rows](View::has_rows) of tensors.
    pub(super) fn runs(&self, n_rows: usize, rows: Range<usize>) -> Vec<Run> {
        let (part, first_of) = match self {
            View::Contiguous | View::Ones => return vec![Run { tensor: 0, rows }],
            View::Stacked(tensors) => (n_rows / tensors.len().max(1), None),
            View::Heads(heads) => (heads.taken, Some(heads)),
        };
        let mut runs = Vec::new();
        let mut row = rows.start;
        while row < rows.end {
            let (index, within) = (row / part.max(1), row % part.max(1));
            let n = (part - within).min(rows.end - row).max(1);
            let (tensor, start) = match first_of {
                Some(heads) => (0, index * heads.rows + heads.first + within),
                None => (index, within),
            };
            runs.push(Run {
                tensor,
                rows: start..start + n,
            });
            row += n;
        }
        runs
    }
}

/// The most heads that are kept decoded.
const MAX_KEPT: usize = 16;

/// What was decoded of heads last: a transposed row has an element of each of a head's rows.
pub(super) type KeptHeads = Mutex<VecDeque<KeptHead>>;

#[derive(Debug)]
pub(super) struct KeptHead {
    of: (WeightId, usize),
    values: Arc<Vec<f32>>,
}

impl Heads {
    /// Shape of a head's part, `[n_rows, n_cols]`.
    pub(super) fn shape(&self) -> [usize; 2] {
        match self.transposed {
            true => [self.n_cols, self.taken],
            false => [self.taken, self.n_cols],
        }
    }

    /// The values of some rows of a weight whose heads are transposed. `decode` has those of rows of the tensor.
    pub(super) fn columns(
        &self,
        id: WeightId,
        kept: &KeptHeads,
        rows: Range<usize>,
        decode: impl Fn(Range<usize>, &mut [f32]),
        out: &mut [f32],
    ) {
        let [n_rows, n_cols] = self.shape();
        for (row, out) in rows.zip(out.chunks_exact_mut(n_cols)) {
            let (head, row) = (row / n_rows, row % n_rows);
            let first = head * self.rows + self.first;
            let head = self.decoded(id, kept, head, |out| decode(first..first + self.taken, out));
            let column = head.iter().skip(row).step_by(self.n_cols);
            out.iter_mut()
                .zip(column)
                .for_each(|(out, &value)| *out = value);
        }
    }

    fn decoded(
        &self,
        id: WeightId,
        kept: &KeptHeads,
        head: usize,
        decode: impl Fn(&mut [f32]),
    ) -> Arc<Vec<f32>> {
        let lock = || kept.lock().unwrap_or_else(PoisonError::into_inner);
        let of = (id, head);
        if let Some(found) = lock().iter().find(|kept| kept.of == of) {
            return found.values.clone();
        }
        let mut values = vec![0.0; self.taken * self.n_cols];
        decode(&mut values);
        let values = Arc::new(values);
        let mut kept = lock();
        kept.truncate(MAX_KEPT - 1);
        kept.push_front(KeptHead {
            of,
            values: values.clone(),
        });
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor of 2 heads of 3 rows with 4 columns, whose element is `10 * row + column`.
    fn decode(rows: Range<usize>, out: &mut [f32]) {
        let values = rows.flat_map(|row| (0..4).map(move |column| (10 * row + column) as f32));
        out.iter_mut()
            .zip(values)
            .for_each(|(out, value)| *out = value);
    }

    fn rows(heads: Heads, rows: Range<usize>) -> Vec<f32> {
        let kept = KeptHeads::default();
        let mut out = vec![f32::NAN; rows.len() * heads.shape()[1]];
        match heads.transposed {
            true => heads.columns(WeightId(0), &kept, rows, decode, &mut out),
            false => {
                let runs = View::Heads(heads).runs(2 * heads.taken, rows);
                let mut out = out.chunks_exact_mut(heads.shape()[1]);
                for row in runs.into_iter().flat_map(|run| run.rows) {
                    decode(row..row + 1, out.next().unwrap());
                }
            }
        }
        out
    }

    #[test]
    fn rows_of_stacked_tensors_lie_in_each_in_turn() {
        let view = View::Stacked(Arc::new([7, 3, 9]));
        let run = |tensor, rows| Run { tensor, rows };
        assert_eq!(view.runs(12, 5..7), [run(1, 1..3)]);
        assert_eq!(
            view.runs(12, 2..9),
            [run(0, 2..4), run(1, 0..4), run(2, 0..1)]
        );
        assert_eq!(view.runs(12, 4..4), []);
    }

    #[test]
    fn rows_of_heads_are_taken_and_turned() {
        let taken = Heads {
            rows: 3,
            first: 1,
            taken: 2,
            n_cols: 4,
            transposed: false,
        };
        assert_eq!(taken.shape(), [2, 4]);
        let expected = [20.0, 21.0, 22.0, 23.0, 40.0, 41.0, 42.0, 43.0];
        assert_eq!(rows(taken, 1..3), expected);
        let turned = Heads {
            transposed: true,
            ..taken
        };
        assert_eq!(turned.shape(), [4, 2]);
        assert_eq!(rows(turned, 3..6), [13.0, 23.0, 40.0, 50.0, 41.0, 51.0]);
    }

    #[test]
    fn heads_of_one_weight_are_not_those_of_another() {
        let heads = Heads {
            rows: 3,
            first: 0,
            taken: 3,
            n_cols: 4,
            transposed: true,
        };
        let kept = KeptHeads::default();
        for (id, factor) in [(0, 1.0), (1, 2.0), (0, 1.0)] {
            let decode = |rows: Range<usize>, out: &mut [f32]| {
                decode(rows, out);
                out.iter_mut().for_each(|value| *value *= factor);
            };
            let mut out = [0.0; 3];
            heads.columns(WeightId(id), &kept, 1..2, decode, &mut out);
            assert_eq!(out, [factor, 11.0 * factor, 21.0 * factor]);
        }
        for head in 0..2 * MAX_KEPT {
            let _ = heads.decoded(WeightId(2), &kept, head, |_| {});
        }
        assert_eq!(kept.lock().unwrap().len(), MAX_KEPT);
    }
}
