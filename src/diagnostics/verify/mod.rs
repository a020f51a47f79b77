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
mod texts;
mod ties;
mod upload;

#[cfg(test)]
pub(super) use compare::rms;
pub use depth::Depth;
pub use divergence::{Divergence, Finding, Input, Phase};
pub use file::{BlockScale, FileReport, TensorFault, TensorReport};
pub(crate) use judge::Verified;
pub use report::{Adapter, Check, Checked, Outcome, Problem, VerifyOptions, VerifyReport};
pub use upload::UploadReport;
#[cfg(test)]
pub(crate) use upload::check_upload;

use crate::device::Executor;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::kv_cache::KvLayout;
use sessions::Sessions;
use std::time::Instant;

/// What is blamed where the device fails.
const DEVICE: &str = "device";

/// Runs all checks, whatever the ones before found, unless the device itself fails.
///
/// # Errors
/// Those of the tokenizer, and of a context too short for the prompt.
pub(crate) fn verify(engine: &Engine, options: &VerifyOptions) -> Result<VerifyReport> {
    // A text of an encoder has nothing behind it.
    let decode_tokens = match engine.plan().is_causal() {
        true => options.decode_tokens,
        false => 0,
    };
    let tokens = prompt_tokens(engine, options, decode_tokens)?;
    let depth = options.depth;
    let mut report = VerifyReport {
        model: engine.spec().name.clone(),
        device: engine.device_info().clone(),
        depth,
        adapters: engine
            .loras()
            .iter()
            .map(|(path, scale)| Adapter {
                path: path.clone(),
                scale: *scale,
            })
            .collect(),
        checks: Vec::new(),
        file: None,
        upload: None,
    };
    report.check(Checked::File, |report| {
        let found = report.file.insert(file::check_file(engine.gguf(), depth));
        let text = found.to_string();
        Ok(match found.faults().next() {
            Some((tensor, _)) => Outcome::Wrong(Problem::at(tensor, text)),
            None => Outcome::Right(text),
        })
    });
    report.check(Checked::Upload, |report| {
        let found = upload::check_upload(engine.weights(), engine.backend(), depth)?;
        let found = report.upload.insert(found);
        let text = found.to_string();
        Ok(match found.differences.first() {
            Some(first) => Outcome::Wrong(Problem::at(&first.name, text)),
            None => Outcome::Right(text),
        })
    });
    report.check(Checked::Kernels, |_| {
        let capacity = kernels::CAPACITY.min(engine.context_length());
        let (verified, mut executor) = verified(engine, capacity)?;
        let found = kernels::check_kernels(&verified, executor.as_mut(), &tokens, depth)?;
        Ok(match found.divergence {
            Some(divergence) => Outcome::Wrong(divergence.into()),
            None => Outcome::Right(found.to_string()),
        })
    });
    report.check(Checked::Steps, |_| {
        let (verified, mut executor) = verified(engine, tokens.len() + decode_tokens)?;
        let found =
            steps::check_steps(&verified, executor.as_mut(), &tokens, decode_tokens, depth)?;
        Ok(match found.divergence {
            Some(divergence) => Outcome::Wrong(divergence.into()),
            None => Outcome::Right(found.to_string()),
        })
    });
    if !engine.plan().is_causal() {
        report.check(Checked::Rewind, |_| texts::check_texts(engine, &tokens));
        report.check(Checked::Memory, |_| texts::check_memory(engine, &tokens));
        return Ok(report);
    }
    let mut sessions = None;
    report.check(Checked::Rewind, |_| {
        let sessions = sessions.insert(Sessions::new(engine, &tokens, depth)?);
        sessions.check_rewind()
    });
    if let Some(sessions) = &mut sessions {
        report.check(Checked::TokenByToken, |_| sessions.check_token_by_token());
        report.check(Checked::Determinism, |_| sessions.check_determinism());
    }
    drop(sessions);
    report.check(Checked::Memory, |_| sessions::check_memory(engine, &tokens));
    Ok(report)
}

impl VerifyReport {
    /// Runs a check, unless the device has failed before.
    fn check(&mut self, checked: Checked, run: impl FnOnce(&mut VerifyReport) -> Result<Outcome>) {
        if self.problems().any(|(_, problem)| problem.place == DEVICE) {
            return;
        }
        let started = Instant::now();
        let outcome = run(self).unwrap_or_else(|error| match error {
            Error::WrongResult { step, message } => Outcome::Wrong(Problem::at(&step, message)),
            Error::OutOfMemory { .. } => Outcome::LeftOut(error.to_string()),
            error => Outcome::Wrong(Problem::at(DEVICE, error.to_string())),
        });
        let seconds = started.elapsed().as_secs_f64();
        self.checks.push(Check {
            checked,
            outcome,
            seconds,
        });
    }
}

/// The prompt's tokens, repeated or cut to the number asked for and to what leaves room for `more`.
pub(super) fn prompt_tokens(
    engine: &Engine,
    options: &VerifyOptions,
    more: usize,
) -> Result<Vec<u32>> {
    let prompt = match engine.tokenizer() {
        // Without text any tokens will do, if they are not all alike.
        tokenizer if tokenizer.is_absent() => (0..tokenizer.vocab_size() as u32).collect(),
        tokenizer => tokenizer.encode_prompt(&options.prompt, &[], true)?,
    };
    let room = engine.context_length().saturating_sub(more);
    let n_prompt = options.prompt_tokens.min(engine.plan().max_rows).min(room);
    let tokens: Vec<u32> = prompt
        .iter()
        .copied()
        .cycle()
        .take(n_prompt.max(1))
        .collect();
    if tokens.is_empty() {
        let message = "no tokens, expected at least one".to_owned();
        return Err(Error::InvalidArgument {
            name: "prompt",
            message,
        });
    }
    engine
        .kv_layout()
        .check_room(0, tokens.len().saturating_add(more))?;
    Ok(tokens)
}

/// What an engine runs with a cache of its own, and who runs it.
pub(super) fn verified(engine: &Engine, capacity: usize) -> Result<(Verified, Box<dyn Executor>)> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Gguf, WeightType};
    use crate::{Device, tiny};

    #[test]
    fn prompt_is_encoded_as_that_of_a_session_is() {
        let writer =
            tiny::llama(WeightType::F32, None).metadata("tokenizer.ggml.add_eos_token", true);
        let gguf = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
        let engine = Engine::builder_from(gguf).device(Device::Cpu).build();
        let options = VerifyOptions {
            prompt: "</s>!".to_owned(),
            prompt_tokens: 8,
            ..VerifyOptions::default()
        };
        let tokens = prompt_tokens(&engine.unwrap(), &options, 1).unwrap();
        assert_eq!(tokens, [1, 2, 229, 153, 132, 36, 1, 2]);
    }
}
