//! A tiny model of random weights, written by the crate's own writer: whole engines without a download.
#![allow(dead_code, reason = "each test file uses a part of it")]

use trueshot::gguf::{Gguf, WeightType, Writer};
use trueshot::{Activations, Device, Engine, GenerateOptions, KvType, SamplingOptions};

const N_LAYER: usize = 2;
const N_HEAD: usize = 4;
const N_HEAD_KV: usize = 2;

/// Seeded numbers in -1..1 (SplitMix64).
pub struct Random(pub u64);

impl Random {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn next_f32(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }
}

/// The vocabulary: three special tokens, 256 bytes, and words that a prompt can be made of.
pub fn vocabulary() -> Vec<String> {
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let words = (0..61).map(|word| format!("\u{2581}w{word}"));
    special.into_iter().chain(bytes).chain(words).collect()
}

/// A llama model with matrices of type `ty`, as narrow as that type's blocks allow; `chat_template`
/// goes into the file.
pub fn llama(ty: WeightType, chat_template: Option<&str>) -> Writer {
    altered(ty, chat_template, &|_, _| ())
}

/// As [`llama`]; `alter` may change the values of a tensor, given its name.
pub fn altered(
    ty: WeightType,
    chat_template: Option<&str>,
    alter: &dyn Fn(&str, &mut [f32]),
) -> Writer {
    written(ty, &|_| ty, chat_template, alter)
}

/// As [`llama`]; the matrices whose names contain `part` are of another type.
pub fn mixed(ty: WeightType, part: &str, other: WeightType) -> Gguf {
    let type_of = |name: &str| if name.contains(part) { other } else { ty };
    let writer = written(ty, &type_of, None, &|_, _| ());
    Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap()
}

/// A llama model as wide as the blocks of `ty` want, with each matrix of the type that `type_of` gives it by name.
fn written(
    ty: WeightType,
    type_of: &dyn Fn(&str) -> WeightType,
    chat_template: Option<&str>,
    alter: &dyn Fn(&str, &mut [f32]),
) -> Writer {
    let (hidden_size, intermediate_size) = match ty.block_len() {
        256 => (256, 256),
        _ => (64, 96),
    };
    let head_dim = hidden_size / N_HEAD;
    let vocabulary = vocabulary();
    let n_vocab = vocabulary.len();
    let scores: Vec<f32> = (0..n_vocab).map(|i| -(i as f32)).collect();
    let kinds: Vec<i32> = (0..n_vocab)
        .map(|i| match i {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        })
        .collect();
    let mut writer = Writer::new()
        .metadata("general.architecture", "llama")
        .metadata("general.name", "tiny")
        .metadata("llama.block_count", N_LAYER as u32)
        .metadata("llama.context_length", 256u32)
        .metadata("llama.embedding_length", hidden_size as u32)
        .metadata("llama.feed_forward_length", intermediate_size as u32)
        .metadata("llama.attention.head_count", N_HEAD as u32)
        .metadata("llama.attention.head_count_kv", N_HEAD_KV as u32)
        .metadata("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
        .metadata("llama.rope.dimension_count", head_dim as u32)
        .metadata("tokenizer.ggml.model", "llama")
        .metadata("tokenizer.ggml.tokens", vocabulary)
        .metadata("tokenizer.ggml.scores", scores)
        .metadata("tokenizer.ggml.token_type", kinds)
        .metadata("tokenizer.ggml.bos_token_id", 1u32)
        .metadata("tokenizer.ggml.eos_token_id", 2u32);
    if let Some(template) = chat_template {
        writer = writer.metadata("tokenizer.chat_template", template);
    }
    let mut random = Random(7);
    let mut tensor = |writer: Writer, name: String, shape: Vec<usize>| {
        let n: usize = shape.iter().product();
        let is_norm = shape.len() == 1;
        let mut values: Vec<f32> = (0..n)
            .map(|_| match is_norm {
                true => 1.0 + 0.2 * random.next_f32(),
                false => 0.3 * random.next_f32(),
            })
            .collect();
        alter(&name, &mut values);
        let ty = if is_norm {
            WeightType::F32
        } else {
            type_of(&name)
        };
        writer.tensor(name, shape, ty, ty.encode(&values)).unwrap()
    };
    writer = tensor(
        writer,
        "token_embd.weight".into(),
        vec![n_vocab, hidden_size],
    );
    writer = tensor(writer, "output_norm.weight".into(), vec![hidden_size]);
    for layer in 0..N_LAYER {
        let (n_q, n_kv) = (N_HEAD * head_dim, N_HEAD_KV * head_dim);
        for (name, shape) in [
            ("attn_norm", vec![hidden_size]),
            ("attn_q", vec![n_q, hidden_size]),
            ("attn_k", vec![n_kv, hidden_size]),
            ("attn_v", vec![n_kv, hidden_size]),
            ("attn_output", vec![hidden_size, n_q]),
            ("ffn_norm", vec![hidden_size]),
            ("ffn_gate", vec![intermediate_size, hidden_size]),
            ("ffn_up", vec![intermediate_size, hidden_size]),
            ("ffn_down", vec![hidden_size, intermediate_size]),
        ] {
            writer = tensor(writer, format!("blk.{layer}.{name}.weight"), shape);
        }
    }
    writer
}

/// The file of [`llama`].
pub fn gguf(ty: WeightType, chat_template: Option<&str>) -> Gguf {
    Gguf::from_bytes(llama(ty, chat_template).to_bytes().unwrap()).unwrap()
}

/// A chat template of the plainest kind.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

/// An engine that computes in 32-bit floats throughout.
pub fn engine(device: Device) -> Engine {
    let gguf = gguf(WeightType::Q8_0, Some(TEMPLATE));
    Engine::builder_from(gguf)
        .device(device)
        .activations(Activations::F32)
        .kv(KvType::F32)
        .build()
        .unwrap()
}

/// Words of the vocabulary.
pub fn tokens(n: usize) -> Vec<u32> {
    let mut random = Random(3);
    (0..n).map(|_| 259 + random.below(61) as u32).collect()
}

/// The most probable tokens, at most so many.
pub fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_tokens,
        sampling: SamplingOptions::greedy(),
        ..Default::default()
    }
}
