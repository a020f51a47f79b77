//! Telling whether a running model is right, and where it is not; and where its time goes.

mod bisect;
pub mod compare;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod faulty;
mod profile;
mod trace;
mod verify;

pub use bisect::{BisectReport, Culprit, FeatureReport, FeatureTrial, TrialOutcome, find_feature};
pub(crate) use bisect::{bisect, logits_with_reference};
pub use profile::{Profile, ProfiledDispatch};
pub(crate) use trace::Recorder;
pub use trace::{
    DiffOptions, TensorDiff, Trace, TraceDiff, TraceEntry, TraceFinding, TraceOptions,
};
#[cfg(test)]
pub(crate) use verify::check_upload;
pub(crate) use verify::verify;
pub use verify::{
    Adapter, BlockScale, Check, Checked, Depth, Divergence, FileReport, Finding, Input, Outcome,
    Phase, Problem, TensorFault, TensorReport, UploadReport, VerifyOptions, VerifyReport,
};

/// `|found - expected| / |expected|` of logits with their means taken off: a constant added to all of them changes
/// no probability.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let mean = |values: &[f32]| {
        values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64
    };
    let (mean_found, mean_expected) = (mean(found), mean(expected));
    let (mut error, mut norm) = (0.0, 0.0);
    for (&found, &expected) in found.iter().zip(expected) {
        let expected = f64::from(expected) - mean_expected;
        error += (f64::from(found) - mean_found - expected).powi(2);
        norm += expected.powi(2);
    }
    (error / norm).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_error_tells_other_logits_and_nan_from_rounding() {
        let expected = [0.5, -1.0, 2.0, 0.25];
        assert!(relative_error(&expected, &expected) == 0.0);
        let moved = expected.map(|logit| logit + 100.0);
        assert!(relative_error(&moved, &expected) < 1e-5);
        assert!(relative_error(&[2.0, 0.5, -1.0, 0.25], &expected) > 0.25);
        assert!(relative_error(&[0.0; 4], &expected) > 0.25);
        assert!(relative_error(&[f32::NAN; 4], &expected).is_nan());
    }
}
