//! Each stage against a naive reference that is itself tested.

use super::*;
use crate::sampler::random::SplitMix64;

/// Logits on a grid of quarters, so that ties are common, some of them masked.
fn random_logits(random: &mut SplitMix64, len: usize) -> Vec<f32> {
    let mut logit = || match random.next_u64() % 64 {
        0 => f32::NEG_INFINITY,
        _ => (random.next_u64() % 81) as f32 / 4.0 - 10.0,
    };
    let mut logits: Vec<f32> = (0..len).map(|_| logit()).collect();
    logits[len / 2] = 10.0;
    logits
}

/// Seeds with logits of lengths around the sizes of lanes, chunks and blocks.
fn cases() -> impl Iterator<Item = (u64, SplitMix64, Vec<f32>)> {
    let lengths = [1, 2, 15, 16, 17, 127, 129, 255, 257, 1000, 4099];
    lengths.into_iter().cycle().zip(0..110).map(|(len, seed)| {
        let mut random = SplitMix64::new(seed);
        let logits = random_logits(&mut random, len);
        (seed, random, logits)
    })
}

fn candidate(token_id: u32, logit: f32) -> Candidate {
    Candidate { token_id, logit }
}

fn every_candidate(logits: &[f32]) -> Vec<Candidate> {
    let all = (0_u32..)
        .zip(logits)
        .map(|(token_id, &logit)| candidate(token_id, logit));
    all.filter(|c| c.logit > f32::NEG_INFINITY).collect()
}

fn ids(candidates: &[Candidate]) -> Vec<u32> {
    candidates.iter().map(|c| c.token_id).collect()
}

fn sorted(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_by(|a, b| {
        b.logit
            .total_cmp(&a.logit)
            .then_with(|| a.token_id.cmp(&b.token_id))
    });
    candidates
}

fn naive_top_k(logits: &[f32], top_k: usize) -> Vec<Candidate> {
    sorted(every_candidate(logits))
        .into_iter()
        .take(top_k)
        .collect()
}

fn naive_top_p(candidates: &[Candidate], top_p: f32) -> Vec<Candidate> {
    let sorted = sorted(candidates.to_vec());
    let mass = |c: &[Candidate]| c.iter().map(|c| f64::from(c.logit).exp()).sum::<f64>();
    let enough = |&n: &usize| mass(&sorted[..n]) / mass(&sorted) >= f64::from(top_p) - 1e-12;
    let n = (1..=sorted.len())
        .find(enough)
        .expect("all hold everything");
    sorted[..n].to_vec()
}

fn naive_min_p(candidates: &[Candidate], min_p: f32) -> Vec<Candidate> {
    let best = candidates
        .iter()
        .map(|c| c.logit)
        .fold(f32::NEG_INFINITY, f32::max);
    let floor = f64::from(best).exp() * f64::from(min_p);
    candidates
        .iter()
        .copied()
        .filter(|c| f64::from(c.logit).exp() >= floor)
        .collect()
}

fn naive_penalty(logit: f32, count: usize, options: &SamplingOptions) -> f32 {
    let theta = options.repetition_penalty;
    let repeated = if logit > 0.0 {
        logit / theta
    } else {
        logit * theta
    };
    match count {
        0 => logit,
        _ => repeated - count as f32 * options.frequency_penalty - options.presence_penalty,
    }
}

// Probabilities 0.1, 0.4, 0.3 and 0.2.
fn four_candidates() -> Vec<Candidate> {
    every_candidate(&[0.1_f32.ln(), 0.4_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()])
}

