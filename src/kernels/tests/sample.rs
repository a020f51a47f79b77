//! The choice of the next token: the kernels against their twins, the twin against the CPU's sampler.

use super::{Random, gpu, padded, run_kernel, unwritten_words, variants};
use crate::device::wgpu::context::Context;
use crate::kernels::logit_maxima::{self, GROUP};
use crate::kernels::sample::{self, Chosen};
use crate::kernels::sentinel;
use crate::kernels::{BatchParams, Kernel};
use crate::sampler::{PlainSampling, Sampler, SamplingOptions};

/// One, tails, groups, those of real models.
const N_LOGITS: [usize; 9] = [1, 7, 33, 1023, GROUP, 4097, 32_000, 49_152, 128_256];

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Up to 8.
    Random,
    /// Only whole numbers, so that many are equal.
    Ties,
    /// All are equal.
    Flat,
    /// Zeros of both signs, with a few more below.
    Zeros,
    /// Each token far below the one before it.
    Steep,
    /// The best ones last, and side by side.
    Rising,
    /// Near the largest floats of both signs.
    Huge,
}

impl Shape {
    const ALL: [Shape; 7] = [
        Shape::Random,
        Shape::Ties,
        Shape::Flat,
        Shape::Zeros,
        Shape::Steep,
        Shape::Rising,
        Shape::Huge,
    ];

    fn fill(self, random: &mut Random, count: usize) -> Vec<f32> {
        let mut logit = |token: usize| match self {
            Shape::Random => random.signed() * 8.0,
            Shape::Ties => (random.signed() * 8.0).round(),
            Shape::Flat => 1.5,
            Shape::Zeros => [0.0, -0.0, -0.0, -1e-3][random.bits() as usize % 4],
            Shape::Steep => token as f32 * -3.0,
            Shape::Rising => token as f32 * 1e-2,
            Shape::Huge => random.signed() * f32::MAX,
        };
        (0..count).map(&mut logit).collect()
    }
}

/// A row of logits behind another one, which nobody should look at.
fn rows(logits: &[f32]) -> Vec<u8> {
    let other = vec![1e30; logits.len()];
    padded(&[other, logits.to_vec()].concat(), logits.len())
}

const BATCH: BatchParams = BatchParams {
    n_rows: 3,
    position: 8,
    n_outputs: 2,
    random: 0,
};

/// What is wrong with a kernel's maxima.
fn judge_maxima(
    context: &Context,
    kernel: &Kernel,
    logits: &[f32],
    n_tokens: usize,
) -> Result<(), String> {
    let params = logit_maxima::Params::new(logits.len(), n_tokens);
    let n_words = logit_maxima::n_words(logits.len());
    let [x, y, z] = logit_maxima::grid(logits.len());
    let buffers = run_kernel(
        context,
        kernel,
        &variants(kernel, true)[0],
        BATCH,
        bytemuck::bytes_of(&params),
        [x + 1, y, z],
        &[&rows(logits), &unwritten_words(n_words + 8)],
    );
    let got: Vec<u32> = bytemuck::pod_collect_to_vec(&buffers[1]);
    let mut want = logit_maxima::twin(logits, n_tokens);
    want.extend_from_slice(bytemuck::cast_slice(&unwritten_words(8)));
    match (0..want.len()).find(|&word| got[word] != want[word]) {
        None => Ok(()),
        Some(word) => Err(format!(
            "{} logits, {n_tokens} tokens: word {word} is {:#x}, expected {:#x}",
            logits.len(),
            got[word],
            want[word]
        )),
    }
}

/// Logits of every kind, the number of tokens among them.
fn maxima_cases() -> Vec<(Vec<f32>, usize)> {
    let mut cases = Vec::new();
    for (seed, n_logits) in (1..).zip(N_LOGITS) {
        let mut random = Random::new(seed);
        for n_tokens in [n_logits, (n_logits * 3).div_ceil(4)] {
            for shape in Shape::ALL {
                cases.push((shape.fill(&mut random, n_logits), n_tokens));
            }
            for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-45] {
                let mut logits = vec![-0.0; n_logits];
                logits[random.bits() as usize % n_logits] = wrong;
                cases.push((logits.clone(), n_tokens));
                *logits.last_mut().unwrap() = wrong;
                cases.push((logits, n_tokens));
            }
            cases.push((vec![0.0; n_logits], n_tokens));
        }
    }
    cases
}

#[test]
fn logit_maxima_matches_its_twin() {
    let Some(context) = gpu() else { return };
    for (logits, n_tokens) in maxima_cases() {
        judge_maxima(context, &logit_maxima::KERNEL, &logits, n_tokens).unwrap();
    }
}

