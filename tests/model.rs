//! Files that are sound and still no model: each is refused by name.

#[path = "support/tiny.rs"]
mod tiny;

use trueshot::gguf::{Gguf, TensorType, Value, WeightType, Writer};
use trueshot::model::DecoderSpec;
use trueshot::{Device, Engine, Error, GpuChoice};

fn build(writer: Writer) -> Result<Engine, Error> {
    let gguf = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
    Engine::builder_from(gguf).device(Device::Cpu).build()
}

fn refused(writer: Writer, names: &[&str]) {
    let error = build(writer)
        .expect_err("the file must be refused")
        .to_string();
    for name in names {
        assert!(error.contains(name), "`{error}` does not name `{name}`");
    }
}

fn with(key: &str, value: impl Into<Value>) -> Writer {
    tiny::llama(WeightType::F32, None).metadata(key, value)
}

#[test]
fn unknown_architecture_is_refused_with_what_is_known() {
    refused(
        with("general.architecture", "mamba9"),
        &["mamba9", "llama", "gemma3"],
    );
}

#[test]
fn tensor_of_a_type_that_nothing_computes_with_is_refused_in_a_sentence() {
    let n_vocab = tiny::vocabulary().len();
    let writer = tiny::llama(WeightType::F32, None)
        .tensor(
            "output.weight",
            [n_vocab, 64],
            TensorType::NVFP4,
            vec![0; n_vocab * 36],
        )
        .unwrap();
    let error = build(writer).unwrap_err().to_string();
    let start =
        "weight type `40 (nvfp4) of output.weight` is not supported (supported: 0 f32, 1 f16, ";
    assert!(error.starts_with(start), "{error}");
    assert!(error.ends_with(", 39 mxfp4)"), "{error}");
}

#[test]
fn unknown_tokenizers_and_pre_tokenizers_are_refused_with_what_is_known() {
    refused(
        with("tokenizer.ggml.model", "rwkv"),
        &["tokenizer `rwkv` is not supported (supported: gpt2, "],
    );
    let merges = vec!["a b".to_owned()];
    let writer = with("tokenizer.ggml.model", "gpt2")
        .metadata("tokenizer.ggml.merges", merges)
        .metadata("tokenizer.ggml.pre", "tomorrow");
    refused(
        writer,
        &[
            "pre-tokenizer `tomorrow` is not supported (supported: default, gpt-2, ",
            "qwen2",
        ],
    );
}

#[test]
fn wrong_hyperparameters_are_refused_by_key() {
    for (key, value) in [
        ("llama.block_count", 0u32),
        ("llama.block_count", 1 << 24),
        ("llama.context_length", 0),
        ("llama.feed_forward_length", u32::MAX),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.key_length", 18),
        ("llama.attention.value_length", 8),
        ("llama.rope.dimension_count", 17),
        ("llama.vocab_size", 5),
    ] {
        refused(with(key, value), &[key]);
    }
    refused(
        with("llama.rope.freq_base", -1.0f32),
        &["llama.rope.freq_base"],
    );
    refused(
        with("llama.rope.scaling.type", "spiral"),
        &["spiral", "yarn"],
    );
    refused(
        with("llama.embedding_length", "wide"),
        &["llama.embedding_length"],
    );
}

#[test]
fn negative_epsilon_is_refused() {
    let key = "llama.attention.layer_norm_rms_epsilon";
    refused(with(key, -1e-5f32), &[key]);
}

#[test]
fn hyperparameter_that_nothing_reads_is_refused() {
    let key = "llama.attention.max_alibi_bias";
    refused(with(key, 8u32), &[key]);
    assert!(
        build(with("llama.expert_count", 0u32)).is_ok(),
        "zero experts are none"
    );
}

#[test]
fn wrong_hyperparameters_of_experts_are_refused_by_key() {
    let experts = |n_expert: u32, n_chosen: u32| {
        with("llama.expert_count", n_expert).metadata("llama.expert_used_count", n_chosen)
    };
    let used = "llama.expert_used_count";
    refused(with("llama.expert_count", 8u32), &[used]);
    refused(experts(1 << 20, 2), &["llama.expert_count"]);
    refused(experts(8, 0), &[used]);
    refused(experts(8, 9), &[used]);
    refused(experts(8, 2), &["blk.0.ffn_gate_exps.weight"]);
    for key in [
        "llama.leading_dense_block_count",
        "llama.expert_group_count",
        "llama.expert_gating_func",
        "llama.expert_shared_count",
    ] {
        refused(experts(8, 2).metadata(key, 2u32), &[key]);
    }
}

#[test]
fn unused_tensor_is_refused_by_name() {
    let weights = WeightType::F32.encode(&[1.0; 64]);
    let writer = tiny::llama(WeightType::F32, None);
    let writer = writer
        .tensor("blk.0.attn_sinks.weight", [64], WeightType::F32, weights)
        .unwrap();
    refused(writer, &["blk.0.attn_sinks.weight", "not used"]);
}

