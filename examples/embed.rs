//! How near texts are to each other: `cargo run --release --example embed -- --model bge-small-en-v1.5.gguf \
//! --text "A cat sat on the mat." --text "A kitten rests on a rug."`.

mod support;

use lexopt::ValueExt;
use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;
use support::{Result, options::Options};
use trueshot::{EmbedOptions, Pooling};

const ABOUT: &str = "\
embed: the cosine similarity of texts, by an encoder

usage: cargo run --release --example embed -- --model ENCODER --text TEXT --text TEXT [OPTIONS]

Without --text each line of a pipe is a text. A line for each pair: its similarity, from -1 to 1, and the two texts.

  --text TEXT        a text; as many as you like
  --vectors          print the vectors in place of that, each a line of JSON
";

fn main() -> ExitCode {
    support::run(embed)
}

fn embed() -> Result {
    let (mut texts, mut shows_vectors) = (Vec::new(), false);
    let options = Options::parse(ABOUT, |name, parser| {
        match name {
            "text" => texts.push(parser.value()?.string()?),
            "vectors" => shows_vectors = true,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let (_, gguf) = options.open()?;
    if texts.is_empty() && !io::stdin().is_terminal() {
        texts = io::stdin().lock().lines().collect::<Result<_, _>>()?;
    }
    let least = if shows_vectors { 1 } else { 2 };
    if texts.len() < least {
        let found = texts.len();
        return Err(format!("{found} texts, expected at least {least}: give --text TEXT").into());
    }

    let engine = options.build(gguf)?;
    let mut embedder = engine.embedder()?;
    let pooling = engine.spec().pooling;
    let options = EmbedOptions {
        // Texts are compared by one vector each.
        pooling: Some(Pooling::Mean).filter(|_| pooling == Some(Pooling::None)),
        ..EmbedOptions::default()
    };
    let vectors = texts.iter().map(|text| embedder.embed_with(text, &options));
    let vectors = vectors.collect::<trueshot::Result<Vec<_>>>()?;
    let mut stdout = io::stdout().lock();
    if shows_vectors {
        for vector in &vectors {
            writeln!(stdout, "{}", serde_json::to_string(vector)?)?;
        }
        return Ok(());
    }
    for (index, a) in vectors.iter().enumerate() {
        for (other, b) in vectors.iter().enumerate().skip(index + 1) {
            // Vectors are as long as 1.
            let cosine: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
            writeln!(stdout, "{cosine:7.4}  {} | {}", texts[index], texts[other])?;
        }
    }
    Ok(())
}
