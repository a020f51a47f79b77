//! How much a check looks at.

use serde::Serialize;
use std::ops::Range;

/// How much a verification looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depth {
    /// Some rows of every tensor, spread evenly, at most some 64 MiB of a model; kinds of steps on fewer inputs; the
    /// steps of the first, a middle and the last layer; sessions of few tokens.
    Quick,
    /// Everything.
    #[default]
    Full,
}

/// Bytes of all tensors that a quick check looks at, about.
const QUICK_BYTES: u64 = 64 << 20;
/// Runs of rows of a tensor that a quick check looks at.
const QUICK_RUNS: usize = 4;

impl Depth {
    /// The rows to look at, of a tensor of `n_rows` rows that is one of `n_tensors`: runs in order,
    /// apart from each other. The first and the last row are always among them.
    pub(super) fn rows(
        self,
        n_rows: usize,
        row_bytes: usize,
        n_tensors: usize,
    ) -> Vec<Range<usize>> {
        let bytes = (QUICK_BYTES / n_tensors.max(1) as u64) as usize / QUICK_RUNS;
        let run = (bytes / row_bytes.max(1)).max(1);
        if self == Depth::Full || run >= n_rows.div_ceil(QUICK_RUNS) {
            return std::iter::once(0..n_rows).collect();
        }
        let start = |index: usize| index * (n_rows - run) / (QUICK_RUNS - 1);
        (0..QUICK_RUNS)
            .map(|index| start(index)..start(index) + run)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_whole(runs: Vec<Range<usize>>, n_rows: usize) -> bool {
        matches!(&runs[..], [run] if *run == (0..n_rows))
    }

    #[test]
    fn quick_rows_are_few_and_reach_both_ends() {
        for (n_rows, row_bytes) in [(1, 10), (7, 1 << 20), (49152, 360), (128_256, 8192), (5, 1)] {
            let runs = Depth::Quick.rows(n_rows, row_bytes, 200);
            let n: usize = runs.iter().map(Range::len).sum();
            assert!(n * row_bytes <= (QUICK_BYTES as usize / 200).max(QUICK_RUNS * row_bytes));
            assert!(
                runs[0].start == 0 && runs[runs.len() - 1].end == n_rows,
                "{runs:?}"
            );
            assert!(runs.is_sorted_by(|a, b| a.end <= b.start), "{runs:?}");
            assert!(is_whole(Depth::Full.rows(n_rows, row_bytes, 200), n_rows));
        }
        assert!(is_whole(Depth::Quick.rows(1000, 100, 1), 1000));
        assert!(is_whole(Depth::Quick.rows(4, 1 << 30, 1), 4));
    }
}
