//! Is it right: here, now, on this device, with this file?

mod compare;
mod depth;
mod divergence;
mod file;
mod judge;
mod kernels;
mod report;
mod sessions;
mod steps;
#[cfg(test)]
mod steps_tests;
mod upload;

#[cfg(test)]
pub(super) use compare::rms;
pub use depth::Depth;
pub use divergence::{Divergence, Finding, Input, Phase};
pub use file::{BlockScale, FileReport, TensorFault, TensorReport};
pub(crate) use judge::Verified;
pub use report::{Check, Checked, Outcome, Problem, VerifyOptions, VerifyReport};
pub(crate) use sessions::logits_bound;
pub use upload::UploadReport;
#[cfg(test)]
pub(crate) use upload::check_upload;

use super::bisect::{BisectReport, bisect, logits_with_reference};
use crate::device::Executor;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::kv_cache::KvLayout;
use sessions::Sessions;
use std::ops::Range;
use std::time::Instant;

/// Runs all checks, whatever the ones before found.
///
/// # Errors
/// Those of the device and the tokenizer; a result that is wrong is in the report.
pub(crate) fn verify(engine: &Engine, options: &VerifyOptions) -> Result<VerifyReport> {
    let tokens = prompt_tokens(engine, options)?;
    let depth = options.depth;
    let mut checks = Vec::new();
    let mut check = |checked, run: &mut dyn FnMut() -> Result<Outcome>| -> Result<()> {
        let started = Instant::now();
        let outcome = match run() {
            Err(Error::WrongResult { step, message }) => {
                Outcome::Wrong(Problem::at(&step, message))
            }
            outcome => outcome?,
        };
        let seconds = started.elapsed().as_secs_f64();
        checks.push(Check {
            checked,
            outcome,
            seconds,
        });
        Ok(())
    };
    check(Checked::File, &mut || {
        let report = file::check_file(engine.gguf(), depth);
        Ok(match report.faults().next() {
            Some((tensor, _)) => Outcome::Wrong(Problem::at(tensor, report.to_string())),
            None => Outcome::Right(report.to_string()),
        })
    })?;
    check(Checked::Upload, &mut || {
        let report = upload::check_upload(engine.weights(), engine.backend(), depth)?;
        Ok(match report.differences.first() {
            Some(first) => Outcome::Wrong(Problem::at(&first.name, report.to_string())),
            None => Outcome::Right(report.to_string()),
        })
    })?;
    check(Checked::Kernels, &mut || {
        let (verified, mut executor) =
            verified(engine, kernels::CAPACITY.min(engine.context_length()))?;
        let report = kernels::check_kernels(&verified, executor.as_mut(), &tokens, depth)?;
        Ok(match report.divergence {
            Some(divergence) => Outcome::Wrong(divergence.into()),
            None => Outcome::Right(report.to_string()),
        })
    })?;
    check(Checked::Steps, &mut || {
        let (verified, mut executor) = verified(engine, tokens.len() + options.decode_tokens)?;
        let report = steps::check_steps(
            &verified,
            executor.as_mut(),
            &tokens,
            options.decode_tokens,
            depth,
        )?;
        Ok(match report.divergence {
            Some(divergence) => Outcome::Wrong(divergence.into()),
            None => Outcome::Right(report.to_string()),
        })
    })?;
    let mut sessions = Sessions::new(engine, &tokens, depth)?;
    check(Checked::Rewind, &mut || sessions.check_rewind())?;
    check(Checked::TokenByToken, &mut || {
        sessions.check_token_by_token()
    })?;
    check(Checked::Determinism, &mut || sessions.check_determinism())?;
    drop(sessions);
    check(Checked::Memory, &mut || {
        sessions::check_memory(engine, &tokens)
    })?;
    Ok(VerifyReport {
        model: engine.spec().name.clone(),
        device: engine.device_info().clone(),
        depth,
        checks,
    })
}

/// Searches the first steps that make the answer to the prompt wrong.
///
/// # Errors
/// Those of the device and the tokenizer.
pub(crate) fn bisect_engine(engine: &Engine, options: &VerifyOptions) -> Result<BisectReport> {
    let tokens = prompt_tokens(engine, options)?;
    let capacity = (tokens.len() + 1).min(engine.context_length());
    let tokens = &tokens[..tokens.len().min(capacity.saturating_sub(1)).max(1)];
    let (verified, executor) = verified(engine, capacity)?;
    bisect(&verified, executor, tokens)
}

/// The logits of the last of some tokens with a range of the plan's steps on the reference.
///
/// # Errors
/// Those of the device; [`Error::InvalidArgument`] for tokens or steps that there are not.
pub(crate) fn engine_logits_with_reference(
    engine: &Engine,
    tokens: &[u32],
    on_reference: Range<usize>,
) -> Result<Vec<f32>> {
    let plan = engine.plan();
    let refused = |name, message| Err(Error::InvalidArgument { name, message });
    if !(1..=plan.max_rows).contains(&tokens.len()) {
        let message = format!("{} tokens, expected 1 to {}", tokens.len(), plan.max_rows);
        return refused("tokens", message);
    }
    let vocab_size = engine.spec().vocab_size;
    if let Some(bad) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
        return refused(
            "tokens",
            format!("token {bad}, expected less than {vocab_size}"),
        );
    }
    if on_reference.end > plan.steps.len() {
        let message = format!("{on_reference:?}, the plan has {} steps", plan.steps.len());
        return refused("on_reference", message);
    }
    engine.kv_layout().check_room(0, tokens.len())?;
    let (verified, executor) = verified(engine, tokens.len())?;
    logits_with_reference(&verified, executor, tokens, &on_reference)
}

/// The prompt's tokens, repeated or cut to the number asked for.
fn prompt_tokens(engine: &Engine, options: &VerifyOptions) -> Result<Vec<u32>> {
    let prompt = match engine.tokenizer() {
        // Without text any tokens will do, if they are not all alike.
        tokenizer if tokenizer.is_absent() => (0..tokenizer.vocab_size() as u32).collect(),
        tokenizer => tokenizer.encode(&options.prompt, true, false)?,
    };
    let n_prompt = options.prompt_tokens.clamp(1, engine.plan().max_rows);
    let tokens: Vec<u32> = prompt.iter().copied().cycle().take(n_prompt).collect();
    if tokens.is_empty() {
        let message = "no tokens, expected at least one".to_owned();
        return Err(Error::InvalidArgument {
            name: "prompt",
            message,
        });
    }
    let n_all = tokens.len().saturating_add(options.decode_tokens);
    engine.kv_layout().check_room(0, n_all)?;
    Ok(tokens)
}

/// What an engine runs with a cache of its own, and who runs it.
fn verified(engine: &Engine, capacity: usize) -> Result<(Verified, Box<dyn Executor>)> {
    let kv = KvLayout {
        capacity,
        ..engine.kv_layout().clone()
    };
    let executor = engine.executor(&kv)?;
    let verified = Verified {
        weights: engine.weights().clone(),
        plan: engine.plan_shared(),
        kv,
        rounding: engine.rounding(),
    };
    Ok((verified, executor))
}
