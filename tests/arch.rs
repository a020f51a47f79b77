//! Tiny models of each architecture against reference logits at every position, on every device.

mod support;

use serde::Deserialize;
use std::path::Path;
use support::{read_f32, shared};
use trueshot::{
    Activations, Depth, Device, EmbedOptions, Engine, GpuFeatures, KvType, Pooling, VerifyOptions,
};

#[derive(Deserialize)]
struct Case {
    row_length: usize,
    prompts: Vec<Prompt>,
    /// Of decoders.
    greedy: Option<Greedy>,
    /// Of encoders.
    #[serde(default)]
    pooled: Vec<Pooled>,
}

/// The vector of a whole prompt.
#[derive(Deserialize)]
struct Pooled {
    prompt: usize,
    vector: Vec<f32>,
}

#[derive(Deserialize)]
struct Prompt {
    tokens: Vec<u32>,
    first_row: usize,
    n_rows: usize,
}

#[derive(Deserialize)]
struct Greedy {
    after_prompt: usize,
    tokens: Vec<u32>,
}

const FILES: &[&str] = &[
    "llama",
    "llama-tied",
    "llama-headdim",
    "llama-bias",
    "llama-fused-qkv",
    "llama-rope-freqs",
    "llama-rope-linear",
    "llama-rope-yarn",
    "llama-f16",
    "llama-q8_0",
    "qwen2",
    "qwen2-tied",
    "qwen3",
    "qwen3-q8_0",
    "gemma3",
    "gemma3-linear",
    "gemma",
    "phi3",
    "phi3-longrope-short",
    "phi3-longrope-long",
    "mistral3",
    "smollm3",
    "internlm2",
    "exaone",
    "exaone4",
    "exaone4-32b",
    "seed_oss",
    "hunyuan-dense",
    "olmo2",
    "olmo3",
    "glm4",
    "gemma2",
    "granite",
    "minicpm",
    "command-r",
    "cohere2",
    "stablelm",
    "stablelm-parallel",
    "starcoder2",
    "phi2",
    "gptneox",
    "falcon",
    "falcon-40b",
    "nemotron",
    "gpt2",
    "bloom",
    "llama-moe",
    "llama-moe-q8_0",
    "qwen2moe",
    "qwen3moe",
    "qwen3moe-f16",
    "olmoe",
    "granitemoe",
    "granitemoe-shared",
    "ernie4_5-moe",
    "glm4moe",
    "gpt-oss",
    "gpt-oss-mxfp4",
    "deepseek2-lite",
    "deepseek2-legacy",
    "deepseek2-v2-yarn",
    "deepseek2-v3",
    "llama4",
    "lfm2",
    "lfm2moe",
    "mamba",
    "mamba2",
    "granitehybrid",
    "qwen35",
    "qwen35moe",
    "qwen3next",
    "gemma4-dense",
    "gemma4-e2b",
    "gemma4-moe",
    "bert",
    "nomic-bert",
];

/// The most that the rms of the errors, as a share of the logits' rms, and a single error may be:
/// `README.md` beside the files.
fn tolerance(kv: KvType) -> (f64, f32) {
    match kv {
        KvType::F32 => (3e-5, 5e-4),
        KvType::F16 => (1e-2, 0.2),
    }
}

fn check_rows(what: &str, found: &[f32], expected: &[f32], kv: KvType) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let (rms_bound, bound) = tolerance(kv);
    let (mut error, mut norm) = (0.0, 0.0);
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(
            difference <= bound,
            "{what}, element {index}: {found}, expected {expected}, bound {bound}"
        );
        error += f64::from(difference).powi(2);
        norm += f64::from(expected).powi(2);
    }
    let relative = (error / norm).sqrt();
    assert!(
        relative < rms_bound,
        "{what}: relative error {relative:e}, bound {rms_bound:e}"
    );
}

fn check(folder: &Path, name: &str, engine: &Engine, kv: KvType) {
    let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
    let case: Case = serde_json::from_str(&text).unwrap();
    let expected = read_f32(&folder.join(format!("{name}.f32")));
    let Some(greedy) = &case.greedy else {
        return check_texts(name, engine, &case, &expected, kv);
    };
    let mut session = engine.session().unwrap();
    for (index, prompt) in case.prompts.iter().enumerate() {
        let rows = prompt.first_row * case.row_length..;
        let expected = &expected[rows][..prompt.n_rows * case.row_length];
        let what = format!("{name}, prompt {index}, {}", engine.device_info().name);
        session.rewind(0).unwrap();
        let at_once = session.eval_all(&prompt.tokens).unwrap();
        check_rows(&what, &at_once, expected, kv);

        session.rewind(0).unwrap();
        let mut one_by_one = Vec::new();
        for token in &prompt.tokens {
            one_by_one.extend_from_slice(session.eval(&[*token]).unwrap());
        }
        check_rows(
            &format!("{what}, token by token"),
            &one_by_one,
            expected,
            kv,
        );

        if index == greedy.after_prompt && kv == KvType::F32 {
            let mut logits = one_by_one;
            for (step, &token) in greedy.tokens.iter().enumerate() {
                let last = &logits[logits.len() - case.row_length..];
                let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b]));
                assert_eq!(best, Some(token as usize), "{what}, greedy step {step}");
                logits = session.eval(&[token]).unwrap().to_vec();
            }
        }
    }
}

