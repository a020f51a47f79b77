//! Experts that are chosen otherwise than by the reference because their scores are too near to each other for the
//! arithmetic of the step.

use crate::kernels::experts::scores;
use crate::plan::{ExpertGroups, Gating};

/// What rounding may change of a score and of a sum with it, as a share of their magnitudes: at least ten times what
/// sums and exponentials in f32 come to.
const ROUNDING: f64 = 4e-6;
/// Below this a device may take any score for zero: floats that are not normal, and sigmoids of less than -80.
const LEAST: f64 = 2e-35;

/// How experts are chosen by scores that are computed first; by logits alone nothing is rounded.
pub(super) struct Scored<'a> {
    pub(super) gating: Gating,
    /// `[n_expert]`.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) groups: Option<ExpertGroups>,
    pub(super) n_expert: usize,
    pub(super) n_chosen: usize,
}

/// A score with its bias, and what rounding may change of it.
#[derive(Clone, Copy)]
struct Value {
    value: f64,
    error: f64,
}

impl Value {
    /// Whether it may be found at least as large as another.
    fn may_reach(self, other: Value) -> bool {
        self.value + self.error >= other.value - other.error
    }
}

impl Scored<'_> {
    /// Whether the ids `found` `[n_rows, n_chosen]` are a right choice by `logits` `[n_rows, n_expert]`, but for what
    /// rounding explains: each is the best of those that are left, or so near to it that it may be found the best.
    pub(super) fn explains(&self, logits: &[f32], found: &[f32]) -> bool {
        let rows = logits.chunks_exact(self.n_expert);
        let found = found.chunks_exact(self.n_chosen);
        rows.len() == found.len()
            && rows
                .zip(found)
                .all(|(row, ids)| self.explains_row(row, ids))
    }

    fn explains_row(&self, logits: &[f32], found: &[f32]) -> bool {
        let ids: Vec<usize> = found.iter().map(|&id| id as usize).collect();
        let is_id = |(&id, &found): (&usize, &f32)| id < self.n_expert && id as f32 == found;
        if !ids.iter().zip(found).all(is_id) {
            return false;
        }
        let values: Vec<Value> = scores(self.gating, logits)
            .into_iter()
            .enumerate()
            .map(|(expert, score)| {
                let bias = self.bias.map_or(0.0, |bias| f64::from(bias[expert]));
                let value = score + bias;
                let error = ROUNDING * (score + value.abs()) + LEAST;
                Value { value, error }
            })
            .collect();
        if !values.iter().all(|value| value.value.is_finite()) {
            return false;
        }
        let Some(is_eligible) = self.eligible(&values, &ids) else {
            return false;
        };
        ids.iter().enumerate().all(|(place, &id)| {
            let before = &ids[..place];
            let is_left = |other: &usize| is_eligible[*other] && !before.contains(other);
            let mut left = (0..self.n_expert).filter(is_left);
            !before.contains(&id) && left.all(|other| values[id].may_reach(values[other]))
        })
    }

    /// The experts that a choice of `ids` competed with: those of groups that are used for certain, or that `ids` are
    /// of; `None` where `ids` are of a group that cannot be used.
    fn eligible(&self, values: &[Value], ids: &[usize]) -> Option<Vec<bool>> {
        let Some(ExpertGroups { n_group, n_used }) = self.groups else {
            return Some(vec![true; self.n_expert]);
        };
        let size = self.n_expert / n_group;
        let worth = |group: &[Value]| {
            let mut group = group.to_vec();
            group.sort_by(|a, b| b.value.total_cmp(&a.value));
            let best = group.iter().take(2);
            Value {
                value: best.clone().map(|value| value.value).sum(),
                error: 2.0 * best.map(|value| value.error).sum::<f64>(),
            }
        };
        let worths: Vec<Value> = values.chunks_exact(size).map(worth).collect();
        let others = |group: usize| (0..n_group).filter(move |&other| other != group);
        // Groups that are better whatever is rounded, and groups that may be.
        let n_better = |group: usize| {
            let is_better = |&other: &usize| !worths[group].may_reach(worths[other]);
            others(group).filter(is_better).count()
        };
        let n_perhaps_better = |group: usize| {
            let may_be = |&other: &usize| worths[other].may_reach(worths[group]);
            others(group).filter(may_be).count()
        };
        let is_chosen = |group: usize| ids.iter().any(|id| id / size == group);
        let chosen = || (0..n_group).filter(|&group| is_chosen(group));
        if chosen().count() > n_used || chosen().any(|group| n_better(group) >= n_used) {
            return None;
        }
        let is_used: Vec<bool> = (0..n_group)
            .map(|group| is_chosen(group) || n_perhaps_better(group) < n_used)
            .collect();
        Some((0..self.n_expert).map(|id| is_used[id / size]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explains(logits: &[f32], bias: &[f32], groups: Option<ExpertGroups>, found: &[f32]) -> bool {
        let scored = Scored {
            gating: Gating::Sigmoid,
            bias: Some(bias),
            groups,
            n_expert: bias.len(),
            n_chosen: found.len(),
        };
        scored.explains(logits, found)
    }

    #[test]
    fn near_ties_may_change_places_and_nothing_else_may() {
        // Scores of 1/2 and biases: 0.9, 0.9 and a little, 0.7, 0.1.
        let (logits, bias) = ([0.0; 4], [0.4, 0.400_000_1, 0.2, -0.4]);
        let found = |ids: [f32; 2]| explains(&logits, &bias, None, &ids);
        assert!(found([1.0, 0.0]) && found([0.0, 1.0]));
        // A wrong id that is no tie, one twice, one that there is not, and no number.
        let wrong = [
            [1.0, 2.0],
            [0.0, 2.0],
            [2.0, 1.0],
            [1.0, 1.0],
            [1.0, 4.0],
            [1.0, 0.5],
            [f32::NAN, 1.0],
        ];
        for ids in wrong {
            assert!(!found(ids), "{ids:?}");
        }
        // 1e-4 is no tie.
        let apart = [0.4, 0.4001, 0.2, -0.4];
        assert!(explains(&logits, &apart, None, &[1.0, 0.0]));
        assert!(!explains(&logits, &apart, None, &[0.0, 1.0]));
        // Every row counts.
        let rows = [logits, logits].concat();
        let of_rows = |ids: &[f32]| {
            let scored = Scored {
                gating: Gating::Sigmoid,
                bias: Some(&bias),
                groups: None,
                n_expert: 4,
                n_chosen: 2,
            };
            scored.explains(&rows, ids)
        };
        assert!(of_rows(&[1.0, 0.0, 0.0, 1.0]));
        assert!(!of_rows(&[1.0, 0.0, 0.0, 2.0]));
        assert!(!of_rows(&[1.0, 0.0]));
        assert!(!explains(&[f32::NAN; 4], &bias, None, &[1.0, 0.0]));
    }

    #[test]
    fn groups_that_are_worth_as_much_may_change_places_and_no_others() {
        let logits = [0.0; 6];
        let groups = |n_used| Some(ExpertGroups { n_group: 3, n_used });
        // Worth 0.9 + 0.6, the same but for a little, and 0.5 + 0.4.
        let bias = [0.4, 0.1, 0.1, 0.400_000_1, 0.0, -0.1];
        let found = |n_used, ids: [f32; 2]| explains(&logits, &bias, groups(n_used), &ids);
        assert!(found(1, [3.0, 2.0]) && found(1, [0.0, 1.0]));
        // Two groups where one is used, one that is worth less, and not the best of its group.
        assert!(!found(1, [3.0, 0.0]));
        assert!(!found(1, [4.0, 5.0]));
        assert!(!found(1, [1.0, 0.0]));
        assert!(found(2, [0.0, 3.0]) && found(2, [3.0, 0.0]));
        assert!(!found(2, [3.0, 4.0]));
    }
}
