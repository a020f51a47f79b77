//! Which optional feature of a GPU makes the difference.

use crate::device::wgpu::GpuFeatures;
use crate::diagnostics::verify::{VerifyOptions, VerifyReport};
use crate::engine::Engine;
use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt;

/// How it went without one of the features.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrialOutcome {
    /// What verify said.
    Verified(Box<VerifyReport>),
    /// The engine could not be made: a kernel did not compile, or the device failed.
    Failed(String),
}

/// An engine without one of the features.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeatureTrial {
    /// The feature that was left out; `None` for none.
    pub without: Option<&'static str>,
    /// How it went.
    pub outcome: TrialOutcome,
}

impl FeatureTrial {
    /// Whether all is right.
    pub fn passed(&self) -> bool {
        matches!(&self.outcome, TrialOutcome::Verified(report) if report.passed())
    }
}

/// What [`find_feature`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeatureReport {
    /// With all features, and then without each.
    pub trials: Vec<FeatureTrial>,
}

impl FeatureReport {
    /// Whether all is right with all features.
    pub fn passed(&self) -> bool {
        self.trials.first().is_some_and(FeatureTrial::passed)
    }

    /// The features without which all is right, where it is not with all of them. Without subgroups there are no
    /// cooperative matrices either: where leaving out these is enough, only they are named.
    pub fn culprits(&self) -> Vec<&'static str> {
        if self.passed() {
            return Vec::new();
        }
        let right = self.trials.iter().filter(|trial| trial.passed());
        let mut names: Vec<&str> = right.filter_map(|trial| trial.without).collect();
        if names.contains(&"cooperative_matrices") {
            names.retain(|name| *name != "subgroups");
        }
        names
    }
}

impl fmt::Display for FeatureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for FeatureTrial { without, outcome } in &self.trials {
            let without =
                without.map_or("with all features".to_owned(), |f| format!("without {f}"));
            let outcome = match outcome {
                TrialOutcome::Failed(error) => format!("FAILED: {error}"),
                TrialOutcome::Verified(report) => match report.problems().next() {
                    None => "right".to_owned(),
                    Some((checked, problem)) => format!("WRONG ({checked}): {}", problem.message),
                },
            };
            writeln!(f, "{without:<30} {outcome}")?;
        }
        match &self.culprits()[..] {
            [] if self.passed() => f.write_str("right: with all features"),
            [] => f.write_str("WRONG, and no single feature makes the difference"),
            culprits => write!(f, "WRONG: right without {}", culprits.join(", or without ")),
        }
    }
}

/// Verifies an engine with all optional features of its GPU and, where it is wrong or cannot be made, without each of
/// them in turn.
///
/// # Errors
/// That of `engine_with` where it makes no engine at all, whatever is left out.
pub fn find_feature<E: From<Error> + fmt::Display>(
    mut engine_with: impl FnMut(GpuFeatures) -> Result<Engine, E>,
    options: &VerifyOptions,
) -> Result<FeatureReport, E> {
    let mut trials: Vec<FeatureTrial> = Vec::new();
    let mut first_error = None;
    let each = std::iter::once((None, GpuFeatures::default()));
    let left_out = GpuFeatures::each_left_out().into_iter();
    for (without, features) in each.chain(left_out.map(|(name, left)| (Some(name), left))) {
        let verified = engine_with(features).and_then(|engine| Ok(engine.verify(options)?));
        let outcome = match verified {
            Ok(report) => TrialOutcome::Verified(Box::new(report)),
            Err(error) => {
                let text = error.to_string();
                first_error.get_or_insert(error);
                TrialOutcome::Failed(text)
            }
        };
        trials.push(FeatureTrial { without, outcome });
        if trials[0].passed() {
            break;
        }
    }
    let is_failed = |trial: &FeatureTrial| matches!(trial.outcome, TrialOutcome::Failed(_));
    match first_error {
        Some(error) if trials.iter().all(is_failed) => Err(error),
        _ => Ok(FeatureReport { trials }),
    }
}