#[test]
fn naive_references_agree_with_worked_examples() {
    assert_eq!(
        ids(&naive_top_k(&[1.0, 3.0, f32::NEG_INFINITY, 3.0, 2.0], 3)),
        [1, 3, 4]
    );
    assert_eq!(ids(&naive_top_p(&four_candidates(), 0.65)), [1, 2]);
    assert_eq!(ids(&naive_top_p(&four_candidates(), 0.75)), [1, 2, 3]);
    assert_eq!(ids(&naive_top_p(&four_candidates(), 0.0)), [1]);
    assert_eq!(ids(&naive_min_p(&four_candidates(), 0.45)), [1, 2, 3]);
    assert_eq!(ids(&naive_min_p(&four_candidates(), 0.55)), [1, 2]);
    let options = SamplingOptions {
        repetition_penalty: 2.0,
        frequency_penalty: 0.25,
        presence_penalty: 1.0,
        ..SamplingOptions::greedy()
    };
    assert_eq!(naive_penalty(4.0, 3, &options), 0.25);
    assert_eq!(naive_penalty(-4.0, 1, &options), -9.25);
    assert_eq!(naive_penalty(4.0, 0, &options), 4.0);
}

#[test]
fn exp_is_within_1e_13_of_the_platforms() {
    for step in 0..=70_000 {
        let x = -f64::from(step) / 100.0;
        let error = (exp(x) / x.exp() - 1.0).abs();
        assert!(
            error <= 1e-13,
            "exp({x}): {} against {}, error {error}",
            exp(x),
            x.exp()
        );
    }
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(-701.0), 0.0);
    assert_eq!(exp(f64::NEG_INFINITY), 0.0);
}

#[test]
fn largest_agrees_with_a_plain_fold() {
    for (seed, _, mut logits) in cases() {
        let place = seed as usize % logits.len();
        logits[place] = 11.0;
        assert_eq!(largest(&logits), 11.0, "seed {seed}");
    }
    assert_eq!(largest(&[]), f32::NEG_INFINITY);
    assert_eq!(largest(&[f32::NEG_INFINITY; 40]), f32::NEG_INFINITY);
}

#[test]
fn all_below_infinity_finds_each_bad_place() {
    for (seed, _, mut logits) in cases() {
        assert!(all_below_infinity(&logits), "seed {seed}");
        let place = seed as usize % logits.len();
        for bad in [f32::NAN, f32::INFINITY] {
            logits[place] = bad;
            assert!(
                !all_below_infinity(&logits),
                "seed {seed}, {bad} at {place}"
            );
        }
    }
}

#[test]
fn add_bias_adds_up_and_bans() {
    let mut logits = [1.0, 2.0, 3.0, f32::MAX, f32::NEG_INFINITY];
    let bias = [
        (0, 0.5),
        (0, 0.25),
        (2, f32::NEG_INFINITY),
        (3, f32::MAX),
        (4, 9.0),
    ];
    add_bias(&mut logits, &bias);
    assert_eq!(
        logits,
        [1.75, 2.0, f32::NEG_INFINITY, f32::MAX, f32::NEG_INFINITY]
    );
}

#[test]
fn penalise_agrees_with_the_naive_reference() {
    for (seed, mut random, logits) in cases() {
        let options = SamplingOptions {
            repetition_penalty: 0.5 + random.next_unit() as f32,
            frequency_penalty: random.next_unit() as f32 - 0.5,
            presence_penalty: random.next_unit() as f32 - 0.5,
            ..SamplingOptions::greedy()
        };
        let n = logits.len() as u64;
        let mut window: Vec<u32> = (0..50).map(|_| (random.next_u64() % n) as u32).collect();
        window.sort_unstable();
        let mut penalised = logits.clone();
        penalise(&mut penalised, &window, &options);
        for (token_id, (&found, &logit)) in penalised.iter().zip(&logits).enumerate() {
            let count = window.iter().filter(|&&t| t as usize == token_id).count();
            let expected = naive_penalty(logit, count, &options);
            let close = found == expected || (found - expected).abs() <= 1e-5;
            assert!(
                close,
                "seed {seed}, token {token_id}: {found}, expected {expected}"
            );
        }
    }
}

#[test]
fn penalise_keeps_extreme_logits_finite_and_masks_masked() {
    let options = SamplingOptions {
        repetition_penalty: f32::MIN_POSITIVE,
        frequency_penalty: f32::MIN,
        presence_penalty: f32::MAX,
        ..SamplingOptions::greedy()
    };
    let mut logits = [f32::MAX, f32::MIN, f32::NEG_INFINITY];
    penalise(&mut logits, &[0, 0, 0, 1, 1, 1, 2, 2, 2], &options);
    assert_eq!(logits, [f32::MAX, f32::MAX, f32::NEG_INFINITY]);
}

