//! What tuning a device is and what came of it, as callers see it.

use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Whether a GPU is measured to find what is fastest on it: the teams, tiles and splits of kernels for the model's types
/// and shapes, and with [`Activations::Auto`](crate::Activations::Auto) whether few rows of activations become 8-bit
/// integers. Without it all that is chosen by rule. Either way the kernels compute the same but for the order of sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tune {
    /// Where the [cache folder](crate::EngineBuilder::cache_folder) has no results for the adapter, its driver, this
    /// version of the crate and the model's shapes, it is measured, for less than two seconds, and they are kept there;
    /// what that was too short for is measured at the next start, and at the one behind it.
    /// Software adapters are not measured, nor is any without a cache folder.
    #[default]
    Auto,
    /// It is measured anew, whatever the adapter, and what was kept is replaced.
    Again,
    /// No results are read or made.
    Off,
}

/// What an engine's GPU runs the model by, of what was there to choose: [`Engine::tuning`](crate::Engine::tuning).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TuningReport {
    /// How long the measuring took; zero where all results were kept from before.
    pub time: Duration,
    /// One for each kind of kernel, weight type and shape of the model, what reads most first.
    pub choices: Vec<TuningChoice>,
}

/// What was chosen for a kernel, a weight type and a shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TuningChoice {
    /// The kernel, the weights and what else matters, e.g. `matvec Q4_0 4096x14336 Int8`.
    pub what: String,
    /// What is chosen without measuring.
    pub rule: String,
    /// What the sessions run.
    pub chosen: String,
    /// Whether there was time to try everything; where there was not, `chosen` is `rule`.
    pub is_complete: bool,
    /// What was tried.
    pub trials: Vec<TuningTrial>,
}

/// How long something that could be chosen takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TuningTrial {
    /// What was tried.
    pub choice: String,
    /// Of one use of it.
    pub time: Duration,
}

impl fmt::Display for TuningReport {
    /// A line for each choice, and below it what was tried.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for choice in &self.choices {
            writeln!(f, "{choice}")?;
        }
        match self.time {
            Duration::ZERO => write!(f, "kept from before"),
            time => write!(f, "measured in {:.2} s", time.as_secs_f64()),
        }
    }
}

impl fmt::Display for TuningChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.chosen)?;
        match (self.is_complete, self.chosen == self.rule) {
            (false, _) => write!(f, " by rule (no time)")?,
            (true, true) => write!(f, " as by rule")?,
            (true, false) => write!(f, " instead of {}", self.rule)?,
        }
        for TuningTrial { choice, time } in &self.trials {
            let micros = time.as_secs_f64() * 1e6;
            write!(f, "\n  {micros:>9.1} us  {choice}")?;
        }
        Ok(())
    }
}
