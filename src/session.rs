//! A session: the tokens so far, and the loop that generates more.

mod trace;

use crate::chat_template::{ChatOptions, Message};
use crate::device::sentinel::check_logits;
use crate::device::{ChosenToken, Executor, Observation, TokenChain};
use crate::diagnostics::Profile;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::generation::{GenerateOptions, Generation};
use crate::plan::{Batch, Outputs};
use crate::sampler::PlainSampling;

/// One conversation with an engine's model: its tokens and their cache.
pub struct Session {
    engine: Engine,
    executor: Box<dyn Executor>,
    /// All tokens; the first `n_cached` of them are in the cache.
    tokens: Vec<u32>,
    n_cached: usize,
    /// Where the model has states that went too far: so many tokens run again as batches of their own, as a prompt.
    n_replayed: usize,
    /// Of the last batch, `[n_outputs, vocab_size]`.
    logits: Vec<f32>,
    /// Tokens up to and including the one whose logits the last row of `logits` is; 0 for none.
    logits_at: usize,
}

/// The output of one step of the forward pass, see [`Session::observe`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Intermediate<'a> {
    /// The step's name, e.g. `blk.3.attn_norm`.
    pub name: &'a str,
    /// `[n_rows, width] f32`. A step that stores to the cache shows the rows it stored, as the cache
    /// gives them back: first the keys of the batch, then its values.
    pub values: &'a [f32],
    /// Elements in a row.
    pub width: usize,
}

impl Session {
    pub(crate) fn new(engine: Engine, executor: Box<dyn Executor>) -> Self {
        Session {
            engine,
            executor,
            tokens: Vec::new(),
            n_cached: 0,
            n_replayed: 0,
            logits: Vec::new(),
            logits_at: 0,
        }
    }

    /// The engine this session belongs to.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Every token of the session: prompts and answers.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets all tokens behind the first `n_tokens`. Where the model has states, which cannot go back, those that are
    /// left run again, as one prompt, before what comes next.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the session has fewer.
    pub fn rewind(&mut self, n_tokens: usize) -> Result<()> {
        if n_tokens > self.tokens.len() {
            let message = format!(
                "{n_tokens}, but the session has {} tokens",
                self.tokens.len()
            );
            return Err(Error::InvalidArgument {
                name: "n_tokens",
                message,
            });
        }
        self.tokens.truncate(n_tokens);
        self.go_back(n_tokens);
        if self.logits_at > n_tokens {
            self.logits_at = 0;
        }
        Ok(())
    }

