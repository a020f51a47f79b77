//! The stages of sampling, each one a function. The module's text has the formulas and sources.

use std::cmp::Ordering;

use super::SamplingOptions;

/// A token that can still be chosen. Its logit is never NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub token_id: u32,
    pub logit: f32,
}

/// The largest logit first, the lowest id first among equals.
fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    let by_logit = b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal);
    by_logit.then(a.token_id.cmp(&b.token_id))
}

/// The largest logit; −∞ where there is none.
pub(super) fn largest(logits: &[f32]) -> f32 {
    // Sixteen running maxima, because the compiler may not reorder one.
    let (chunks, tail) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes
        .iter()
        .chain(tail)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max)
}

/// Whether no logit is NaN or +∞.
pub(super) fn all_below_infinity(logits: &[f32]) -> bool {
    logits
        .chunks(256)
        .all(|chunk| chunk.iter().fold(true, |all, &l| all & (l < f32::INFINITY)))
}

/// Adds to each listed token's logit its bias.
pub(super) fn add_bias(logits: &mut [f32], bias: &[(u32, f32)]) {
    for &(token_id, bias) in bias {
        let logit = &mut logits[token_id as usize];
        *logit = (*logit + bias).min(f32::MAX);
    }
}

/// Applies the three penalties to the tokens of a sorted window; masked tokens stay masked.
pub(super) fn penalise(logits: &mut [f32], sorted_window: &[u32], options: &SamplingOptions) {
    for run in sorted_window.chunk_by(|a, b| a == b) {
        let logit = &mut logits[run[0] as usize];
        if *logit == f32::NEG_INFINITY {
            continue;
        }
        let factor = f64::from(options.repetition_penalty);
        let plain = f64::from(*logit);
        let repeated = if plain > 0.0 {
            plain / factor
        } else {
            plain * factor
        };
        let frequency = run.len() as f64 * f64::from(options.frequency_penalty);
        let penalised = repeated - frequency - f64::from(options.presence_penalty);
        // A penalty alone neither bans a token nor makes it certain.
        *logit = penalised.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
    }
}

/// Fills `candidates` with the `top_k` best tokens, best first, or with every token in the order
/// of the ids where `top_k` is 0 or leaves nothing out. Tokens at −∞ are left out.
pub(super) fn keep_top_k(logits: &[f32], top_k: usize, candidates: &mut Vec<Candidate>) {
    candidates.clear();
    let is_off = top_k == 0 || top_k >= logits.len();
    let n_full = if is_off {
        usize::MAX
    } else {
        top_k + top_k.max(1024)
    };
    let mut floor = f32::NEG_INFINITY;
    for (token_id, &logit) in (0_u32..).zip(logits) {
        if logit > floor {
            candidates.push(Candidate { token_id, logit });
            if candidates.len() == n_full {
                candidates.select_nth_unstable_by(top_k - 1, rank);
                candidates.truncate(top_k);
                // A later token with the same logit has a higher id, so it ranks behind.
                floor = candidates[top_k - 1].logit;
            }
        }
    }
    if !is_off {
        candidates.sort_unstable_by(rank);
        candidates.truncate(top_k);
    }
}

/// Keeps the fewest best candidates that hold at least `top_p` of the probability, best first;
/// leaves all as they are where `top_p` is 1. `best` is the largest logit.
pub(super) fn keep_top_p(candidates: &mut Vec<Candidate>, best: f32, top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let total: f64 = candidates.iter().map(|c| weight(c.logit, best, 1.0)).sum();
    let wanted = f64::from(top_p) * total;
    let mut held = 0.0;
    let mut n_sorted = 0;
    // Sorts no further than needed: few of many candidates hold nearly all of the probability.
    let mut n_block = 256;
    while n_sorted < candidates.len() {
        let rest = &mut candidates[n_sorted..];
        let n_more = n_block.min(rest.len());
        if n_more < rest.len() {
            rest.select_nth_unstable_by(n_more, rank);
        }
        rest[..n_more].sort_unstable_by(rank);
        for index in n_sorted..n_sorted + n_more {
            held += weight(candidates[index].logit, best, 1.0);
            if held >= wanted {
                candidates.truncate(index + 1);
                return;
            }
        }
        n_sorted += n_more;
        n_block *= 4;
    }
}

/// Keeps the candidates at least `min_p` times as probable as the best one, in their order.
/// `best` is the largest logit.
pub(super) fn keep_min_p(candidates: &mut Vec<Candidate>, best: f32, min_p: f32) {
    if min_p > 0.0 {
        candidates.retain(|c| weight(c.logit, best, 1.0) >= f64::from(min_p));
    }
}

/// The candidate at the share `unit` (in 0..1) of the candidates' probability at `temperature`.
/// `best` is the largest logit and belongs to a candidate.
pub(super) fn draw(candidates: &[Candidate], best: f32, temperature: f32, unit: f64) -> u32 {
    let weights = || {
        candidates
            .iter()
            .map(|c| weight(c.logit, best, temperature))
    };
    let target = unit * weights().sum::<f64>();
    let mut passed = 0.0;
    let index = weights().position(|weight| {
        passed += weight;
        passed > target
    });
    // The same sum in the same order ends above any share of it below 1.
    candidates[index.expect("a unit below 1 falls on a candidate")].token_id
}

/// A token's probability at a temperature, relative to that of the token whose logit is `best`:
/// exp((logit − best) / temperature).
fn weight(logit: f32, best: f32, temperature: f32) -> f64 {
    exp((f64::from(logit) - f64::from(best)) / f64::from(temperature))
}

/// The factors 1 / n! of the exponential's Taylor series.
const TAYLOR: [f64; 13] = [
    1.0,
    1.0,
    1.0 / 2.0,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5_040.0,
    1.0 / 40_320.0,
    1.0 / 362_880.0,
    1.0 / 3_628_800.0,
    1.0 / 39_916_800.0,
    1.0 / 479_001_600.0,
];

/// eˣ for x ≤ 0, as 2ᵏ · eʳ with r within ±ln(2)/2. The relative error is below 1e-13 down to
/// x = −700; below that the result is 0. `f64::exp` is the platform's, and platforms differ.
fn exp(x: f64) -> f64 {
    if x < -700.0 {
        return 0.0;
    }
    let k = (x * std::f64::consts::LOG2_E - 0.5) as i32;
    let r = x - f64::from(k) * std::f64::consts::LN_2;
    let two_to_k = f64::from_bits(((1023 + k) as u64) << 52);
    two_to_k
        * TAYLOR
            .iter()
            .rev()
            .fold(0.0, |sum, factor| sum * r + factor)
}

#[cfg(test)]
mod tests;
