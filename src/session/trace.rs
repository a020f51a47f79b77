//! Recording what the steps of a session's batches compute.

use super::{Session, no_tokens, outputs_of};
use crate::device::Observation;
use crate::diagnostics::{Recorder, Trace, TraceOptions};
use crate::error::{Error, Result};

impl Session {
    /// Runs `tokens` behind those of the session and records what the steps asked for computed: any
    /// number of tokens, cut into batches. Of rows that only outputs have (`result_norm`, the logits in
    /// `result_output`) there is one, the last token's.
    ///
    /// Logits that cannot be right end no trace, which may be there to find out why: it is returned, and
    /// the session is as it was.
    ///
    /// ```no_run
    /// use trueshot::TraceOptions;
    ///
    /// let engine = trueshot::Engine::load("model.gguf")?;
    /// let tokens = engine.tokenizer().encode_prompt("The capital of France is", &[], true)?;
    /// let options = TraceOptions {
    ///     names: vec!["blk.*.attn_norm".to_owned(), "Qcur".to_owned()],
    ///     ..TraceOptions::default()
    /// };
    /// println!("{}", engine.session()?.trace(&tokens, &options)?);
    /// # Ok::<(), trueshot::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for options that select nothing, or what is not there; else as
    /// [`Session::eval`].
    pub fn trace(&mut self, tokens: &[u32], options: &TraceOptions) -> Result<Trace> {
        let engine = self.engine.clone();
        let position = self.tokens.len();
        if tokens.is_empty() {
            return Err(no_tokens());
        }
        let (plan, kv) = (engine.plan(), engine.kv_layout());
        let runs = position..position + tokens.len();
        let mut recorder = Recorder::new(engine.weights(), plan, kv, options, runs)?;
        if self.n_cached < position {
            self.run_pending()?;
        }
        let max_rows = plan.max_rows;
        let max_rows = options.batch_tokens.unwrap_or(max_rows).clamp(1, max_rows);
        let result = self.replace_tail(position, tokens, |session| {
            let executor = session.executor.as_ref();
            recorder.start(&session.tokens, |layer, batch| {
                executor.cached_rows(layer, batch)
            })?;
            while session.n_cached < session.tokens.len() {
                let is_last = session.batch_end(max_rows) == session.tokens.len();
                session.run_batch(max_rows, outputs_of(is_last), |executor, batch, logits| {
                    let mut record = |seen: &Observation<'_>| recorder.record(batch, seen);
                    executor.run(batch, logits, Some(&mut record))
                })?;
            }
            Ok(())
        });
        match result {
            Ok(()) | Err(Error::WrongResult { .. }) => {
                Ok(recorder.finish(engine.summary(), tokens))
            }
            Err(error) => Err(error),
        }
    }
}