    /// Continues the session by `prompt` and then by what the model makes of it. Nothing runs for
    /// the answer until the [`Generation`] is iterated. On an error the session is as it was.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the prompt cannot be encoded, [`Error::ContextFull`] where it has no
    /// room, [`Error::InvalidArgument`] for an option out of range or an empty prompt in an empty
    /// session, [`Error::WrongResult`] and those of the device.
    pub fn generate(&mut self, prompt: &str, options: &GenerateOptions) -> Result<Generation<'_>> {
        let tokenizer = self.engine.tokenizer();
        let prompt = tokenizer.encode_prompt(prompt, &self.tokens, options.parse_special)?;
        let kept = self.tokens.len();
        Generation::start(self, kept, &prompt, options)
    }

    /// As [`Session::generate`], from the ids of a prompt, which are taken as they are: nothing is put in
    /// front. Where the file has no tokenizer the pieces have no text.
    ///
    /// # Errors
    /// As [`Session::generate`], and [`Error::InvalidArgument`] for an id beyond the vocabulary.
    pub fn generate_tokens(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Generation<'_>> {
        let kept = self.tokens.len();
        Generation::start(self, kept, prompt, options)
    }

    /// Answers a conversation through the model's chat template. Messages that the session has
    /// already seen are not run again: pass the whole conversation each time.
    ///
    /// Special tokens written out in a message are plain text, whatever
    /// [`GenerateOptions::parse_special`] says.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] where the file has no template or it fails, else as
    /// [`Session::generate`].
    pub fn chat(
        &mut self,
        messages: &[Message],
        options: &GenerateOptions,
    ) -> Result<Generation<'_>> {
        self.chat_with(messages, &ChatOptions::default(), options)
    }

    /// As [`Session::chat`], with tools and what else the template is told.
    ///
    /// # Errors
    /// As [`Session::chat`].
    pub fn chat_with(
        &mut self,
        messages: &[Message],
        chat: &ChatOptions,
        options: &GenerateOptions,
    ) -> Result<Generation<'_>> {
        let template = self.engine.chat_template()?;
        let wanted = template.encode(messages, chat, self.engine.tokenizer())?;
        let known = self
            .tokens
            .iter()
            .zip(&wanted)
            .take_while(|(a, b)| a == b)
            .count();
        // The last token runs again where all are known: its logits are needed.
        let known = known.min(wanted.len().saturating_sub(1));
        Generation::start(self, known, &wanted[known..], options)
    }

    /// Runs `tokens` behind those of the session; returns the logits of the last, `[vocab_size] f32`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no tokens or one beyond the vocabulary, [`Error::ContextFull`],
    /// [`Error::WrongResult`] for logits that cannot be right, and those of the device.
    pub fn eval(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.replace_tail(self.tokens.len(), tokens, Session::run_pending)?;
        Ok(self.last_logits())
    }

    /// As [`Session::eval`], with the logits of every token: `[n_tokens, vocab_size] f32`.
    ///
    /// # Errors
    /// As [`Session::eval`], and [`Error::OutOfMemory`] where there is no room for so many logits.
    pub fn eval_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if self.n_cached < self.tokens.len() {
            self.run_pending()?;
        }
        let n_logits = tokens.len().saturating_mul(self.engine.spec().vocab_size);
        let mut all = Vec::new();
        all.try_reserve_exact(n_logits)
            .map_err(|_| Error::OutOfMemory {
                what: format!("the logits of {} tokens", tokens.len()),
                bytes: n_logits as u64 * 4,
                device: "the host".to_owned(),
            })?;
        self.replace_tail(self.tokens.len(), tokens, |session| {
            let max_rows = session.engine.plan().max_outputs;
            while session.n_cached < session.tokens.len() {
                session.run_batch(max_rows, Outputs::All, unobserved)?;
                all.extend_from_slice(&session.logits);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Runs `tokens` as one batch and shows the output of every step to `observer`. Slow: each step
    /// is waited for and read back.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for more tokens than one batch has, else as [`Session::eval`].
    pub fn observe(
        &mut self,
        tokens: &[u32],
        observer: &mut dyn FnMut(Intermediate<'_>),
    ) -> Result<()> {
        self.append_batch(tokens, |executor, batch, logits| {
            let mut show = |seen: &Observation<'_>| {
                observer(Intermediate {
                    name: &seen.step.name,
                    values: seen.values,
                    width: seen.width,
                });
                Ok(())
            };
            executor.run(batch, logits, Some(&mut show))
        })
    }

    /// Runs `tokens` as one batch and says how long each part of it took.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a GPU without timestamps, else as [`Session::observe`].
    pub fn profile(&mut self, tokens: &[u32]) -> Result<Profile> {
        let engine = self.engine.clone();
        self.append_batch(tokens, |executor, batch, logits| {
            let times = executor.profile(batch, logits)?;
            let (plan, weights) = (engine.plan(), engine.weights());
            Ok(Profile::new(
                times,
                plan,
                weights,
                engine.kv_layout(),
                batch,
            ))
        })
    }

    /// Runs `tokens` as one batch, which a graphics debugger captures: one that the program was started under, Xcode
    /// (with `MTL_CAPTURE_ENABLED=1`) on Apple's systems and RenderDoc elsewhere, for which wgpu must be compiled with
    /// debug assertions. All that the debugger shows has a name, and each dispatch those of its step and kernel. Says
    /// whether there was such a debugger; without one the batch runs all the same, and the log has the reason. On Metal
    /// it says that there was one even where there was none: wgpu does not ask.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the device is not a GPU, else as [`Session::observe`].
    pub fn capture(&mut self, tokens: &[u32]) -> Result<bool> {
        self.append_batch(tokens, |executor, batch, logits| {
            executor.capture(batch, logits)
        })
    }

    /// Appends `tokens` and runs them by `run`, as one batch with the logits of the last.
    fn append_batch<T>(
        &mut self,
        tokens: &[u32],
        run: impl FnOnce(&mut dyn Executor, &Batch<'_>, &mut Vec<f32>) -> Result<T>,
    ) -> Result<T> {
        if self.n_cached < self.tokens.len() {
            self.run_pending()?;
        }
        self.engine.check_batch(tokens)?;
        let max_rows = self.engine.plan().max_rows;
        self.replace_tail(self.tokens.len(), tokens, |session| {
            session.run_batch(max_rows, Outputs::Last, run)
        })
    }

    /// Appends a token without running it yet.
    pub(crate) fn push(&mut self, token: u32) -> Result<()> {
        self.check_room(self.tokens.len(), &[token])?;
        self.tokens.push(token);
        Ok(())
    }

    /// Whether `tokens` may follow `n_kept` of those that there are.
    fn check_room(&self, n_kept: usize, tokens: &[u32]) -> Result<()> {
        self.engine.check_tokens(tokens)?;
        self.engine.kv_layout().check_room(n_kept, tokens.len())
    }

    /// Keeps `n_kept` tokens, appends `tokens` and runs. On an error the tokens are as they were,
    /// though fewer of them may be in the cache.
    pub(crate) fn replace_tail<T>(
        &mut self,
        n_kept: usize,
        tokens: &[u32],
        run: impl FnOnce(&mut Session) -> Result<T>,
    ) -> Result<T> {
        // A refusal leaves the cache, and states that cannot go back, as they were.
        self.check_room(n_kept, tokens)?;
        let tail = self.tokens.split_off(n_kept);
        self.rewind(n_kept)?;
        self.tokens.extend_from_slice(tokens);
        let result = run(self);
        if result.is_err() {
            self.rewind(n_kept)?;
            self.tokens.extend(tail);
        }
        result
    }

    /// Runs every token that is not in the cache yet; the logits of the last are kept.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where there are no tokens at all.
    pub(crate) fn run_pending(&mut self) -> Result<()> {
        let n_tokens = self.tokens.len();
        if n_tokens == 0 {
            return Err(no_tokens());
        }
        if self.logits_at == n_tokens {
            return Ok(());
        }
        // The logits of a token that is in the cache already are had by running it again.
        self.go_back(n_tokens - 1);
        let max_rows = self.engine.plan().max_rows;
        while self.n_cached < n_tokens {
            let is_last = self.batch_end(max_rows) == n_tokens;
            self.run_batch(max_rows, outputs_of(is_last), unobserved)?;
        }
        Ok(())
    }

    /// Runs the next at most `max_rows` tokens by `run`.
    fn run_batch<T>(
        &mut self,
        max_rows: usize,
        outputs: Outputs,
        run: impl FnOnce(&mut dyn Executor, &Batch<'_>, &mut Vec<f32>) -> Result<T>,
    ) -> Result<T> {
        let end = self.batch_end(max_rows);
        let batch = Batch {
            tokens: &self.tokens[self.n_cached..end],
            position: self.n_cached,
            outputs,
        };
        self.logits_at = 0;
        let n_outputs = batch.n_outputs();
        let vocab_size = self.engine.spec().vocab_size;
        let result = run(self.executor.as_mut(), &batch, &mut self.logits).and_then(|result| {
            check_logits(&self.logits, vocab_size, end - n_outputs)?;
            Ok(result)
        });
        let result = self.sound(result).inspect_err(|_| {
            // How far the states have come is not known.
            if self.has_states() {
                self.distrust();
            }
        })?;
        self.n_cached = end;
        if n_outputs > 0 {
            self.logits_at = end;
        }
        Ok(result)
    }

    /// Whether the device keeps more of the tokens than the cache.
    fn has_states(&self) -> bool {
        !self.engine.plan().states.is_empty()
    }

    /// Takes no more than the first `n_tokens` as run.
    fn go_back(&mut self, n_tokens: usize) {
        if self.n_cached <= n_tokens {
            self.n_replayed = self.n_replayed.min(n_tokens);
            return;
        }
        self.n_cached = n_tokens;
        if self.has_states() {
            self.n_cached = 0;
            self.n_replayed = n_tokens;
        }
    }

    /// The token behind the next batch of at most `max_rows`.
    fn batch_end(&self, max_rows: usize) -> usize {
        let end = match self.n_cached < self.n_replayed {
            true => self.n_replayed,
            false => self.tokens.len(),
        };
        end.min(self.n_cached + max_rows)
    }

    /// Passes a result on. Behind one that cannot be right nothing in the cache is trusted: sentinels do not look
    /// at every token, so what is wrong may have begun before it. The tokens that are kept run again.
    fn sound<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(Error::WrongResult { .. }) = result {
            self.distrust();
        }
        result
    }

    /// Takes nothing of the cache for right.
    pub(crate) fn distrust(&mut self) {
        self.n_cached = 0;
        self.n_replayed = 0;
        self.logits_at = 0;
    }

    /// Whether the device will choose the tokens behind those of the session itself.
    pub(crate) fn start_chain(&mut self, sampling: &PlainSampling) -> Result<bool> {
        match self.executor.chain() {
            Some(chain) => chain.start(sampling),
            None => Ok(false),
        }
    }

    /// Has the device choose the token at `position`, once it has run the one before; see [`TokenChain`].
    pub(crate) fn queue_token(&mut self, position: usize, random: u32) -> Result<()> {
        if position > self.logits_at {
            // The logits on the device will be those of a token that the session does not have yet.
            self.logits_at = 0;
        }
        started(self.executor.chain()).queue(position, random)
    }

    /// Waits for the token behind those of the session, which the device has chosen.
    pub(crate) fn read_token(&mut self) -> Result<ChosenToken> {
        let token = started(self.executor.chain()).read();
        let token = self.sound(token)?;
        // It was chosen from the logits of the token before it, which is thus in the cache.
        self.n_cached = self.tokens.len();
        Ok(token)
    }

    /// The logits of the last token that ran, `[vocab_size] f32`.
    pub(crate) fn last_logits(&self) -> &[f32] {
        let vocab_size = self.engine.spec().vocab_size;
        &self.logits[self.logits.len().saturating_sub(vocab_size)..]
    }
}

fn unobserved(executor: &mut dyn Executor, batch: &Batch<'_>, logits: &mut Vec<f32>) -> Result<()> {
    executor.run(batch, logits, None)
}

fn no_tokens() -> Error {
    Error::InvalidArgument {
        name: "tokens",
        message: "no tokens, expected at least one".to_owned(),
    }
}

/// What a batch of a longer run is asked for.
fn outputs_of(is_last: bool) -> Outputs {
    if is_last {
        Outputs::Last
    } else {
        Outputs::None
    }
}

fn started(chain: Option<&mut dyn TokenChain>) -> &mut dyn TokenChain {
    chain.expect("a chain that has been started is there")
}
