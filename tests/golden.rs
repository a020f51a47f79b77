//! The two real models against reference results: ids, logits, greedy steps, the trace, perplexity.
//!
//! Each test says its class of precision. **f32**: native or F32 weights, f32 activations and cache.
//! **f16**: the same with a 16-bit cache, or with 16-bit activations in products of many rows.

mod support;

use serde::Deserialize;
use std::collections::BTreeMap;
use support::{centred_relative_error, eval_in_chunks, read_f32, shared};
use trueshot::{Activations, Device, Engine, KvType, WeightStorage};

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<Prompt>,
    trace_prompt: usize,
    trace: Vec<Tensor>,
    mean_nll: f64,
}

#[derive(Deserialize)]
struct Prompt {
    text: Option<String>,
    tokens: Vec<u32>,
    top10: Vec<(u32, f32)>,
    greedy: Vec<u32>,
    margin: Vec<f32>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    rms: f64,
    last_token_first8: Vec<f32>,
}

/// A model, its reference results and the file of its full logits.
#[derive(Clone, Copy)]
enum Model {
    SmolLm2,
    Gemma3,
}

impl Model {
    fn path(self) -> std::path::PathBuf {
        match self {
            Model::SmolLm2 => support::model::smollm2(),
            Model::Gemma3 => support::model::gemma3(),
        }
        .unwrap()
    }

    fn golden(self) -> Golden {
        serde_json::from_str(match self {
            Model::SmolLm2 => include_str!("data/golden/smollm2-135m-instruct-q4_1.json"),
            Model::Gemma3 => include_str!("data/golden/gemma-3-270m-q4_k_m.json"),
        })
        .unwrap()
    }

    /// A file of the reference data: that of the name's ending.
    fn reference(self, ending: &str) -> Option<std::path::PathBuf> {
        let name = match self {
            Model::SmolLm2 => "smollm2-135m-instruct-q4_1",
            Model::Gemma3 => "gemma-3-270m-q4_k_m",
        };
        shared(&format!("golden/{name}.{ending}"))
    }

    /// `[n_prompts, vocab_size]`, the last position of each prompt.
    fn logits(self) -> Option<Vec<f32>> {
        Some(read_f32(&self.reference("logits.f32")?))
    }

    /// The text of a prompt that is too long for the facts in `tests/data`.
    fn long_text(self, prompt: usize) -> Option<String> {
        let json = std::fs::read_to_string(self.reference("json")?).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        Some(json["prompts"][prompt]["text"].as_str().unwrap().to_owned())
    }

    /// With activations of 32-bit floats.
    fn engine(self, device: Device, kv: KvType, weights: WeightStorage) -> Engine {
        self.engine_with(Activations::F32, device, kv, weights)
    }

    fn engine_with(
        self,
        activations: Activations,
        device: Device,
        kv: KvType,
        weights: WeightStorage,
    ) -> Engine {
        let builder = Engine::builder(self.path())
            .activations(activations)
            .device(device)
            .kv(kv)
            .weights(weights);
        builder.context_length(1280).build().unwrap()
    }
}

/// What a class of precision allows.
struct Bounds {
    /// Relative L2 error of the mean-centred logits; four times as much for the long prompt.
    logits: f64,
    /// Greedy steps with a smaller margin are not compared.
    margin: f32,
    nll: f64,
}

fn f32_bounds(device: &Device) -> Bounds {
    let logits = match device {
        Device::Reference => 2e-5,
        Device::Cpu => 5e-5,
        Device::Gpu(_) | Device::Auto => 2e-4,
    };
    Bounds {
        logits,
        margin: 0.05,
        nll: 0.0005,
    }
}

const F16_BOUNDS: Bounds = Bounds {
    logits: 5e-3,
    margin: 0.2,
    nll: 0.002,
};

/// A prompt of more tokens than this is long: its errors have more positions to grow over.
const LONG_TOKENS: usize = 500;

fn check_logits(model: Model, engine: &Engine, bounds: &Bounds, prompts: std::ops::Range<usize>) {
    let golden = model.golden();
    let all = model.logits();
    let vocab_size = engine.spec().vocab_size;
    let mut session = engine.session().unwrap();
    for (index, prompt) in golden.prompts.iter().enumerate() {
        if !prompts.contains(&index) {
            continue;
        }
        session.rewind(0).unwrap();
        let logits = session.eval(&prompt.tokens).unwrap();
        let bound = bounds.logits
            * if prompt.tokens.len() > LONG_TOKENS {
                4.0
            } else {
                1.0
            };
        if let Some(all) = &all {
            let expected = &all[index * vocab_size..][..vocab_size];
            let error = centred_relative_error(logits, expected);
            println!(
                "prompt {index} ({} tokens): {error:.2e}, bound {bound:.0e}",
                prompt.tokens.len()
            );
            assert!(
                error <= bound,
                "prompt {index}: relative error {error:e}, bound {bound:e}"
            );
        }
        for &(token, expected) in &prompt.top10 {
            let error = (logits[token as usize] - expected).abs();
            let bound = 100.0 * bound as f32;
            assert!(
                error <= bound,
                "prompt {index}, token {token}: off by {error}, bound {bound}"
            );
        }
    }
}