/// The vectors of each token, and what the file's pooling makes of them.
fn check_texts(name: &str, engine: &Engine, case: &Case, expected: &[f32], kv: KvType) {
    let mut embedder = engine.embedder().unwrap();
    let raw = EmbedOptions {
        normalise: false,
        ..EmbedOptions::default()
    };
    let of_tokens = EmbedOptions {
        pooling: Some(Pooling::None),
        ..raw
    };
    assert_eq!(case.pooled.len(), case.prompts.len());
    for pooled in &case.pooled {
        let prompt = &case.prompts[pooled.prompt];
        let rows = prompt.first_row * case.row_length..;
        let expected = &expected[rows][..prompt.n_rows * case.row_length];
        let device = &engine.device_info().name;
        let what = format!("{name}, prompt {}, {device}", pooled.prompt);
        let found = embedder.embed_tokens(&prompt.tokens, &of_tokens).unwrap();
        check_rows(&what, &found, expected, kv);
        let found = embedder.embed_tokens(&prompt.tokens, &raw).unwrap();
        check_rows(&format!("{what}, pooled"), &found, &pooled.vector, kv);
    }
}

fn check_all(device: &Device, features: GpuFeatures) {
    let Some(folder) = shared("arch") else { return };
    for &name in FILES {
        let classes = [
            (KvType::F32, Activations::F32),
            (KvType::F16, Activations::F16),
        ];
        for (kv, activations) in classes {
            let engine = Engine::builder(folder.join(format!("{name}.gguf")))
                .device(device.clone())
                .gpu_features(features)
                .kv(kv)
                .activations(activations)
                .context_length(match name {
                    "gpt2" => 128, // it has no more positions
                    "bert" => 64,
                    _ => 256,
                })
                .build()
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            check(&folder, name, &engine, kv);
        }
    }
}

#[test]
fn architectures_match_on_the_reference() {
    check_all(&Device::Reference, GpuFeatures::default());
}

#[test]
fn architectures_match_on_the_cpu() {
    check_all(&Device::Cpu, GpuFeatures::default());
}

#[test]
fn architectures_match_on_the_gpu() {
    let Some(device) = support::gpu() else { return };
    check_all(&device, GpuFeatures::default());
}

#[test]
fn architectures_match_on_the_gpu_without_optional_features() {
    let Some(device) = support::gpu() else { return };
    let mut features = GpuFeatures::default();
    features.subgroups = false;
    check_all(&device, features);
}

/// One file of each family: between them they have every kind of step in every order that the table of architectures
/// knows, and each kind of weight, position and norm.
const FAMILIES: &[&str] = &[
    "llama-q8_0",        // norm, gated feed-forward block, adjacent pairs; quantised
    "gemma3",  // norms behind the blocks and of heads, windows, angles of their own for them
    "gemma2",  // soft caps
    "phi3",    // fused projections
    "cohere2", // LayerNorm, a parallel block, layers without RoPE
    "stablelm-parallel", // LayerNorm of heads
    "gpt2",    // positions that are learned, plain feed-forward block, biases
    "bloom",   // ALiBi, a norm behind the embedding
    "llama-moe-q8_0", // experts with quantised weights
    "gpt-oss-mxfp4", // the same with sinks and biases, of a type whose scales have the range of f32
    "qwen2moe", // experts by softmax, and a gated one that all tokens have
    "gpt-oss", // sinks, experts with biases
    "glm4moe", // experts by sigmoid and bias, behind dense layers
    "deepseek2-v3", // latent attention, groups of experts
    "llama4", // chunks, queries with a temperature that do not turn, norms without weights, weighed inputs of experts
    "lfm2",   // convolutions with a state
    "mamba",  // a selective state space
    "mamba2", // one of heads in groups
    "granitehybrid", // one beside attention, with experts
    "qwen35", // the gated delta rule, gated attention
    "qwen3next", // the same with other heads of keys, and experts
    "gemma4-e2b", // layers that read the cache of another, and inputs of each layer
    "gemma4-moe", // norms without weights, heads of two sizes, experts beside a dense block
    "bert",   // attention of both ways, types of tokens
];

fn verify(folder: &Path, name: &str, device: &Device, activations: Activations, depth: Depth) {
    let engine = Engine::builder(folder.join(format!("{name}.gguf")))
        .device(device.clone())
        .activations(activations)
        .build()
        .unwrap();
    let options = VerifyOptions {
        depth,
        ..VerifyOptions::default()
    };
    let report = engine.verify(&options).unwrap();
    let what = format!("{name} on {device}, {activations:?}");
    assert!(report.passed(), "{what}: {report}");
}

/// Only a GPU has classes of precision, and only quantised weights meet 8-bit integers.
fn classes(name: &str, device: &Device) -> &'static [Activations] {
    match device {
        Device::Gpu(_) if name.ends_with("q8_0") || name.ends_with("mxfp4") => {
            &[Activations::F32, Activations::F16, Activations::Int8]
        }
        Device::Gpu(_) => &[Activations::F32, Activations::F16],
        _ => &[Activations::F32],
    }
}

#[test]
fn every_step_of_every_family_verifies_on_every_device() {
    let Some(folder) = shared("arch") else { return };
    for device in support::devices() {
        for &name in FAMILIES {
            for &activations in classes(name, &device) {
                verify(&folder, name, &device, activations, Depth::Full);
            }
        }
    }
}

/// Their kernels are those of the families, and their logits are compared above in both classes: what is left to see
/// is that their own plans run step by step.
#[test]
fn every_architecture_verifies_on_every_device() {
    let Some(folder) = shared("arch") else { return };
    for device in support::devices() {
        for name in FILES.iter().filter(|name| !FAMILIES.contains(name)) {
            verify(&folder, name, &device, Activations::F32, Depth::Quick);
        }
    }
}
