//! Compare with another engine: `cargo run --release --example compare -- --url http://127.0.0.1:8080`.

#[path = "support/server.rs"]
mod server;
mod support;

use server::{Api, Reply, Server};
use std::io::{self, Write};
use std::process::ExitCode;
use support::{Result, options};
use trueshot::compare::{Choice, Difference, Rated, Token, cut_like, first_difference};
use trueshot::{FinishReason, SamplingOptions, Session, Tokenizer};

const ABOUT: &str = "\
compare: run a prompt here and on a server that has the same model, and find the first token that differs

usage: cargo run --release --example compare -- --url URL --prompt TEXT [OPTIONS]

Both take the most probable token each time. Exits with 1 where the answers differ, and says whether rounding
explains it (a near tie), and with 1 too where the server gives no answer.

  --url URL          of llama.cpp's server or an OpenAI-compatible one [http://127.0.0.1:8080]
  --api API          auto, llama (POST /completion) or openai (POST /v1/completions) [auto]
  --server-model M   what an OpenAI-compatible server calls the model [the first it lists]
  --timeout N        seconds to wait for the server [600]
";

const PROMPT: &str = "The capital of France is";

fn main() -> ExitCode {
    support::run(compare)
}

fn compare() -> Result {
    let mut server = Server {
        url: "http://127.0.0.1:8080".to_owned(),
        api: Api::Auto,
        model: None,
        timeout_seconds: 600,
    };
    let mut options = options::Options::parse(ABOUT, |name, parser| {
        match name {
            "url" => server.url = options::value(name, parser)?,
            "api" => server.api = options::value(name, parser)?,
            "server-model" => server.model = Some(options::value(name, parser)?),
            "timeout" => server.timeout_seconds = options::value(name, parser)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    options.generate.sampling = SamplingOptions::greedy();
    let prompt = options.prompt.as_deref().unwrap_or(PROMPT);
    let engine = options.load()?;
    let tokenizer = engine.tokenizer();
    let ids = tokenizer.encode_prompt(prompt, &[], options.generate.parse_special)?;
    let reply = server.complete(prompt, &ids, options.generate.max_tokens)?;

    let mut session = engine.session()?;
    let answer = session.generate(prompt, &options.generate)?.complete()?;
    let known = answer.tokens.iter().map(|&id| token_of(tokenizer, id));
    let mut ours = known.collect::<trueshot::Result<Vec<_>>>()?;
    if answer.finish_reason == FinishReason::EndOfGeneration {
        ours.push(Token::end());
    }
    let theirs = choices(tokenizer, reply, &ours)?;
    let n_compared = ours.len().min(theirs.len());
    if n_compared == 0 {
        return Err(format!("`{}`: the server's answer is empty", server.url).into());
    }
    let Some(mut difference) = first_difference(&ours, &theirs) else {
        let end = match ours[n_compared - 1].is_end {
            true => ", the last of them the end",
            false => "",
        };
        writeln!(io::stdout(), "{n_compared} tokens agree{end}")?;
        return Ok(());
    };
    rate(&mut session, &ids, &ours, &mut difference)?;
    report(&ours, &difference)
}

fn token_of(tokenizer: &Tokenizer, id: u32) -> trueshot::Result<Token> {
    Ok(Token {
        id: Some(id),
        bytes: tokenizer.token_bytes(id)?.into_owned(),
        is_end: tokenizer.is_end_of_generation(id),
    })
}

/// The server's answer in tokens: its own where it names ids, else its text in pieces like ours.
fn choices(tokenizer: &Tokenizer, mut reply: Reply, ours: &[Token]) -> Result<Vec<Choice>> {
    for choice in &mut reply.choices {
        let candidates = choice.candidates.iter_mut().map(|(token, _)| token);
        for token in candidates.chain([&mut choice.token]) {
            if let Some(id) = token.id {
                *token = token_of(tokenizer, id)
                    .map_err(|error| format!("the server has another model: {error}"))?;
            }
        }
    }
    if !reply.has_ids() {
        let (text, choices) = (&reply.text, &reply.choices);
        return Ok(cut_like(ours, text, choices, reply.has_ended));
    }
    let last = reply.choices.last();
    if reply.has_ended && !last.is_some_and(|choice| choice.token.is_end) {
        reply.choices.push(Choice {
            token: Token::end(),
            candidates: Vec::new(),
        });
    }
    Ok(reply.choices)
}

/// Runs the tokens before the difference once more for the probabilities there.
fn rate(
    session: &mut Session,
    prompt: &[u32],
    ours: &[Token],
    difference: &mut Difference,
) -> Result {
    let before = ours[..difference.position]
        .iter()
        .filter_map(|token| token.id);
    let tokens: Vec<u32> = prompt.iter().copied().chain(before).collect();
    let last = tokens.len() - 1;
    session.rewind(last)?;
    let logits = session.eval(&tokens[last..])?.to_vec();
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |logit: &f32| (f64::from(*logit) - highest).exp();
    let sum: f64 = logits.iter().map(weight).sum();
    let tokenizer = session.engine().tokenizer();
    for rated in [&mut difference.ours, &mut difference.theirs] {
        if rated.token.id.is_none() {
            rated.token.id = id_of(tokenizer, &rated.token, &logits);
        }
        let logit = rated.token.id.and_then(|id| logits.get(id as usize));
        rated.by_ours = logit.map(|logit| weight(logit) / sum);
    }
    Ok(())
}

/// The most probable token that ends an answer, or the first of the same bytes.
fn id_of(tokenizer: &Tokenizer, token: &Token, logits: &[f32]) -> Option<u32> {
    if token.is_end {
        let ids = tokenizer.end_of_generation_ids().iter().copied();
        let logit = |id: u32| {
            logits
                .get(id as usize)
                .copied()
                .unwrap_or(f32::NEG_INFINITY)
        };
        return ids.max_by(|&a, &b| logit(a).total_cmp(&logit(b)));
    }
    let bytes = |id: u32| tokenizer.token_bytes(id);
    (0..tokenizer.vocab_size() as u32)
        .find(|&id| bytes(id).is_ok_and(|bytes| *bytes == token.bytes))
}

/// Says how the answers differ, and fails.
fn report(ours: &[Token], difference: &Difference) -> Result {
    let n_agree = difference.position;
    let before: Vec<u8> = ours[..n_agree]
        .iter()
        .flat_map(|token| token.bytes.clone())
        .collect();
    let before = String::from_utf8_lossy(&before);
    let mut out = io::stdout().lock();
    writeln!(out, "{n_agree} tokens agree: {before:?}")?;
    writeln!(out, "token {} differs:", n_agree + 1)?;
    let mut show = |who: &str, rated: &Rated| {
        let probability = |p: Option<f64>| p.map_or("unknown".to_owned(), |p| format!("{p:.4}"));
        let [by_ours, by_theirs] = [rated.by_ours, rated.by_theirs].map(probability);
        let token: String = rated.token.to_string().chars().take(40).collect();
        writeln!(
            out,
            "  {who} {token:24} trueshot {by_ours:>7}, server {by_theirs:>7}"
        )
    };
    show("trueshot:", &difference.ours)?;
    show("server:  ", &difference.theirs)?;
    let verdict = match difference.is_near_tie() {
        true => "a near tie: rounding explains it",
        false => "not a near tie: rounding does not explain it",
    };
    writeln!(out, "{verdict}")?;
    Err(format!("the answers differ at token {}, {verdict}", n_agree + 1).into())
}