/// Feeds the golden ids one after the other and compares the most likely token at every clear step.
fn check_greedy(model: Model, engine: &Engine, bounds: &Bounds) {
    let (mut compared, mut total) = (0, 0);
    let mut session = engine.session().unwrap();
    for (index, prompt) in model.golden().prompts.iter().enumerate() {
        session.rewind(0).unwrap();
        let mut logits = session.eval(&prompt.tokens).unwrap();
        for (step, (&token, &margin)) in prompt.greedy.iter().zip(&prompt.margin).enumerate() {
            total += 1;
            if margin > bounds.margin {
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                assert_eq!(
                    best,
                    Some(token as usize),
                    "prompt {index}, step {step}, margin {margin}"
                );
                compared += 1;
            }
            logits = session.eval(&[token]).unwrap();
        }
    }
    println!(
        "{compared} of {total} greedy steps compared (margin above {})",
        bounds.margin
    );
    assert!(
        compared * 2 > total,
        "only {compared} of {total} steps were compared"
    );
}

/// Every named tensor of the reference's trace of prompt 0. Class f32.
fn check_trace(model: Model, engine: &Engine) {
    let golden = model.golden();
    let prompt = &golden.prompts[golden.trace_prompt];
    let mut seen: BTreeMap<String, (Vec<f32>, usize)> = BTreeMap::new();
    let mut session = engine.session().unwrap();
    session
        .observe(&prompt.tokens, &mut |step| {
            seen.insert(step.name.to_owned(), (step.values.to_vec(), step.width));
        })
        .unwrap();
    for tensor in &golden.trace {
        // llama.cpp's `attn_norm-0` is `blk.0.attn_norm`.
        let name = match tensor.name.rsplit_once('-') {
            Some((name, layer)) => format!("blk.{layer}.{name}"),
            None => tensor.name.clone(),
        };
        let (values, width) = seen
            .get(&name)
            .unwrap_or_else(|| panic!("no step `{name}`"));
        // The reference's last layer keeps the output row alone from some tensor on.
        let rms_of = |values: &[f32]| {
            let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
            (squares / values.len() as f64).sqrt()
        };
        let last = &values[values.len() - width..];
        let close = |rms: f64| (rms / tensor.rms - 1.0).abs() <= 1e-3;
        assert!(
            close(rms_of(values)) || close(rms_of(last)),
            "`{name}`: rms {} (last row {}), expected {}",
            rms_of(values),
            rms_of(last),
            tensor.rms
        );
        for (column, (&found, &expected)) in last.iter().zip(&tensor.last_token_first8).enumerate()
        {
            let error = f64::from((found - expected).abs());
            assert!(
                error <= 1e-3 * tensor.rms,
                "`{name}`, column {column}: {found}, expected {expected}, rms {}",
                tensor.rms
            );
        }
    }
    println!("{} tensors of the trace agree", golden.trace.len());
}

/// The first 1024 tokens of the evaluation text.
fn eval_tokens(engine: &Engine) -> Option<Vec<u32>> {
    let text = std::fs::read_to_string(shared("golden/eval.txt")?).unwrap();
    let mut tokens = engine.tokenizer().encode(&text, true, false).unwrap();
    tokens.truncate(1024);
    Some(tokens)
}

/// Negative log-likelihood of a token under a row of logits.
fn nll(row: &[f32], token: u32) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&logit| f64::from(logit - most).exp()).sum();
    sum.ln() - f64::from(row[token as usize] - most)
}

/// Mean negative log-likelihood of the evaluation text.
fn check_nll(model: Model, engine: &Engine, bounds: &Bounds) {
    let Some(tokens) = eval_tokens(engine) else {
        return;
    };
    let logits = engine.session().unwrap().eval_all(&tokens).unwrap();
    let rows = logits.chunks_exact(engine.spec().vocab_size);
    let total: f64 = rows
        .zip(&tokens[1..])
        .map(|(row, &next)| nll(row, next))
        .sum();
    check_mean_nll(model, total / (tokens.len() - 1) as f64, bounds);
}