#[test]
fn missing_and_misshapen_tensors_are_refused_by_name() {
    refused(with("llama.block_count", 3u32), &["blk.2.", "missing"]);
    refused(
        with("llama.feed_forward_length", 64u32),
        &["ffn_gate", "[96, 64]", "[64, 64]"],
    );
}

#[test]
fn context_out_of_range_is_refused() {
    let gguf = tiny::gguf(WeightType::F32, None);
    let error = Engine::builder_from(gguf)
        .device(Device::Cpu)
        .context_length(0)
        .build();
    assert!(matches!(
        error,
        Err(Error::InvalidArgument {
            name: "context_length",
            ..
        })
    ));
}

#[test]
fn absent_gpu_is_refused_with_what_there_is() {
    let gguf = tiny::gguf(WeightType::F32, None);
    let device = Device::Gpu(GpuChoice::Name("no such adapter".to_owned()));
    let error = Engine::builder_from(gguf)
        .device(device)
        .build()
        .expect_err("no such adapter");
    assert!(matches!(error, Error::NoDevice { .. }), "{error}");
}

#[test]
fn missing_file_is_named() {
    let error = Engine::load("no/such/model.gguf")
        .expect_err("no such file")
        .to_string();
    assert!(error.contains("no/such/model.gguf"), "{error}");
}

/// The metadata of a model of some architecture with one matrix: enough for its hyper-parameters to be read.
fn spec(architecture: &str, keys: &[(&str, Value)]) -> Result<DecoderSpec, Error> {
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    let n_layer = keys.iter().find(|(suffix, _)| *suffix == "block_count");
    let n_tensors = n_layer.map_or(4, |_| 64);
    let mut writer = Writer::new()
        .metadata("general.architecture", architecture)
        .metadata(key("block_count"), 4_u32)
        .metadata(key("context_length"), 64_u32)
        .metadata(key("embedding_length"), 32_u32)
        .metadata(key("feed_forward_length"), 32_u32)
        .metadata(key("attention.head_count"), 4_u32);
    let epsilon = match architecture {
        "cohere2" | "command-r" => key("attention.layer_norm_epsilon"),
        _ => key("attention.layer_norm_rms_epsilon"),
    };
    writer = writer.metadata(epsilon, 1e-5_f32);
    for (suffix, value) in keys {
        writer = writer.metadata(key(suffix), value.clone());
    }
    let mut tensor = |name: String| {
        let bytes = WeightType::F32.encode(&[1.0; 32]);
        let next = writer.clone().tensor(name, [1, 32], WeightType::F32, bytes);
        writer = next.unwrap();
    };
    tensor("token_embd.weight".to_owned());
    (0..n_tensors).for_each(|index| tensor(format!("blk.{index}.attn_norm.weight")));
    DecoderSpec::from_gguf(&Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap())
}

