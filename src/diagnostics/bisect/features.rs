//! Which optional feature of a GPU makes the difference.

use crate::device::wgpu::GpuFeatures;
use crate::diagnostics::verify::{VerifyOptions, VerifyReport};
use crate::engine::Engine;
use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt;

/// A verification without one of the features.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeatureTrial {
    /// The feature that was left out; `None` for none.
    pub without: Option<&'static str>,
    /// What verify said.
    pub report: VerifyReport,
}

/// What [`find_feature`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeatureReport {
    /// With all features, and then without each.
    pub trials: Vec<FeatureTrial>,
}

impl FeatureReport {
    /// The features without which all is right, where it is not with all of them.
    pub fn culprits(&self) -> Vec<&'static str> {
        let passes = |trial: &&FeatureTrial| trial.report.passed();
        if self.trials.first().is_none_or(|all| all.report.passed()) {
            return Vec::new();
        }
        self.trials
            .iter()
            .filter(passes)
            .filter_map(|trial| trial.without)
            .collect()
    }
}

impl fmt::Display for FeatureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for FeatureTrial { without, report } in &self.trials {
            let without =
                without.map_or("with all features".to_owned(), |f| format!("without {f}"));
            let outcome = match report.problems().next() {
                None => "right".to_owned(),
                Some((checked, problem)) => format!("WRONG ({checked}): {}", problem.message),
            };
            writeln!(f, "{without:<30} {outcome}")?;
        }
        match &self.culprits()[..] {
            [] if self.trials.first().is_some_and(|all| all.report.passed()) => {
                f.write_str("right: with all features")
            }
            [] => f.write_str("WRONG, and no single feature makes the difference"),
            culprits => write!(f, "WRONG: right without {}", culprits.join(", or without ")),
        }
    }
}

/// Verifies an engine with all optional features of its GPU and, where it is wrong, without each of them in turn.
///
/// # Errors
/// Those of `engine_with` and of [`Engine::verify`].
pub fn find_feature<E: From<Error>>(
    mut engine_with: impl FnMut(GpuFeatures) -> Result<Engine, E>,
    options: &VerifyOptions,
) -> Result<FeatureReport, E> {
    let mut trial = |without, features| -> Result<FeatureTrial, E> {
        let report = engine_with(features)?.verify(options)?;
        Ok(FeatureTrial { without, report })
    };
    let mut trials = vec![trial(None, GpuFeatures::default())?];
    if !trials[0].report.passed() {
        for (name, features) in GpuFeatures::each_left_out() {
            trials.push(trial(Some(name), features)?);
        }
    }
    Ok(FeatureReport { trials })
}