fn check_mean_nll(model: Model, mean: f64, bounds: &Bounds) {
    let golden = model.golden().mean_nll;
    println!(
        "mean NLL {mean:.6}, reference {golden:.6}, difference {:.1e}",
        mean - golden
    );
    assert!(
        (mean - golden).abs() <= bounds.nll,
        "mean NLL {mean}, reference {golden}"
    );
}

/// All checks of class f32.
fn check_f32(model: Model, device: Device, with_nll: bool) {
    let bounds = f32_bounds(&device);
    let engine = model.engine(device, KvType::F32, WeightStorage::Native);
    check_trace(model, &engine);
    check_logits(model, &engine, &bounds, 0..9);
    check_greedy(model, &engine, &bounds);
    if with_nll {
        check_nll(model, &engine, &bounds);
    }
}

#[test]
fn golden_token_ids_are_exact() {
    for model in [Model::SmolLm2, Model::Gemma3] {
        let gguf = trueshot::gguf::Gguf::open(model.path()).unwrap();
        let tokenizer = trueshot::Tokenizer::from_metadata(gguf.metadata()).unwrap();
        for (index, prompt) in model.golden().prompts.into_iter().enumerate() {
            let Some(text) = prompt.text.or_else(|| model.long_text(index)) else {
                continue;
            };
            assert_eq!(
                tokenizer.encode(&text, true, true).unwrap(),
                prompt.tokens,
                "{text:?}"
            );
        }
    }
}

#[test]
fn golden_smollm2_on_the_reference() {
    check_f32(Model::SmolLm2, Device::Reference, true);
}

#[test]
fn golden_smollm2_on_the_cpu() {
    check_f32(Model::SmolLm2, Device::Cpu, true);
}

#[test]
fn golden_smollm2_on_the_gpu() {
    let Some(device) = support::gpu() else { return };
    check_f32(Model::SmolLm2, device, support::gpu_is_real());
}

#[test]
fn golden_gemma3_on_the_reference() {
    check_f32(Model::Gemma3, Device::Reference, true);
}

#[test]
fn golden_gemma3_on_the_cpu() {
    check_f32(Model::Gemma3, Device::Cpu, true);
}

#[test]
fn golden_gemma3_on_the_gpu() {
    let Some(device) = support::gpu() else { return };
    check_f32(Model::Gemma3, device, support::gpu_is_real());
}

/// The class f16: a 16-bit cache. A software GPU is too slow for the perplexity, and for more than the
/// short prompts' logits of gemma-3-270m and of cooperative matrices.
fn check_f16(model: Model, device: Device, activations: Activations) {
    let is_slow = matches!(device, Device::Gpu(_)) && !support::gpu_is_real();
    let engine = model.engine_with(activations, device, KvType::F16, WeightStorage::Native);
    if is_slow && (matches!(model, Model::Gemma3) || activations == Activations::F16) {
        return check_logits(model, &engine, &F16_BOUNDS, 0..8);
    }
    check_logits(model, &engine, &F16_BOUNDS, 0..9);
    check_greedy(model, &engine, &F16_BOUNDS);
    if !is_slow {
        check_nll(model, &engine, &F16_BOUNDS);
    }
}

#[test]
fn golden_smollm2_with_an_f16_cache_on_the_cpu() {
    check_f16(Model::SmolLm2, Device::Cpu, Activations::F32);
}

#[test]
fn golden_gemma3_with_an_f16_cache_on_the_cpu() {
    check_f16(Model::Gemma3, Device::Cpu, Activations::F32);
}

#[test]
fn golden_smollm2_with_an_f16_cache_on_the_gpu() {
    let Some(device) = support::gpu() else { return };
    check_f16(Model::SmolLm2, device, Activations::F32);
}

#[test]
fn golden_gemma3_with_an_f16_cache_on_the_gpu() {
    let Some(device) = support::gpu() else { return };
    check_f16(Model::Gemma3, device, Activations::F32);
}

#[test]
fn golden_smollm2_with_f16_activations_on_the_gpu() {
    let Some(device) = support::gpu() else { return };
    check_f16(Model::SmolLm2, device, Activations::F16);
}

#[test]
fn golden_gemma3_with_f16_activations_on_the_gpu() {
    let Some(device) = support::gpu() else { return };
    check_f16(Model::Gemma3, device, Activations::F16);
}