#[track_caller]
fn refused_spec(architecture: &str, keys: &[(&str, Value)], what: &str) {
    let error = spec(architecture, keys).unwrap_err();
    assert!(matches!(error, Error::InvalidModel { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(what), "`{what}` is not in `{text}`");
}

#[test]
fn numbers_that_nothing_can_compute_with_are_refused() {
    let window = || ("attention.sliding_window", Value::from(8_u32));
    for base in [0.0_f32, -1e4, 1.0] {
        let base = ("rope.freq_base_swa", Value::from(base));
        refused_spec("gemma3", &[window(), base], "layer 0: base of rope");
    }
    let base = ("rope.freq_base_swa", Value::from(1e4_f32));
    assert!(spec("gemma3", &[window(), base]).is_ok());

    let scale = ("logit_scale", Value::from(1e-45_f32));
    refused_spec("granite", &[scale], "logit scale: inf");

    let heads = ("attention.head_count", Value::from(64_u32));
    let dim = ("attention.key_length", Value::from(8_u32));
    let layers = ("block_count", Value::from(46_u32));
    refused_spec("gemma2", &[heads, dim, layers], "attention scale: inf");

    let yarn = |multiplier: f32, factor: f32| {
        [
            ("rope.scaling.type", Value::from("yarn")),
            ("rope.scaling.factor", Value::from(factor)),
            ("rope.scaling.yarn_log_multiplier", Value::from(multiplier)),
        ]
    };
    assert!(spec("llama", &yarn(1.0, 8.0)).is_ok());
    // The magnitude is a quotient by 1 + 0.1 * multiplier * ln(factor).
    let factor = 1.0_f32 + f32::EPSILON;
    let multiplier = (-10.0 / f64::from(factor).ln()) as f32;
    let magnitude = [
        ("rope.scaling.attn_factor", Value::from(f32::MAX)),
        ("rope.scaling.type", Value::from("yarn")),
        ("rope.scaling.factor", Value::from(factor)),
        ("rope.scaling.yarn_log_multiplier", Value::from(multiplier)),
    ];
    refused_spec("llama", &magnitude, "magnitude of rope: ");
    let linear = [("rope.scaling.factor", Value::from(1e-45_f32))];
    refused_spec("llama", &linear, "frequency of rope: inf");
}

#[test]
fn windows_and_scales_are_those_that_llama_cpp_has_where_the_file_states_none() {
    let layers = || ("block_count", Value::from(64_u32));
    let windows = |architecture: &str, keys: &[(&str, Value)]| -> Vec<Option<usize>> {
        let spec = spec(architecture, keys).unwrap();
        spec.layers.iter().map(|layer| layer.window).collect()
    };
    let found = windows("exaone4", &[layers()]);
    assert_eq!(found[..4], [Some(4096), Some(4096), Some(4096), None]);
    assert_eq!(windows("exaone4", &[]), [None; 4]);

    let window = |tokens: u32| ("attention.sliding_window", Value::from(tokens));
    let scale = || ("logit_scale", Value::from(0.5_f32));
    refused_spec("cohere2", &[scale()], "cohere2.attention.sliding_window");
    refused_spec(
        "cohere2",
        &[scale(), window(0)],
        "cohere2.attention.sliding_window",
    );
    refused_spec("cohere2", &[window(8)], "cohere2.logit_scale");
    assert_eq!(
        windows("cohere2", &[scale(), window(8)]),
        [Some(8), Some(8), Some(8), None]
    );
    refused_spec("command-r", &[], "command-r.logit_scale");
    refused_spec("granite", &[], "granite.logit_scale");

    let pattern = ("attention.sliding_window_pattern", Value::from(0_u32));
    assert_eq!(windows("gemma3", &[window(8), pattern]), [Some(8); 4]);
}

#[test]
fn one_half_of_the_divisors_of_rope_is_refused_naming_the_other() {
    for (there, missing) in [("short", "long"), ("long", "short")] {
        let writer = with("general.architecture", "phi3");
        let divisors = WeightType::F32.encode(&[1.0; 8]);
        let name = format!("rope_factors_{there}.weight");
        let mut writer = writer.tensor(name, [8], WeightType::F32, divisors).unwrap();
        for (suffix, value) in [
            ("block_count", 2_u32),
            ("context_length", 256),
            ("embedding_length", 64),
            ("feed_forward_length", 96),
            ("attention.head_count", 4),
        ] {
            writer = writer.metadata(format!("phi3.{suffix}"), value);
        }
        let writer = writer.metadata("phi3.attention.layer_norm_rms_epsilon", 1e-5_f32);
        let what = format!("`rope_factors_{missing}.weight` is missing");
        refused(writer, &[&what]);
    }
}

#[test]
fn wrong_hyperparameters_of_states_are_refused_by_key() {
    let number = |key: &'static str, value: u32| (key, Value::from(value));
    let changed = |keys: &[(&'static str, Value)], key: &'static str, value: u32| {
        let kept = keys.iter().filter(|(name, _)| *name != key).cloned();
        kept.chain([number(key, value)]).collect::<Vec<_>>()
    };
    let of_layers = number("attention.head_count_kv", 0);
    let conv = [of_layers.clone(), number("shortconv.l_cache", 3)];
    assert!(spec("lfm2", &conv).is_ok());
    for n_taps in [0, 1, 5, u32::MAX] {
        let keys = changed(&conv, "shortconv.l_cache", n_taps);
        refused_spec("lfm2", &keys, "lfm2.shortconv.l_cache");
    }

    let mamba2 = [
        of_layers,
        number("ssm.conv_kernel", 4),
        number("ssm.inner_size", 64),
        number("ssm.state_size", 16),
        number("ssm.time_step_rank", 8),
        number("ssm.group_count", 2),
    ];
    assert!(spec("mamba2", &mamba2).is_ok());
    for (key, value) in [
        ("ssm.conv_kernel", 1),
        ("ssm.inner_size", 0),
        ("ssm.state_size", 257),
        ("ssm.time_step_rank", 7),
        ("ssm.time_step_rank", 0),
        ("ssm.group_count", 3),
        ("ssm.group_count", 0),
    ] {
        let keys = changed(&mamba2, key, value);
        refused_spec("mamba2", &keys, &format!("mamba2.{key}"));
    }

    // Layers that attend have heads.
    let delta = changed(&mamba2, "attention.head_count_kv", 4);
    refused_spec("qwen35", &delta, "qwen35.ssm.inner_size");
    let delta = changed(&delta, "ssm.inner_size", 128);
    assert!(spec("qwen35", &delta).is_ok());
    for (key, value) in [
        ("ssm.inner_size", 64),
        ("ssm.group_count", 3),
        ("ssm.state_size", 0),
    ] {
        let keys = changed(&delta, key, value);
        let named = if key == "ssm.state_size" {
            key
        } else {
            "qwen35.ssm"
        };
        refused_spec("qwen35", &keys, named);
    }
}
