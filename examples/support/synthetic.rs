//! Models of a real shape with random weights, for speed and memory: both depend on shapes and types
//! alone. The file is made in memory, which takes twice its size for a moment.

use super::Result;
use std::collections::HashMap;
use trueshot::gguf::{Gguf, WeightType, Writer};

/// A llama-like model.
struct Shape {
    name: &'static str,
    n_layer: usize,
    hidden_size: usize,
    intermediate_size: usize,
    n_head: usize,
    n_head_kv: usize,
    head_dim: usize,
    vocab_size: usize,
    rope_theta: f32,
    /// Whether the embedding is the output matrix too.
    tied: bool,
}

const SHAPES: [Shape; 4] = [
    Shape {
        name: "tiny",
        n_layer: 2,
        hidden_size: 256,
        intermediate_size: 512,
        n_head: 4,
        n_head_kv: 2,
        head_dim: 64,
        vocab_size: 320,
        rope_theta: 10_000.0,
        tied: true,
    },
    Shape {
        name: "smollm2-135m",
        n_layer: 30,
        hidden_size: 576,
        intermediate_size: 1536,
        n_head: 9,
        n_head_kv: 3,
        head_dim: 64,
        vocab_size: 49152,
        rope_theta: 100_000.0,
        tied: true,
    },
    Shape {
        name: "tinyllama-1.1b",
        n_layer: 22,
        hidden_size: 2048,
        intermediate_size: 5632,
        n_head: 32,
        n_head_kv: 4,
        head_dim: 64,
        vocab_size: 32000,
        rope_theta: 10_000.0,
        tied: false,
    },
    Shape {
        name: "llama3-8b",
        n_layer: 32,
        hidden_size: 4096,
        intermediate_size: 14336,
        n_head: 32,
        n_head_kv: 8,
        head_dim: 128,
        vocab_size: 128_256,
        rope_theta: 500_000.0,
        tied: false,
    },
];

/// A model for `SHAPE:TYPE`, e.g. `llama3-8b:q4_0`.
pub fn gguf(recipe: &str) -> Result<Gguf> {
    let (shape, ty) = recipe.split_once(':').unwrap_or((recipe, "q4_0"));
    let shape = SHAPES
        .iter()
        .find(|known| known.name == shape)
        .ok_or_else(|| {
            let known = SHAPES.map(|shape| shape.name).join(", ");
            format!("synthetic shape `{shape}`: expected {known}")
        })?;
    let types = WeightType::ALL;
    let ty = types
        .into_iter()
        .find(|known| known.name().eq_ignore_ascii_case(ty))
        .ok_or_else(|| {
            let known = types.map(WeightType::name).join(", ");
            format!("synthetic weight type `{ty}`: expected {known}")
        })?;
    let bytes = write(shape, ty)?.to_bytes()?;
    Ok(Gguf::from_bytes(bytes)?)
}

fn write(shape: &Shape, ty: WeightType) -> Result<Writer> {
    let count = |n: usize| n as u32;
    let mut file = Writer::new()
        .metadata("general.architecture", "llama")
        .metadata(
            "general.name",
            format!("synthetic {} {}", shape.name, ty.name()),
        )
        .metadata("llama.block_count", count(shape.n_layer))
        .metadata("llama.context_length", 8192_u32)
        .metadata("llama.embedding_length", count(shape.hidden_size))
        .metadata("llama.feed_forward_length", count(shape.intermediate_size))
        .metadata("llama.attention.head_count", count(shape.n_head))
        .metadata("llama.attention.head_count_kv", count(shape.n_head_kv))
        .metadata("llama.attention.key_length", count(shape.head_dim))
        .metadata("llama.attention.value_length", count(shape.head_dim))
        .metadata("llama.attention.layer_norm_rms_epsilon", 1e-5_f32)
        .metadata("llama.rope.freq_base", shape.rope_theta);
    file = write_vocabulary(file, shape.vocab_size);

    let (hidden, ffn) = (shape.hidden_size, shape.intermediate_size);
    let (n_q, n_kv) = (
        shape.n_head * shape.head_dim,
        shape.n_head_kv * shape.head_dim,
    );
    let mut weights = RandomWeights::default();
    let wide = wide_type(ty);
    file = weights.matrix(file, "token_embd", shape.vocab_size, hidden, wide)?;
    if !shape.tied {
        file = weights.matrix(file, "output", shape.vocab_size, hidden, wide)?;
    }
    file = norm(file, "output_norm", hidden)?;
    for layer in 0..shape.n_layer {
        let name = |name: &str| format!("blk.{layer}.{name}");
        file = norm(file, &name("attn_norm"), hidden)?;
        file = norm(file, &name("ffn_norm"), hidden)?;
        for (matrix, n_rows, n_cols) in [
            ("attn_q", n_q, hidden),
            ("attn_k", n_kv, hidden),
            ("attn_v", n_kv, hidden),
            ("attn_output", hidden, n_q),
            ("ffn_gate", ffn, hidden),
            ("ffn_up", ffn, hidden),
            ("ffn_down", hidden, ffn),
        ] {
            file = weights.matrix(file, &name(matrix), n_rows, n_cols, ty)?;
        }
    }
    Ok(file)
}

