//! Is it right, on this device, with this file: `cargo run --release --example verify -- --device gpu`.

mod support;

use std::io::{self, Write};
use std::process::ExitCode;
use support::{Result, options};
use trueshot::{VerifyLevel, VerifyOptions};

const ABOUT: &str = "\
verify: is the engine right, on this device, with this file?

usage: cargo run --release --example verify -- [OPTIONS]

Exits with 1 where a check finds something wrong, and names the place.

  --quick            some layers and few inputs: seconds
  --decode-tokens N  tokens that run one by one behind the prompt
  --json             the report as JSON
";

fn main() -> ExitCode {
    support::run(verify)
}

fn verify() -> Result {
    let mut verify = VerifyOptions::default();
    let mut json = false;
    let options = options::Options::parse(ABOUT, |name, parser| {
        match name {
            "quick" => verify.level = VerifyLevel::Quick,
            "json" => json = true,
            "decode-tokens" => verify.decode_tokens = options::value(name, parser)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if let Some(prompt) = &options.prompt {
        verify.prompt.clone_from(prompt);
    }
    let report = options.load()?.verify(&verify)?;
    match json {
        true => writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?,
        false => writeln!(io::stdout(), "{report}")?,
    }
    if report.passed() {
        Ok(())
    } else {
        Err("the device's answers are not right".into())
    }
}
