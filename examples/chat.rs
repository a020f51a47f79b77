//! Chat with a model: `cargo run --release --example chat`.
//!
//! On a terminal it asks for one turn after the other; from a pipe each line is a turn; with
//! `--prompt` it answers once. Ctrl-C stops an answer, twice in a row it ends the program.

mod support;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Result, options::Options};
use trueshot::{FinishReason, GenerateOptions, GenerateStats, Message, Session};

const ABOUT: &str = "\
chat: talk to a model through its own chat template

usage: cargo run --release --example chat -- [OPTIONS]

Without --prompt each line of input is a turn; /help lists the commands.
";

const COMMANDS: &str = "\
/system TEXT  start anew with these instructions for the model
/reset        forget the conversation, keep the instructions
/stats        tokens and speed of the last answer
/help         this list
/quit         end (as Ctrl-D does)
Ctrl-C stops an answer, once the model has read the prompt";

fn main() -> ExitCode {
    support::run(|| {
        let options = Options::parse(ABOUT, |_, _| Ok(false))?;
        let engine = options.load()?;
        let mut chat = Chat {
            session: engine.session()?,
            options: options.generate,
            messages: Vec::new(),
            last: None,
            interrupt: Interrupt::install()?,
        };
        match options.prompt {
            Some(prompt) => chat.answer(&prompt),
            None => chat.converse(),
        }
    })
}

struct Chat {
    session: Session,
    options: GenerateOptions,
    messages: Vec<Message>,
    /// Of the last answer.
    last: Option<GenerateStats>,
    interrupt: Interrupt,
}

impl Chat {
    fn converse(&mut self) -> Result {
        let is_terminal = io::stdin().is_terminal();
        if is_terminal {
            eprintln!("/help lists the commands");
        }
        let mut line = String::new();
        loop {
            if is_terminal {
                eprint!("> ");
            }
            line.clear();
            if io::stdin().read_line(&mut line)? == 0 {
                return Ok(());
            }
            self.interrupt.forget();
            match line.trim() {
                "" => continue,
                "/quit" => return Ok(()),
                command if command.starts_with('/') => self.command(command),
                turn => match self.answer(turn) {
                    Err(error) if is_terminal && is_context_full(error.as_ref()) => {
                        eprintln!("{error}; /reset makes room");
                    }
                    result => result?,
                },
            }
        }
    }

    fn command(&mut self, command: &str) {
        let (name, text) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        match name {
            "/system" if text.is_empty() => self.messages.clear(),
            "/system" => self.messages = vec![Message::system(text.trim())],
            "/reset" => self.messages.retain(|message| message.role == "system"),
            "/stats" => self.show_stats(),
            "/help" => eprintln!("{COMMANDS}"),
            _ => eprintln!("no command `{name}`; /help lists them"),
        }
    }

    /// Answers one turn; a turn whose answer fails is no part of the conversation.
    fn answer(&mut self, turn: &str) -> Result {
        self.messages.push(Message::user(turn));
        match self.stream_answer() {
            Ok(answer) => self.messages.push(Message::assistant(answer)),
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes the answer to the conversation so far, piece by piece, and returns all of it.
    fn stream_answer(&mut self) -> Result<String> {
        let _answering = self.interrupt.answering();
        let mut generation = self.session.chat(&self.messages, &self.options)?;
        let mut stdout = io::stdout().lock();
        let mut answer = String::new();
        for piece in &mut generation {
            let piece = piece?;
            write!(stdout, "{}", piece.text)?;
            stdout.flush()?;
            answer += &piece.text;
            if self.interrupt.is_pressed() {
                break;
            }
        }
        writeln!(stdout)?;
        match generation.finish_reason() {
            Some(FinishReason::MaxTokens) => eprintln!("(--max-tokens ends the answer here)"),
            Some(FinishReason::ContextFull) => {
                eprintln!("(the context is full; /reset makes room)")
            }
            Some(FinishReason::EndOfGeneration | FinishReason::Stop(_)) | None => {}
        }
        self.last = Some(generation.stats());
        Ok(answer)
    }

    fn show_stats(&self) {
        let engine = self.session.engine();
        if let Some(stats) = self.last {
            eprintln!(
                "prompt: {} tokens, {:.1} tokens/s; answer: {} tokens, {:.1} tokens/s",
                stats.n_prompt_tokens,
                stats.prompt_tokens_per_second(),
                stats.n_generated,
                stats.generated_tokens_per_second(),
            );
        }
        eprintln!(
            "session: {} of {} tokens; {} on {}",
            self.session.tokens().len(),
            engine.context_length(),
            engine.spec().name,
            engine.device_info().name,
        );
    }
}

fn is_context_full(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(
        error.downcast_ref(),
        Some(trueshot::Error::ContextFull { .. })
    )
}

/// Ctrl-C: the first one stops an answer, the second one in a row ends the program.
#[derive(Clone, Default)]
struct Interrupt {
    is_pressed: Arc<AtomicBool>,
    is_answering: Arc<AtomicBool>,
}

impl Interrupt {
    fn install() -> Result<Interrupt> {
        let interrupt = Interrupt::default();
        let handler = interrupt.clone();
        ctrlc::set_handler(move || {
            if handler.is_pressed.swap(true, Ordering::Relaxed) {
                // As a shell reports a program that SIGINT ended.
                std::process::exit(130);
            }
            if !handler.is_answering.load(Ordering::Relaxed) {
                eprint!("\n(Ctrl-C again ends the chat)\n> ");
            }
        })?;
        Ok(interrupt)
    }

    fn is_pressed(&self) -> bool {
        self.is_pressed.load(Ordering::Relaxed)
    }

    fn forget(&self) {
        self.is_pressed.store(false, Ordering::Relaxed);
    }

    /// Until the guard is dropped, Ctrl-C is for the answer.
    fn answering(&self) -> Answering {
        self.is_answering.store(true, Ordering::Relaxed);
        Answering(self.clone())
    }
}

struct Answering(Interrupt);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.is_answering.store(false, Ordering::Relaxed);
        self.0.forget();
    }
}