#[test]
fn mistakes_in_logit_maxima_are_found() {
    let Some(context) = gpu() else { return };
    for (from, to) in [
        (
            "tokens < vec4<u32>(p.n_tokens)",
            "tokens <= vec4<u32>(p.n_tokens)",
        ),
        ("max(a & vec4<u32>(MAGNITUDE)", "max(a"),
        (", b & vec4<u32>(MAGNITUDE)", ", b"),
        ("max(each.z, each.w)", "each.z"),
        ("best_of(d, token + 12u)", "best_of(d, token + 8u)"),
        ("larger(c, d)", "larger(c, c)"),
        ("max(largest[lane], largest[lane + gap])", "largest[lane]"),
        ("(batch.n_outputs - 1u)", "0u"),
        ("gap == BLOCK / 2u", "gap == BLOCK"),
        ("b.x > a.x", "b.x >= a.x"),
        ("tokens.z, keys.z == key", "tokens.z, false"),
        ("group >= n_groups", "group > n_groups"),
    ] {
        let kernel = altered(&logit_maxima::KERNEL, from, to);
        let is_wrong = |(logits, n_tokens): &(Vec<f32>, usize)| {
            judge_maxima(context, &kernel, logits, *n_tokens).is_err()
        };
        assert!(
            maxima_cases().iter().any(is_wrong),
            "`{to}` was not noticed"
        );
    }
}

fn altered(kernel: &Kernel, from: &str, to: &str) -> Kernel {
    assert_eq!(kernel.wgsl.matches(from).count(), 1, "`{from}`");
    Kernel {
        name: String::leak(format!("{} with `{to}`", kernel.name)),
        wgsl: String::leak(kernel.wgsl.replace(from, to)),
        ..*kernel
    }
}

fn plain(n_tokens: usize, options: &SamplingOptions) -> PlainSampling {
    Sampler::new(options, n_tokens).unwrap().plain().unwrap()
}

/// Ways to sample, all of them within what the kernel has room for.
fn options() -> Vec<SamplingOptions> {
    let all = SamplingOptions {
        temperature: 1.0,
        top_k: 64,
        top_p: 1.0,
        min_p: 0.0,
        ..Default::default()
    };
    let with = |alter: fn(&mut SamplingOptions)| {
        let mut options = all.clone();
        alter(&mut options);
        options
    };
    vec![
        SamplingOptions::greedy(),
        SamplingOptions::default(),
        all.clone(),
        with(|o| o.top_k = 1),
        with(|o| o.top_k = 2),
        with(|o| o.top_k = 33),
        with(|o| o.top_p = 0.5),
        with(|o| o.top_p = 0.0),
        with(|o| o.min_p = 0.3),
        with(|o| o.min_p = 1.0),
        with(|o| o.temperature = 0.1),
        with(|o| o.temperature = 1e-40),
        with(|o| (o.temperature, o.min_p) = (3.0, 0.02)),
        with(|o| (o.temperature, o.top_p) = (0.5, 0.9)),
    ]
}

fn choose(
    context: &Context,
    kernel: &Kernel,
    logits: &[f32],
    sampling: &PlainSampling,
    random: u32,
) -> Chosen {
    let params = sample::Params::new(logits.len(), sampling).unwrap();
    let maxima = logit_maxima::twin(logits, sampling.n_tokens);
    let buffers = run_kernel(
        context,
        kernel,
        &variants(kernel, true)[0],
        BatchParams { random, ..BATCH },
        bytemuck::bytes_of(&params),
        sample::GRID,
        &[
            &rows(logits),
            bytemuck::cast_slice(&maxima),
            &unwritten_words(4),
            &unwritten_words(5),
        ],
    );
    let chosen: Chosen = bytemuck::pod_read_unaligned(&buffers[3]);
    let tokens: Vec<u32> = bytemuck::pod_collect_to_vec(&buffers[2]);
    assert_eq!(tokens[0], chosen.token);
    assert_eq!(buffers[2][4..], unwritten_words(3));
    chosen
}

/// A share of the probability so close to a boundary may fall to either side of it.
const CLOSE: f32 = 1e-5;

