//! Continue a text: `cargo run --release --example generate -- --prompt "The capital of France is"`.

mod support;

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;
use support::{Result, options::Options};

const ABOUT: &str = "\
generate: continue a text as the model does without any template

usage: cargo run --release --example generate -- --prompt TEXT [OPTIONS]

Without --prompt the text is read from a pipe.

  --tokens           print token ids in place of text (those of the prompt on stderr)
";

fn main() -> ExitCode {
    support::run(generate)
}

fn generate() -> Result {
    let mut show_tokens = false;
    let options = Options::parse(ABOUT, |name, _| {
        show_tokens |= name == "tokens";
        Ok(name == "tokens")
    })?;
    let prompt = match &options.prompt {
        Some(prompt) => prompt.clone(),
        None => read_prompt()?,
    };
    let engine = options.load()?;
    if show_tokens {
        let parse_special = options.generate.parse_special;
        let prompt = engine
            .tokenizer()
            .encode_prompt(&prompt, &[], parse_special)?;
        eprintln!("prompt: {}", join(&prompt));
    }

    let mut session = engine.session()?;
    let mut generation = session.generate(&prompt, &options.generate)?;
    let mut stdout = io::stdout().lock();
    let mut separator = "";
    for piece in &mut generation {
        let piece = piece?;
        match piece.token {
            Some(token) if show_tokens => {
                write!(stdout, "{separator}{token}")?;
                separator = " ";
            }
            _ if show_tokens => {}
            _ => write!(stdout, "{}", piece.text)?,
        }
        stdout.flush()?;
    }
    writeln!(stdout)?;

    let stats = generation.stats();
    eprintln!(
        "{} tokens, {:.1} tokens/s (prompt: {} tokens, {:.1} tokens/s); seed {}",
        stats.n_generated,
        stats.generated_tokens_per_second(),
        stats.n_prompt_tokens,
        stats.prompt_tokens_per_second(),
        generation.seed(),
    );
    Ok(())
}

fn read_prompt() -> Result<String> {
    if io::stdin().is_terminal() {
        return Err("nothing to continue: give --prompt TEXT or pipe a text in".into());
    }
    let mut prompt = String::new();
    io::stdin().read_to_string(&mut prompt)?;
    Ok(prompt)
}

fn join(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}
