//! Files that are sound and still no model: each is refused by name.

#[path = "support/tiny.rs"]
mod tiny;

use trueshot::gguf::{Gguf, TensorType, Value, WeightType, Writer};
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
    refused(with("llama.expert_count", 8u32), &["llama.expert_count"]);
    assert!(
        build(with("llama.expert_count", 0u32)).is_ok(),
        "zero experts are none"
    );
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