#[test]
fn keep_top_k_agrees_with_the_naive_reference() {
    let mut candidates = Vec::new();
    for (seed, _, logits) in cases() {
        for top_k in [1, 2, 3, 40, 128, 1000] {
            keep_top_k(&logits, top_k, &mut candidates);
            if top_k < logits.len() {
                assert_eq!(
                    candidates,
                    naive_top_k(&logits, top_k),
                    "seed {seed}, k {top_k}"
                );
            } else {
                assert_eq!(
                    candidates,
                    every_candidate(&logits),
                    "seed {seed}, k {top_k}"
                );
            }
        }
        keep_top_k(&logits, 0, &mut candidates);
        assert_eq!(candidates, every_candidate(&logits), "seed {seed}, k off");
    }
}

#[test]
fn keep_top_k_handles_rising_falling_and_equal_logits() {
    let rising: Vec<f32> = (0..4999).map(|i| i as f32).collect();
    let falling: Vec<f32> = rising.iter().rev().copied().collect();
    let mut candidates = Vec::new();
    for logits in [rising, falling, vec![-3.0; 4999]] {
        keep_top_k(&logits, 40, &mut candidates);
        assert_eq!(candidates, naive_top_k(&logits, 40));
    }
}

#[test]
fn keep_top_p_agrees_with_the_naive_reference() {
    for (seed, _, logits) in cases().filter(|(_, _, logits)| logits.len() <= 1000) {
        // The second set is flat, so that most of it must be sorted.
        let flat: Vec<f32> = logits.iter().map(|logit| logit / 50.0).collect();
        for (logits, top_p) in [&logits, &flat]
            .into_iter()
            .zip([0.0, 0.3, 0.95, 0.999].repeat(2))
        {
            let mut candidates = every_candidate(logits);
            let expected = naive_top_p(&candidates, top_p);
            keep_top_p(&mut candidates, largest(logits), top_p);
            assert_eq!(candidates, expected, "seed {seed}, p {top_p}");
        }
    }
}

#[test]
fn keep_top_p_of_one_changes_nothing() {
    let mut candidates = four_candidates();
    keep_top_p(&mut candidates, 0.4_f32.ln(), 1.0);
    assert_eq!(candidates, four_candidates());
}

#[test]
fn keep_min_p_agrees_with_the_naive_reference() {
    for (seed, _, logits) in cases() {
        for min_p in [0.0, 1e-6, 0.05, 0.3, 1.0] {
            let mut candidates = every_candidate(&logits);
            let expected = naive_min_p(&candidates, min_p);
            keep_min_p(&mut candidates, largest(&logits), min_p);
            assert_eq!(candidates, expected, "seed {seed}, min_p {min_p}");
        }
    }
}

#[test]
fn draw_follows_the_shares_of_the_unit_interval() {
    let best = 0.4_f32.ln();
    let draw = |temperature, unit| draw(&four_candidates(), best, temperature, unit);
    // The running sums are 0.1, 0.5, 0.8 and 1.
    let drawn = [0.0, 0.09, 0.11, 0.49, 0.51, 0.79, 0.81].map(|unit| draw(1.0, unit));
    assert_eq!(drawn, [0, 0, 1, 1, 2, 2, 3]);
    assert_eq!(draw(1.0, 1.0 - f64::EPSILON / 2.0), 3);
    // At temperature 1/2 the probabilities are 1, 16, 9 and 4 thirtieths.
    let drawn = [0.032, 0.034, 0.566, 0.567, 0.866, 0.867].map(|unit| draw(0.5, unit));
    assert_eq!(drawn, [0, 1, 1, 2, 2, 3]);
    assert_eq!(draw(f32::from_bits(1), 0.999), 1);
    assert_eq!(
        draw(f32::from_bits(1), 0.0),
        1,
        "a token of probability 0 is never drawn"
    );
    assert_eq!(
        [0.24, 0.26, 0.51, 0.76].map(|unit| draw(f32::MAX, unit)),
        [0, 1, 2, 3]
    );
}
