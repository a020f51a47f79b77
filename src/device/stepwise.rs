//! Parts of a plan on values that the caller gives: what diagnostics are made of.

use super::Observer;
use crate::error::Result;
use crate::plan::{Batch, BufferId, Plan, StateId};
use std::ops::Range;

/// An executor whose steps can be run apart from each other.
pub(crate) trait Stepwise {
    /// The parts of the plan that can run by themselves in batches of as many rows, in order: all a part needs
    /// is in the plan's buffers, the cache and the states, and so is all that it gives. Kernels that compute several steps,
    /// or hand each other rounded values, make them one part.
    fn parts(&self, batch: &Batch<'_>) -> Vec<Range<usize>>;

    /// The numbers of rows from which on other kernels run than for fewer.
    fn turns(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Runs whole [parts](Stepwise::parts) of a batch and shows what each step has written.
    fn run_steps(
        &mut self,
        batch: &Batch<'_>,
        steps: Range<usize>,
        observer: &mut Observer<'_>,
    ) -> Result<()>;

    /// Replaces the first rows of a buffer by `rows`, `[n_rows, width] f32`.
    fn set_buffer(&mut self, id: BufferId, rows: &[f32]) -> Result<()>;

    /// The keys of a layer at the positions of `batch`, which ran before, as attention reads them, and then the
    /// values: `[n_rows, width]` each.
    fn cached_rows(&self, layer: usize, batch: &Batch<'_>) -> Result<Vec<f32>>;

    /// Replaces a state.
    fn set_state(&mut self, id: StateId, values: &[f32]) -> Result<()>;

    /// Replaces the rows of a layer's cache from `position` on: keys `[n_rows, width] f32`, then values likewise, which
    /// the cache's type can hold.
    fn set_cached_rows(&mut self, layer: usize, position: usize, rows: &[f32]) -> Result<()>;
}

/// Each step by itself.
pub(crate) fn every_step(plan: &Plan) -> Vec<Range<usize>> {
    (0..plan.steps.len()).map(|step| step..step + 1).collect()
}

/// The smallest ranges of `0..n_steps` that keep together what `joined` joins, each from its first step to its last.
pub(crate) fn joined_parts(
    n_steps: usize,
    joined: impl IntoIterator<Item = [usize; 2]>,
) -> Vec<Range<usize>> {
    let mut last: Vec<usize> = (0..n_steps).collect();
    for [first, end] in joined {
        last[first] = last[first].max(end);
    }
    let mut parts: Vec<Range<usize>> = Vec::new();
    for (step, &last) in last.iter().enumerate() {
        match parts.last_mut() {
            Some(part) if step < part.end => part.end = part.end.max(last + 1),
            _ => parts.push(step..last + 1),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_together_what_is_joined() {
        assert_eq!(joined_parts(2, []), [0..1, 1..2]);
        assert_eq!(joined_parts(5, [[1, 2], [2, 3]]), [0..1, 1..4, 4..5]);
        assert_eq!(joined_parts(5, [[0, 3], [1, 2]]), [0..4, 4..5]);
        assert_eq!(joined_parts(4, [[1, 3], [1, 1], [2, 2]]), [0..1, 1..4]);
        assert!(joined_parts(0, []).is_empty());
    }
}
