//! Check the device's answers step by step: `cargo run --release --example verify -- --device gpu`.

mod support;

use std::io::{self, Write};
use std::process::ExitCode;
use support::{Result, options};
use trueshot::VerifyOptions;

const ABOUT: &str = "\
verify: run a short prompt on the device and on the reference, and compare every step

usage: cargo run --release --example verify -- [OPTIONS]

Exits with 1 where a step differs beyond its bound, and names it.

  --decode-tokens N  tokens that run one by one behind the prompt
";

fn main() -> ExitCode {
    support::run(verify)
}

fn verify() -> Result {
    let mut verify = VerifyOptions::default();
    let options = options::Options::parse(ABOUT, |name, parser| {
        if name != "decode-tokens" {
            return Ok(false);
        }
        verify.decode_tokens = options::value(name, parser)?;
        Ok(true)
    })?;
    if let Some(prompt) = &options.prompt {
        verify.prompt.clone_from(prompt);
    }
    let report = options.load()?.verify(&verify)?;
    writeln!(io::stdout(), "{report}")?;
    if report.passed() {
        Ok(())
    } else {
        Err("the device's answers are not right".into())
    }
}
