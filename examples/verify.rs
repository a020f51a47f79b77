//! Is it right, on this device, with this file: `cargo run --release --example verify -- --device gpu`.

mod support;

use std::io::{self, Write};
use std::process::ExitCode;
use support::{Result, options};
use trueshot::{Depth, Engine, VerifyOptions, find_feature};

const ABOUT: &str = "\
verify: is the engine right, on this device, with this file?

usage: cargo run --release --example verify -- [OPTIONS]

Exits with 1 where something is wrong, and names the place.

  --quick            some layers, some rows of the weights, few inputs: seconds
  --decode-tokens N  tokens that run one by one behind the prompt
  --json             the report as JSON
  --bisect           instead: the first steps that turn the answer wrong, found by running the others
                     on the reference
  --features         instead: verify without each optional feature of the GPU, where it fails with all
";

/// What is asked.
enum Question {
    IsItRight,
    WhichSteps,
    WhichFeature,
}

fn main() -> ExitCode {
    support::run(verify)
}

fn verify() -> Result {
    let mut verify = VerifyOptions::default();
    let mut json = false;
    let mut question = Question::IsItRight;
    let options = options::Options::parse(ABOUT, |name, parser| {
        match name {
            "quick" => verify.depth = Depth::Quick,
            "json" => json = true,
            "bisect" => question = Question::WhichSteps,
            "features" => question = Question::WhichFeature,
            "decode-tokens" => verify.decode_tokens = options::value(name, parser)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if let Some(prompt) = &options.prompt {
        verify.prompt.clone_from(prompt);
    }
    let (text, value, is_right) = match question {
        Question::IsItRight => {
            let report = options.load()?.verify(&verify)?;
            (
                report.to_string(),
                serde_json::to_value(&report)?,
                report.passed(),
            )
        }
        Question::WhichSteps => {
            let report = options.load()?.bisect(&verify)?;
            let is_right = report.culprit.is_none();
            (report.to_string(), serde_json::to_value(&report)?, is_right)
        }
        Question::WhichFeature => {
            let engine_with = |features| -> Result<Engine> {
                let (_, gguf) = options.open()?;
                Ok(options.builder(gguf).gpu_features(features).build()?)
            };
            let report = find_feature(engine_with, &verify)?;
            let is_right = report.passed();
            (report.to_string(), serde_json::to_value(&report)?, is_right)
        }
    };
    match json {
        true => writeln!(io::stdout(), "{value}")?,
        false => writeln!(io::stdout(), "{text}")?,
    }
    if is_right {
        Ok(())
    } else {
        Err("the device's answers are not right".into())
    }
}
