//! What a verification says: for people by `Display`, for programs by its fields and by `serde`.

use super::depth::Depth;
use super::divergence::Divergence;
use super::file::FileReport;
use super::upload::UploadReport;
use crate::device::DeviceInfo;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// What [`Engine::verify`](crate::Engine::verify) runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// How much of the model is looked at.
    pub depth: Depth,
    /// Run as one batch.
    pub prompt: String,
    /// Tokens of that batch: the prompt is repeated or cut to it, and to what one batch and the context hold.
    pub prompt_tokens: usize,
    /// Tokens run one at a time behind it, each the most likely one.
    pub decode_tokens: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        VerifyOptions {
            depth: Depth::Full,
            prompt: "The capital of France is".to_owned(),
            prompt_tokens: 70,
            decode_tokens: 2,
        }
    }
}

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Checked {
    /// The tensors of the file: whether what they hold can be right.
    File,
    /// What the device holds of them.
    Upload,
    /// Each kind of step on values made for it: random, tiny, huge and zero, of one row and of many.
    Kernels,
    /// Every step of a real prompt, each on what the device had before it.
    Steps,
    /// A prompt run as one batch gives what its tokens give one by one.
    TokenByToken,
    /// A session that was used and rewound gives the bits of a new one; so does an embedder that was used.
    Rewind,
    /// The same seed gives the same tokens, and the device chooses those that its logits say.
    Determinism,
    /// What a session took of the device's memory is given back with it.
    Memory,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Checked::File => "file",
            Checked::Upload => "upload",
            Checked::Kernels => "kernels",
            Checked::Steps => "steps",
            Checked::TokenByToken => "token by token",
            Checked::Rewind => "rewind",
            Checked::Determinism => "determinism",
            Checked::Memory => "memory",
        })
    }
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// The tensor or step at fault, e.g. `blk.3.attn_norm`.
    pub place: String,
    /// What was found and what was expected.
    pub message: String,
    /// The values, where a step was compared with the reference.
    pub divergence: Option<Divergence>,
}

impl Problem {
    pub(super) fn at(place: &str, message: String) -> Problem {
        Problem {
            place: place.to_owned(),
            message,
            divergence: None,
        }
    }
}

impl From<Divergence> for Problem {
    fn from(divergence: Divergence) -> Self {
        Problem {
            place: divergence.step.clone(),
            message: divergence.to_string(),
            divergence: Some(divergence),
        }
    }
}

/// How a check came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing is wrong; what was looked at.
    Right(String),
    /// The first thing that is wrong.
    Wrong(Problem),
    /// It could not be looked at, and why: there was no memory for it, or others used the engine meanwhile.
    LeftOut(String),
}

/// One check of a verification.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What it is about.
    pub checked: Checked,
    /// How it came out.
    pub outcome: Outcome,
    /// How long it took.
    pub seconds: f64,
}

/// An adapter that is added to the weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Adapter {
    /// Its file.
    pub path: PathBuf,
    /// How strong it is; 1 as it was trained.
    pub scale: f32,
}

/// The outcome of a verification.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The model's name.
    pub model: String,
    /// The device.
    pub device: DeviceInfo,
    /// How much was looked at.
    pub depth: Depth,
    /// The adapters added to the weights.
    pub adapters: Vec<Adapter>,
    /// In the order they ran.
    pub checks: Vec<Check>,
    /// What the check of the file found of each tensor, its hash among it.
    pub file: Option<FileReport>,
    /// What the check of the upload found.
    pub upload: Option<UploadReport>,
}

impl VerifyReport {
    /// Whether no check found anything wrong.
    pub fn passed(&self) -> bool {
        self.problems().next().is_none()
    }

    /// All that is wrong: the first thing that each check found.
    pub fn problems(&self) -> impl Iterator<Item = (Checked, &Problem)> {
        self.checks.iter().filter_map(|check| match &check.outcome {
            Outcome::Wrong(problem) => Some((check.checked, problem)),
            Outcome::Right(_) | Outcome::LeftOut(_) => None,
        })
    }

    /// The first step that differs from the reference.
    pub fn first_divergence(&self) -> Option<&Divergence> {
        self.problems()
            .find_map(|(_, problem)| problem.divergence.as_ref())
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VerifyReport {
            model,
            device,
            adapters,
            checks,
            ..
        } = self;
        writeln!(f, "{model} on {} ({})", device.name, device.backend)?;
        for Adapter { path, scale } in adapters {
            writeln!(f, "with adapter {path:?}, scale {scale}")?;
        }
        for check in checks {
            let (word, text) = match &check.outcome {
                Outcome::Right(text) => ("right", text),
                Outcome::Wrong(problem) => ("WRONG", &problem.message),
                Outcome::LeftOut(text) => ("left out", text),
            };
            writeln!(
                f,
                "{:<15} {word:<8} {:>6.2} s  {text}",
                check.checked, check.seconds
            )?;
        }
        match self.problems().count() {
            0 => f.write_str("right: no check found anything wrong"),
            1 => f.write_str("WRONG: one check failed"),
            n => write!(f, "WRONG: {n} checks failed"),
        }
    }
}
