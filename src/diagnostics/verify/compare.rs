//! The judge: rows of values against the reference's.

use super::divergence::Finding;
use crate::kernels::experts::LEAST_SUM;
use crate::plan::Op;

/// The error of one step, as a share of the row's root mean square, that its arithmetic explains.
/// At least ten times what was seen on lavapipe, an NVIDIA H200 and the CPU. Steps that only move,
/// add or round values are exact. `is_f16` says that a product or attention takes in 16-bit floats.
pub(super) fn tolerance(op: &Op, is_f16: bool) -> f32 {
    match op {
        Op::Add { .. }
        | Op::SelectOutputs { .. }
        | Op::StoreKv { .. }
        | Op::TakeColumns { .. }
        | Op::ChooseExperts { .. } => 0.0,
        // Decoding a block may fuse its multiplication and addition.
        Op::Embed { .. } => 2e-6,
        Op::RmsNorm { .. }
        | Op::LayerNorm { .. }
        | Op::GroupNorm { .. }
        | Op::Rope { .. }
        | Op::ExpertWeights { .. }
        | Op::WeighSlots { .. }
        | Op::WeightedSum { .. }
        | Op::GatedActivation { .. }
        | Op::Map { .. } => 2e-5,
        // Seen: 7e-3 on lavapipe, of SmolLM2 and Gemma 3.
        Op::MatMul { .. } | Op::ExpertMatMul { .. } if is_f16 => 3e-2,
        // Seen: 1.6e-2 on lavapipe, of SmolLM2, whose scores are large.
        Op::Attention { .. } if is_f16 => 6e-2,
        Op::MatMul { .. }
        | Op::ExpertMatMul { .. }
        | Op::HeadMatMul { .. }
        | Op::Attention { .. }
        | Op::CausalConv { .. }
        | Op::StateScan { .. }
        | Op::DeltaRule { .. } => 1e-4,
    }
}

/// What a comparison found: the first wrong row and column, and the largest share of its bound that an
/// error took.
pub(super) struct Outcome {
    pub(super) wrong: Option<(usize, usize, Finding)>,
    pub(super) share: f32,
}

/// Compares rows of `width` elements. An element may differ by `tolerance` of its row's root mean
/// square, or of itself where it is larger.
pub(super) fn compare(found: &[f32], expected: &[f32], width: usize, tolerance: f32) -> Outcome {
    compare_above(found, expected, width, tolerance, 0.0, |_| 0.0)
}

/// The error that a step may have besides its share of the row: what comes of numbers too small for a normal float,
/// which many GPUs take as zero. Weights of experts are such numbers divided by a sum.
pub(super) fn least_error(op: &Op) -> f32 {
    match *op {
        Op::ExpertWeights { scale, .. } => f32::MIN_POSITIVE / LEAST_SUM * scale.abs(),
        _ => 0.0,
    }
}

/// As [`compare`]; an element may also differ by `least_error`, and a row's root mean square counts as no less than
/// `least_size`, by its index.
pub(super) fn compare_above(
    found: &[f32],
    expected: &[f32],
    width: usize,
    tolerance: f32,
    least_error: f32,
    least_size: impl Fn(usize) -> f32,
) -> Outcome {
    let wrong = |index: usize, finding| Outcome {
        wrong: Some((index / width, index % width, finding)),
        share: 1.0,
    };
    if found.len() != expected.len() {
        let (found, expected) = (found.len(), expected.len());
        return wrong(0, Finding::Count { found, expected });
    }
    if let Some(index) = found.iter().position(|value| !value.is_finite()) {
        return wrong(
            index,
            Finding::NotFinite {
                found: found[index],
            },
        );
    }
    if let Some(index) = expected.iter().position(|value| !value.is_finite()) {
        return wrong(index, Finding::ReferenceNotFinite);
    }
    let mut share = 0.0f32;
    let rows = found.chunks(width).zip(expected.chunks(width));
    for (row, (found, expected)) in rows.enumerate() {
        let rms = rms(expected).max(least_size(row));
        for (column, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let bound = (tolerance * rms.max(expected.abs())).max(least_error);
            let error = (found - expected).abs();
            if !(error <= bound && bound.is_finite()) {
                let finding = Finding::Differs {
                    found,
                    expected,
                    bound,
                };
                return wrong(row * width + column, finding);
            }
            if error > 0.0 {
                share = share.max(error / bound);
            }
        }
    }
    Outcome { wrong: None, share }
}

pub(in crate::diagnostics) fn rms(values: &[f32]) -> f32 {
    let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
    (squares / values.len().max(1) as f64).sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(found: &[f32], expected: &[f32], tolerance: f32) -> Option<Finding> {
        compare(found, expected, 2, tolerance)
            .wrong
            .map(|(_, _, finding)| finding)
    }

    #[test]
    fn row_that_may_cancel_is_compared_by_the_least_size() {
        let differs = |least: f32| {
            let of_row = |row| match row {
                0 => 0.0,
                _ => least,
            };
            let outcome = compare_above(&[1.0, 1e-6], &[1.0, 2e-6], 1, 1e-3, 0.0, of_row);
            outcome.wrong.map(|(row, ..)| row)
        };
        assert_eq!([0.0, 1e-4, 2e-3].map(differs), [Some(1), Some(1), None]);
    }

    #[test]
    fn comparison_says_no_to_what_is_wrong_and_where() {
        let wrong = compare(&[1.0, 2.0, 3.0, 4.1], &[1.0, 2.0, 3.0, 4.0], 2, 1e-3).wrong;
        assert!(
            matches!(wrong, Some((1, 1, Finding::Differs { .. }))),
            "{wrong:?}"
        );
        assert!(matches!(
            finding(&[1.0, f32::NAN], &[1.0, f32::NAN], 1.0),
            Some(Finding::NotFinite { .. })
        ));
        assert_eq!(
            finding(&[1.0, 2.0], &[1.0, f32::INFINITY], 1.0),
            Some(Finding::ReferenceNotFinite)
        );
        assert!(matches!(
            finding(&[1.0], &[1.0, 2.0], 1.0),
            Some(Finding::Count { .. })
        ));
        // A bound that overflows judges nothing.
        assert!(finding(&[1.0, f32::MAX], &[1.0, f32::MAX], 1e30).is_some());
    }

    #[test]
    fn comparison_without_tolerance_wants_the_same_values() {
        assert_eq!(finding(&[1.0, -2.0], &[1.0, -2.0], 0.0), None);
        assert!(finding(&[1.0, 2.0], &[1.0, 2.000_000_2], 0.0).is_some());
    }

    #[test]
    fn what_is_too_small_for_a_device_may_differ_and_no_more() {
        let outcome = |found| compare_above(&[found, 0.0], &[2e-35, 0.0], 2, 2e-5, 1e-33, |_| 0.0);
        assert!(outcome(0.0).wrong.is_none());
        assert!(outcome(2e-33).wrong.is_some());
        let none = compare(&[0.0, 0.0], &[2e-35, 0.0], 2, 2e-5);
        assert!(none.wrong.is_some());
    }

    #[test]
    fn comparison_measures_the_share_of_the_bound() {
        let outcome = compare(&[1.0, 1.005], &[1.0, 1.0], 2, 1e-2);
        assert!(outcome.wrong.is_none() && (outcome.share - 0.5).abs() < 1e-3);
    }
}
