//! The pre-tokenizers by name: how text is cut into words before byte-level BPE.

use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// One way of cutting text, with the settings that hang on its name in GGUF files.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// The values of `tokenizer.ggml.pre` that ask for it.
    pub names: &'static [&'static str],
    /// Applied one after the other, each within the segments that those before it left; a match is
    /// a segment and so is what lies between two matches.
    pub regexes: &'static [&'static str],
    /// A word that is a token as it stands is that token, whatever the merges say.
    pub ignore_merges: bool,
    /// BOS goes in front where the file does not say.
    pub add_bos: bool,
}

/// Source: openai/gpt-2 `src/encoder.py`.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Source: `tokenizer.json` of meta-llama/Meta-Llama-3-8B.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Source: `tokenizer.json` of Qwen/Qwen2-7B.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The names, and for `smollm`, `falcon` and `default` the order of the regexes, are facts of
/// llama.cpp `src/llama-vocab.cpp` (`llm_tokenizer_bpe`, `llama_vocab::impl::load`).
const TABLE: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["default"],
        regexes: &[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["gpt-2"],
        regexes: &[GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["smollm"],
        regexes: &[r"\p{N}", GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        regexes: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        regexes: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["falcon"],
        regexes: &[r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
    },
];

impl PreTokenizer {
    /// The pre-tokenizer that the file names; `default` where it names none.
    pub fn from_metadata(metadata: &Metadata) -> Result<&'static PreTokenizer> {
        let name = metadata.str("tokenizer.ggml.pre")?.unwrap_or_else(|| {
            log::warn!("`tokenizer.ggml.pre` is absent: text is cut as for `default`");
            "default"
        });
        TABLE
            .iter()
            .find(|pre| pre.names.contains(&name))
            .ok_or_else(|| Error::Unsupported {
                kind: "pre-tokenizer",
                name: name.to_owned(),
                supported: TABLE
                    .iter()
                    .flat_map(|pre| pre.names)
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}