/// What is wrong with a choice of the kernel.
fn judge(
    context: &Context,
    kernel: &Kernel,
    logits: &[f32],
    sampling: &PlainSampling,
    random: u32,
) -> Result<(), String> {
    let chosen = choose(context, kernel, logits, sampling, random);
    let got = (chosen.token, chosen.n_candidates as usize);
    let want = sample::twin(logits, sampling, random);
    let place = |token: u32| {
        let key = |token: u32| (!logit_maxima::ordered(logits[token as usize]), token);
        let before = |&other: &u32| key(other) < key(token);
        (0..sampling.n_tokens as u32).filter(before).count()
    };
    let step = (CLOSE * 2f32.powi(32)) as u32;
    let neighbours = |share: f32| {
        [
            share,
            share * (1.0 - CLOSE),
            (share * (1.0 + CLOSE)).min(1.0),
        ]
    };
    let agrees_with = |sampling: &PlainSampling| {
        let (first, n) = sample::twin(logits, sampling, random.saturating_sub(step));
        let last = random
            .checked_add(step)
            .map(|random| sample::twin(logits, sampling, random));
        let last = last.map_or(n, |(token, _)| place(token));
        got.1 == n && (place(first)..=last).contains(&place(got.0))
    };
    let is_allowed = got == want
        || neighbours(sampling.top_p).into_iter().any(|top_p| {
            neighbours(sampling.min_p).into_iter().any(|min_p| {
                agrees_with(&PlainSampling {
                    top_p,
                    min_p,
                    ..*sampling
                })
            })
        });
    if !is_allowed {
        let n_logits = logits.len();
        return Err(format!(
            "{n_logits} logits, {sampling:?}, random {random}: (token, candidates) {got:?}, expected {want:?}"
        ));
    }
    let largest = sentinel::largest(logits);
    let of_tokens = logits[..sampling.n_tokens].iter();
    let best = of_tokens.map(|&logit| logit_maxima::ordered(logit)).max();
    let want = (largest, BATCH.position + BATCH.n_rows, best);
    if (chosen.largest, chosen.position, Some(chosen.best)) != want {
        return Err(format!(
            "{chosen:?}, expected (largest, position, best) {want:?}"
        ));
    }
    Ok(())
}

/// Calls `visit` with logits, sampling and random numbers of every kind, until it says to stop.
fn visit_cases(sizes: &[usize], mut visit: impl FnMut(&[f32], &PlainSampling, u32) -> bool) {
    for (seed, &n_logits) in (1..).zip(sizes) {
        let mut random = Random::new(seed);
        for shape in Shape::ALL {
            let logits = shape.fill(&mut random, n_logits);
            for options in options() {
                let n_tokens = if random.signed() < 0.3 {
                    n_logits
                } else {
                    (n_logits * 3).div_ceil(4)
                };
                let number = [0, u32::MAX, random.bits() as u32][random.bits() as usize % 3];
                if visit(&logits, &plain(n_tokens, &options), number) {
                    return;
                }
            }
        }
    }
}

#[test]
fn sample_matches_its_twin() {
    let Some(context) = gpu() else { return };
    visit_cases(&N_LOGITS, |logits, sampling, random| {
        judge(context, &sample::KERNEL, logits, sampling, random).unwrap();
        false
    });
}

#[test]
fn mistakes_in_sample_are_found() {
    let Some(context) = gpu() else { return };
    for (from, to) in [
        ("a.x == b.x && a.y < b.y", "a.x == b.x && a.y > b.y"),
        ("found[i].x >= floor", "found[i].x > floor"),
        ("max(kept[n - 1u].x, 1u)", "max(kept[0].x, 1u)"),
        ("if n == p.top_k", "if n > 0u"),
        ("token >= p.n_tokens", "token >= p.stride"),
        ("item < n * fan_out", "item + 1u < n * fan_out"),
        ("size == 256u", "size == 16u"),
        ("other < n; other++", "other < n - 1u; other++"),
        ("/ parent * parent", ""),
        ("min(n, p.top_k)", "min(n, 64u)"),
        ("p.top_p >= 1.0 || ", ""),
        ("held.x < p.top_p * held.y", "held.x < p.top_p"),
        (
            "weights[lane] >= p.min_p",
            "exp(below * p.inverse_temperature) >= p.min_p",
        ),
        (
            "inverse_temperature), is_candidate",
            "inverse_temperature), true",
        ),
        ("exp(below * p.inverse_temperature)", "exp(below)"),
        ("batch.random >> 8u", "batch.random >> 9u"),
        ("i < lane)", "i <= lane)"),
        ("(batch.n_outputs - 1u)", "0u"),
        ("batch.position + batch.n_rows", "batch.position"),
        ("atomicLoad(&largest)", "0u"),
        ("atomicMax(&largest", "atomicAdd(&largest"),
        ("best = kept[0].x", "best = kept[1].x"),
    ] {
        let kernel = altered(&sample::KERNEL, from, to);
        let mut is_noticed = false;
        visit_cases(&[33, 4097, 49_152], |logits, sampling, random| {
            is_noticed = judge(context, &kernel, logits, sampling, random).is_err();
            is_noticed
        });
        assert!(is_noticed, "`{to}` was not noticed");
    }
}

