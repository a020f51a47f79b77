//! What the examples share: options, models, errors and the log.

#![allow(dead_code, reason = "each example uses a part of this")]

pub mod model;
pub mod options;
pub mod synthetic;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

/// The result of an example: any error, as a sentence for the person who runs it.
pub type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

/// Runs an example. An error is one line on stderr and the exit code 1, or 2 for a wrong option.
pub fn run(example: impl FnOnce() -> Result) -> ExitCode {
    log_to_stderr();
    let Err(error) = example() else {
        return ExitCode::SUCCESS;
    };
    if let Some(error) = error.downcast_ref::<io::Error>()
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        // Whoever reads stdout has seen enough; there is nobody left to tell.
        return ExitCode::FAILURE;
    }
    eprintln!("error: {error}");
    if error.is::<lexopt::Error>() {
        eprintln!("`--help` lists the options");
        return ExitCode::from(2);
    }
    ExitCode::FAILURE
}

/// What trueshot says, unless `RUST_LOG` asks for something else.
fn log_to_stderr() {
    let filter = env_logger::Env::default().default_filter_or("trueshot=info");
    env_logger::Builder::from_env(filter)
        .format(|out, record| {
            writeln!(
                out,
                "{}: {}",
                record.level().as_str().to_lowercase(),
                record.args()
            )
        })
        .init();
}