/// Class f32: what a token gets does not depend on the tokens that ran beside it.
#[test]
fn golden_prefill_gives_the_same_logits_in_chunks_of_any_size() {
    const BOUND: f64 = 2e-5;
    let model = Model::SmolLm2;
    let tokens = &model.golden().prompts[8].tokens[..150];
    for device in support::devices() {
        if device == Device::Reference {
            continue;
        }
        let engine = model.engine(device.clone(), KvType::F32, WeightStorage::Native);
        let mut session = engine.session().unwrap();
        let at_once = eval_in_chunks(&mut session, tokens, tokens.len());
        for size in [1, 7, 64] {
            let logits = eval_in_chunks(&mut session, tokens, size);
            let error = centred_relative_error(&logits, &at_once);
            println!("{device}, chunks of {size}: {error:.1e}, bound {BOUND:.0e}");
            assert!(error <= BOUND, "{device}, chunks of {size}: {error:e}");
        }
    }
}

const INT8_BOUNDS: Bounds = Bounds {
    logits: 0.065,
    margin: 1.0,
    nll: 0.01,
};

/// The class int8: activations rounded to 8 bits where few rows meet quantised weights, so every token
/// runs by itself. On a software GPU the short prompts alone.
fn check_int8(model: Model, device: Device) {
    let is_slow = !support::gpu_is_real();
    let engine = Engine::builder(model.path())
        .device(device)
        .kv(KvType::F32)
        .activations(Activations::Int8)
        .context_length(1280)
        .build()
        .unwrap();
    let vocab_size = engine.spec().vocab_size;
    let mut session = engine.session().unwrap();
    let all = model.logits();
    for (index, prompt) in model.golden().prompts.iter().enumerate() {
        if is_slow && prompt.tokens.len() > 20 {
            continue;
        }
        session.rewind(0).unwrap();
        let mut logits = Vec::new();
        for token in &prompt.tokens {
            logits = session.eval(&[*token]).unwrap().to_vec();
        }
        let Some(all) = &all else { continue };
        let expected = &all[index * vocab_size..][..vocab_size];
        let error = centred_relative_error(&logits, expected);
        println!(
            "prompt {index} ({} tokens): {error:.2e}",
            prompt.tokens.len()
        );
        assert!(
            error <= INT8_BOUNDS.logits,
            "prompt {index}: relative error {error:e}"
        );
    }
    check_greedy(model, &engine, &INT8_BOUNDS);
    if !is_slow {
        check_nll_one_by_one(model, &engine);
    }
}

/// Mean negative log-likelihood with every token run by itself.
fn check_nll_one_by_one(model: Model, engine: &Engine) {
    let Some(tokens) = eval_tokens(engine) else {
        return;
    };
    let mut session = engine.session().unwrap();
    let mut total = 0.0;
    for pair in tokens.windows(2) {
        total += nll(session.eval(&pair[..1]).unwrap(), pair[1]);
    }
    check_mean_nll(model, total / (tokens.len() - 1) as f64, &INT8_BOUNDS);
}

#[test]
fn golden_smollm2_with_int8_activations_on_the_gpu() {
    let Some(device) = support::gpu() else { return };
    check_int8(Model::SmolLm2, device);
}

#[test]
fn golden_gemma3_with_int8_activations_on_the_gpu() {
    let Some(device) = support::gpu() else { return };
    check_int8(Model::Gemma3, device);
}

/// Weights decoded at load give what the native kernels give: quantisation ruled in or out.
#[test]
fn golden_dequantised_weights_stay_in_their_class() {
    for device in support::devices() {
        if device == Device::Reference {
            continue;
        }
        let bounds = f32_bounds(&device);
        let engine = Model::SmolLm2.engine(device.clone(), KvType::F32, WeightStorage::F32);
        check_logits(Model::SmolLm2, &engine, &bounds, 0..6);
        let engine = Model::SmolLm2.engine(device, KvType::F32, WeightStorage::F16);
        check_logits(Model::SmolLm2, &engine, &F16_BOUNDS, 0..6);
    }
}

/// The comparison that all of this rests on must refuse a wrong epsilon's worth of error.
#[test]
fn golden_comparison_refuses_a_small_wrong() {
    let expected: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
    let shifted: Vec<f32> = expected.iter().map(|value| value + 5.0).collect();
    assert!(centred_relative_error(&shifted, &expected) < 1e-6);
    let scaled: Vec<f32> = expected.iter().map(|value| value * 1.0003).collect();
    assert!(centred_relative_error(&scaled, &expected) > 2e-4);
    let mut one_wrong = expected.clone();
    one_wrong[7] = f32::NAN;
    let error = centred_relative_error(&one_wrong, &expected);
    assert!(!(error <= 1.0), "{error}");
}
