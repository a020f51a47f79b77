//! Tokenizers: `cargo bench --bench tokenizer -- [GGUF]..`.
//!
//! How long a vocabulary of 262 144 tokens takes to build, of each kind, and how fast the project's
//! own documents are encoded with it: what is wanted, and whether it is reached. With files, the
//! same of theirs. A vocabulary holds every beginning of every word of the documents and is filled
//! up with random tokens; each figure is the best of five.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use trueshot::Tokenizer;
use trueshot::gguf::{Gguf, Metadata};

const N_TOKENS: usize = 262_144;
const WANTED_BUILD: Duration = Duration::from_millis(1200);
const WANTED_MB_PER_S: f64 = 1.5;
const N_ROUNDS: usize = 5;

const DOCUMENTS: [&str; 7] = [
    include_str!("../README.md"),
    include_str!("../CHANGELOG.md"),
    include_str!("../docs/ARCHITECTURE.md"),
    include_str!("../docs/KERNELS.md"),
    include_str!("../docs/NUMERICS.md"),
    include_str!("../docs/PERFORMANCE.md"),
    include_str!("../docs/PROOF.md"),
];

fn main() -> trueshot::Result<()> {
    let text = DOCUMENTS.concat();
    println!("{} bytes of text", text.len());
    measure("byte-level BPE", &bpe(&text), &text)?;
    measure("SentencePiece BPE", &scored("llama", &text), &text)?;
    measure("unigram", &scored("t5", &text), &text)?;
    measure("WordPiece", &scored("bert", &text), &text)?;
    for path in std::env::args().skip(1).filter(|arg| !arg.starts_with('-')) {
        measure(&path, Gguf::open(&path)?.metadata(), &text)?;
    }
    Ok(())
}

fn measure(name: &str, metadata: &Metadata, text: &str) -> trueshot::Result<()> {
    let tokenizer = Tokenizer::from_metadata(metadata)?;
    let build = best(|| Tokenizer::from_metadata(metadata).map(drop))?;
    let encode = best(|| tokenizer.encode(text, true, false).map(drop))?;
    let speed = text.len() as f64 / encode.as_secs_f64() / 1e6;
    let verdict = |holds| if holds { "holds" } else { "FAILS" };
    println!(
        "{name}, {} tokens: built in {:.3} s, wanted {:.1}: {}; encodes {speed:.1} MB/s, wanted {WANTED_MB_PER_S}: {}",
        tokenizer.vocab_size(),
        build.as_secs_f64(),
        WANTED_BUILD.as_secs_f64(),
        verdict(build <= WANTED_BUILD),
        verdict(speed >= WANTED_MB_PER_S),
    );
    Ok(())
}

fn best(mut work: impl FnMut() -> trueshot::Result<()>) -> trueshot::Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..N_ROUNDS {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}

/// The tokens in the order that they were added, each once.
#[derive(Default)]
struct Tokens {
    ids: HashMap<String, u32>,
    tokens: Vec<String>,
}

impl Tokens {
    fn add(&mut self, token: String) -> bool {
        let is_new = !self.ids.contains_key(&token);
        if is_new {
            self.ids.insert(token.clone(), self.tokens.len() as u32);
            self.tokens.push(token);
        }
        is_new
    }
}

/// Numbers without a crate: xorshift64* (Vigna, "An experimental exploration of Marsaglia's
/// xorshift generators, scrambled").
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
}

fn bpe(text: &str) -> Metadata {
    let mut beyond_latin = 0x100_u32;
    let alphabet: Vec<char> = (0..=255_u32)
        .filter_map(|byte| {
            let is_printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            beyond_latin += u32::from(!is_printable);
            char::from_u32(if is_printable { byte } else { beyond_latin - 1 })
        })
        .collect();
    let mut tokens = Tokens::default();
    for c in &alphabet {
        tokens.add(c.to_string());
    }
    let mut merges = Vec::new();
    for word in text
        .split_inclusive(' ')
        .flat_map(|word| word.split_whitespace())
    {
        let spelling: Vec<char> = [b' ']
            .iter()
            .chain(word.as_bytes())
            .map(|&byte| alphabet[usize::from(byte)])
            .collect();
        for length in 2..=spelling.len() {
            let (token, left) = (&spelling[..length], &spelling[..length - 1]);
            if tokens.add(token.iter().collect()) {
                merges.push(format!("{} {}", String::from_iter(left), token[length - 1]));
            }
        }
    }
    let mut random = Random(9);
    while tokens.tokens.len() < N_TOKENS {
        let [left, right] =
            [0; 2].map(|_| tokens.tokens[random.below(tokens.tokens.len())].clone());
        if left.len() + right.len() < 40 && tokens.add(format!("{left}{right}")) {
            merges.push(format!("{left} {right}"));
        }
    }
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "llama-bpe");
    metadata.insert("tokenizer.ggml.add_bos_token", false);
    metadata.insert("tokenizer.ggml.tokens", tokens.tokens);
    metadata.insert("tokenizer.ggml.merges", merges);
    metadata
}

/// A vocabulary of pieces with marks for spaces, and scores for the kinds that have them.
fn scored(model: &str, text: &str) -> Metadata {
    const UNKNOWN: i32 = 2;
    let mut tokens = Tokens::default();
    tokens.add("<unk>".to_owned());
    for c in text.chars().filter(|c| !c.is_whitespace()) {
        tokens.add(c.to_string());
    }
    for word in text.split_whitespace() {
        let spelling = format!("▁{word}");
        for (end, c) in spelling.char_indices() {
            tokens.add(spelling[..end + c.len_utf8()].to_owned());
        }
    }
    let n_known = tokens.tokens.len();
    let is_inside = |token: &&String| !token.contains('▁');
    let inside: Vec<String> = tokens.tokens[1..]
        .iter()
        .filter(is_inside)
        .cloned()
        .collect();
    let mut random = Random(9);
    while tokens.tokens.len() < N_TOKENS {
        let left = &tokens.tokens[1 + random.below(n_known - 1)];
        let [middle, right] = [0; 2].map(|_| &inside[random.below(inside.len())]);
        tokens.add(format!("{left}{middle}{right}"));
    }
    let n_tokens = tokens.tokens.len();
    let mut types = vec![1; n_tokens];
    types[0] = UNKNOWN;
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", model);
    metadata.insert("tokenizer.ggml.tokens", tokens.tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    let scores: Vec<f32> = (0..n_tokens).map(|id| -(id as f32)).collect();
    metadata.insert("tokenizer.ggml.scores", scores);
    metadata.insert("tokenizer.ggml.unknown_token_id", 0_u32);
    metadata
}