#[test]
fn twin_of_sample_chooses_as_the_sampler_does() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let shape = Shape::ALL[seed as usize % 5];
        let n_tokens = 1 + random.bits() as usize % 500;
        let logits = shape.fill(&mut random, n_tokens);
        for options in options() {
            let options = SamplingOptions {
                seed: Some(seed),
                ..options
            };
            let mut sampler = Sampler::new(&options, n_tokens).unwrap();
            let mut device = sampler.clone();
            // Where nothing is left out the sampler draws in the order of the ids.
            if options.top_k >= n_tokens && options.top_p == 1.0 {
                continue;
            }
            for _ in 0..20 {
                let (token, _) = sample::twin(&logits, &device.plain().unwrap(), device.draw());
                let want = sampler.sample(&logits, &[]).unwrap();
                assert_eq!(token, want, "seed {seed}, {shape:?}, {options:?}");
            }
        }
    }
}

/// Pearson's statistic of `draws` choices against the sampler's own shares, and its degrees of freedom.
fn chi_squared(context: &Context, kernel: &Kernel, draws: usize) -> (f64, usize) {
    const N_TOKENS: usize = 50;
    const N_EXPECTED: usize = 200_000;
    let logits: Vec<f32> = {
        let mut random = Random::new(5);
        (0..N_TOKENS).map(|_| random.signed() * 2.0).collect()
    };
    let options = SamplingOptions {
        temperature: 0.7,
        top_k: 12,
        seed: Some(1),
        ..Default::default()
    };
    let mut expected = [0.0; N_TOKENS];
    let mut sampler = Sampler::new(&options, N_TOKENS).unwrap();
    for _ in 0..N_EXPECTED {
        let token = sampler.sample(&logits, &[]).unwrap();
        expected[token as usize] += draws as f64 / N_EXPECTED as f64;
    }
    let options = SamplingOptions {
        seed: Some(2),
        ..options
    };
    let mut sampler = Sampler::new(&options, N_TOKENS).unwrap();
    let sampling = sampler.plain().unwrap();
    let mut counts = [0.0; N_TOKENS];
    for _ in 0..draws {
        let chosen = choose(context, kernel, &logits, &sampling, sampler.draw());
        counts[chosen.token as usize] += 1.0;
    }
    let candidates: Vec<usize> = (0..N_TOKENS).filter(|&t| expected[t] > 0.0).collect();
    let n_outside: f64 =
        counts.iter().sum::<f64>() - candidates.iter().map(|&token| counts[token]).sum::<f64>();
    assert_eq!(n_outside, 0.0, "a token that is no candidate was chosen");
    let term = |&token: &usize| (counts[token] - expected[token]).powi(2) / expected[token];
    (candidates.iter().map(term).sum(), candidates.len() - 1)
}

#[test]
fn sample_draws_with_the_shares_of_the_sampler() {
    let Some(context) = gpu() else { return };
    // Above this once in a thousand for 8 to 11 degrees of freedom (31.3 for 11, tables of the distribution).
    const BOUND: f64 = 31.3;
    let (statistic, freedom) = chi_squared(context, &sample::KERNEL, 1000);
    assert!((8..=11).contains(&freedom), "{freedom} degrees of freedom");
    assert!(statistic <= BOUND, "chi-squared is {statistic:.1}");
    let tempered = "exp(below * p.inverse_temperature)";
    let wrong = altered(
        &sample::KERNEL,
        tempered,
        "exp(below * p.inverse_temperature * 0.6)",
    );
    let (statistic, _) = chi_squared(context, &wrong, 1000);
    assert!(
        !(statistic <= BOUND),
        "a wrong temperature gives {statistic:.1}"
    );
}

#[test]
fn options_beyond_the_kernel_are_left_to_the_sampler() {
    let room = |n_logits: usize, options: &SamplingOptions| {
        sample::Params::new(n_logits, &plain(n_logits, options)).is_some()
    };
    let with_top_k = |top_k| SamplingOptions {
        top_k,
        ..Default::default()
    };
    assert!(room(128_256, &SamplingOptions::default()));
    assert!(room(128_256, &SamplingOptions::greedy()));
    assert!(room(128_256, &with_top_k(64)) && !room(128_256, &with_top_k(65)));
    assert!(!room(128_256, &with_top_k(0)) && room(64, &with_top_k(0)));
    assert!(room(GROUP * 1024, &with_top_k(1)) && !room(GROUP * 1024 + 1, &with_top_k(1)));

    let is_plain = |options: SamplingOptions| Sampler::new(&options, 9).unwrap().plain().is_some();
    let penalty = SamplingOptions {
        presence_penalty: 0.5,
        ..Default::default()
    };
    assert!(!is_plain(penalty.clone()));
    assert!(is_plain(SamplingOptions {
        penalty_window: 0,
        ..penalty
    }));
    assert!(!is_plain(SamplingOptions {
        logit_bias: vec![(3, 1.0)],
        ..Default::default()
    }));
}