/// The type of the embedding and the output: quantised files keep them at 6 bits or more.
fn wide_type(ty: WeightType) -> WeightType {
    match ty {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 | WeightType::Q8_0 => ty,
        _ => WeightType::Q6_K,
    }
}

fn norm(file: Writer, name: &str, n: usize) -> Result<Writer> {
    let ones = WeightType::F32.encode(&vec![1.0; n]);
    Ok(file.tensor(format!("{name}.weight"), [n], WeightType::F32, ones)?)
}

/// `<unk>`, `<s>`, `</s>`, the 256 bytes, then words that no text has: any prompt becomes bytes.
fn write_vocabulary(file: Writer, vocab_size: usize) -> Writer {
    const UNKNOWN: i32 = 2;
    const CONTROL: i32 = 3;
    const BYTE: i32 = 6;
    const NORMAL: i32 = 1;
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut types = vec![UNKNOWN, CONTROL, CONTROL];
    for byte in 0..=255_u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        types.push(BYTE);
    }
    for word in tokens.len()..vocab_size {
        tokens.push(format!("\u{2581}word{word}"));
        types.push(NORMAL);
    }
    let scores: Vec<f32> = (0..vocab_size).map(|id| -(id as f32)).collect();
    file.metadata("tokenizer.ggml.model", "llama")
        .metadata("tokenizer.ggml.tokens", tokens)
        .metadata("tokenizer.ggml.scores", scores)
        .metadata("tokenizer.ggml.token_type", types)
        .metadata("tokenizer.ggml.unknown_token_id", 0_u32)
        .metadata("tokenizer.ggml.bos_token_id", 1_u32)
        .metadata("tokenizer.ggml.eos_token_id", 2_u32)
}

/// Random blocks of each type; every tensor is cut from them, starting where the last one ended.
#[derive(Default)]
struct RandomWeights {
    blocks: HashMap<WeightType, Vec<u8>>,
    next_block: usize,
}

impl RandomWeights {
    /// A prime, so that the rows of a matrix differ.
    const SUPER_BLOCKS: usize = 4099;

    fn matrix(
        &mut self,
        file: Writer,
        name: &str,
        n_rows: usize,
        n_cols: usize,
        ty: WeightType,
    ) -> Result<Writer> {
        // Rows are whole blocks: where 256 do not divide them, a type with blocks of 32 steps in.
        let ty = if n_cols.is_multiple_of(ty.block_len()) {
            ty
        } else {
            WeightType::Q8_0
        };
        let bytes = self.bytes(ty, n_rows * ty.row_bytes(n_cols));
        Ok(file.tensor(format!("{name}.weight"), [n_rows, n_cols], ty, bytes)?)
    }

    fn bytes(&mut self, ty: WeightType, n_bytes: usize) -> Vec<u8> {
        let blocks = self
            .blocks
            .entry(ty)
            .or_insert_with(|| ty.encode(&noise(Self::SUPER_BLOCKS * 256)));
        let block_bytes = ty.block_bytes();
        let mut at = self.next_block * block_bytes % blocks.len();
        let mut bytes = Vec::with_capacity(n_bytes);
        while bytes.len() < n_bytes {
            let n = (n_bytes - bytes.len()).min(blocks.len() - at);
            bytes.extend_from_slice(&blocks[at..at + n]);
            at = (at + n) % blocks.len();
        }
        self.next_block = at / block_bytes;
        bytes
    }
}

/// Numbers around zero with a standard deviation of 0.02, always the same ones.
fn noise(n: usize) -> Vec<f32> {
    // xorshift64 (Marsaglia, "Xorshift RNGs", 2003)
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    // Three uniform numbers of variance 1/12 have a standard deviation of 1/2 together.
    (0..n)
        .map(|_| (uniform() + uniform() + uniform()) * 0.04)
        .collect()
}
