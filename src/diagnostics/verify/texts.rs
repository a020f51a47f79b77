//! Whole texts through an encoder: what one gives must not depend on those before it.

use super::report::Outcome;
use super::sessions::{check_memory_of, wrong};
use crate::embedder::{EmbedOptions, Embedder};
use crate::engine::Engine;
use crate::error::Result;
use crate::kv_cache::KvLayout;
use crate::model::Pooling;

/// The vectors of all tokens, as the device gives them.
const RAW: EmbedOptions = EmbedOptions {
    pooling: Some(Pooling::None),
    normalise: false,
    parse_special: false,
};

/// An embedder with no more cache than these tokens need.
fn embedder(engine: &Engine, n_tokens: usize) -> Result<Embedder> {
    let kv = KvLayout {
        capacity: n_tokens,
        ..engine.kv_layout().clone()
    };
    Ok(Embedder::new(engine.clone(), engine.executor(&kv)?))
}

/// A text by an embedder that ran others before, longer and shorter ones, against a new one.
pub(super) fn check_texts(engine: &Engine, tokens: &[u32]) -> Result<Outcome> {
    let text = &tokens[..tokens.len().div_ceil(2)];
    let expected = embedder(engine, tokens.len())?.embed_tokens(text, &RAW)?;
    let mut used = embedder(engine, tokens.len())?;
    let others: Vec<u32> = tokens.iter().rev().copied().collect();
    for other in [&others[..], &others[..1]] {
        used.embed_tokens(other, &RAW)?;
        let found = used.embed_tokens(text, &RAW)?;
        let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
        if let Some(index) = found.iter().zip(&expected).position(differs) {
            let message = format!(
                "behind a text of {} tokens, element {index} of one of {} is {:e}, in a new embedder {:e}",
                other.len(),
                text.len(),
                found[index],
                expected[index]
            );
            return Ok(wrong("kv_cache", message));
        }
    }
    let n = text.len();
    Ok(Outcome::Right(format!(
        "an embedder that was used gives the bits of a new one, for {n} tokens"
    )))
}

/// What an embedder takes of the device's memory is given back with it.
pub(super) fn check_memory(engine: &Engine, tokens: &[u32]) -> Result<Outcome> {
    check_memory_of(engine, || {
        let mut embedder = embedder(engine, tokens.len())?;
        embedder.embed_tokens(tokens, &RAW)?;
        engine.memory()
    })
}
