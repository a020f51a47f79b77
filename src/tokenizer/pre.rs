//! The pre-tokenizers by name: how text is cut into words before BPE.
//!
//! The names, their settings and the order of the cuts are facts of llama.cpp
//! `src/llama-vocab.cpp` (`llm_tokenizer_bpe`, `llama_vocab::impl::load`). Where it approximates the
//! regex of the model's own `tokenizer.json` and quotes that, the quoted one stands here.

use super::cut::Cut;
use super::cut::Cut::{Cascade, Lines, Pattern, Threes, Words};
use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// One way of cutting text, with the settings that hang on its name in GGUF files.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// The values of `tokenizer.ggml.pre` that ask for it.
    pub names: &'static [&'static str],
    /// Applied one after the other, each within the segments that those before it left.
    pub cuts: &'static [Cut],
    /// A word that is a token as it stands is that token, whatever the merges say.
    pub ignore_merges: bool,
    /// BOS goes in front where the file does not say.
    pub add_bos: bool,
    /// Tokens spell text as it is, with U+2581 for a space, and not byte by byte.
    pub is_plain: bool,
}

/// The names whose ids a test compares with recorded ones. Every other name is unconfirmed: its row
/// says what the source says, and no recorded ids were at hand.
const CONFIRMED: &[&str] = &["gpt-2", "llama-bpe", "qwen2", "falcon", "smollm"];

/// Source: openai/gpt-2 `src/encoder.py`.
const GPT2: Cut = Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");

/// Source: `tokenizer.json` of meta-llama/Meta-Llama-3-8B.
const LLAMA3: Cut = Lines(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);

/// Source: `tokenizer.json` of Qwen/Qwen2-7B.
const QWEN2: Cut = Lines(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);

const O200K: Cut = Lines(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);

const DEEPSEEK3: &[Cut] = &[
    Pattern(r"\p{N}{1,3}"),
    Pattern("[一-龥\u{3040}-ゟ゠-ヿ]+"),
    PUNCTUATED,
];

const PUNCTUATED: Cut = Lines(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"##,
);

const SENTENCES: Cut = Pattern(r" ?[^(\s|.,!?…。，、।۔،)]+");

const NEWLINES: Cut = Pattern(r"[^\n]+|[\n]+");

const TABLE: &[PreTokenizer] = &[
    row(
        &["default"],
        &[
            Pattern(r"[\p{P}$+<=>^~|]+"),
            GPT2,
            Pattern(r"\p{N}+"),
            Pattern("[0-9][0-9][0-9]"),
        ],
    ),
    row(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "trillion",
            "granite-docling",
        ],
        &[GPT2],
    ),
    row(
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        &[Pattern(r"\p{N}"), GPT2],
    ),
    row(
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        &[LLAMA3],
    )
    .with_whole_words()
    .with_bos(),
    row(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[LLAMA3]),
    row(
        &["minicpm5"],
        &[
            Pattern(r"\p{N}{1,3}"),
            Lines(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
            ),
        ],
    )
    .with_whole_words(),
    row(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[QWEN2],
    ),
    row(&["laguna"], &[NEWLINES, QWEN2]),
    row(
        &["qwen35"],
        &[Lines(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
        )],
    ),
    row(
        &["ufakzeka"],
        &[Lines(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
        )],
    ),
    row(
        &["seed-coder"],
        &[Lines(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+",
        )],
    ),
    row(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[Lines(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]",
        )],
    ),
    row(
        &["exaone-moe"],
        &[Lines(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]",
        )],
    ),
    row(
        &["falcon"],
        &[
            Pattern(r"[\p{P}$+<=>^~|`]+"),
            GPT2,
            Pattern("[0-9][0-9][0-9]"),
        ],
    ),
    row(
        &["jais-2"],
        &[Cascade(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
        )],
    ),
    row(
        &["deepseek-llm"],
        &[
            Pattern(r"[\r\n]"),
            Pattern(
                r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\u{1F5F}-\u{1F7D}ᾀ-ᾴᾶ-ᾼ\u{1FBE}ῂ-ῄῆ-ῌ\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
            ),
            Pattern(r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+"),
            Pattern(r"\s+$"),
            Pattern(r"[一-龥\u{800}-一가-\u{D7FF}]+"),
            Pattern(r"\p{N}+"),
        ],
    ),
    row(
        &["deepseek-coder"],
        &[
            Pattern(r"[\r\n]"),
            Pattern(r"\s?\p{L}+"),
            Pattern(r"\s?\p{P}+"),
            Pattern(r"[一-龥\u{800}-一가-\u{D7FF}]+"),
            Pattern(r"\p{N}"),
        ],
    ),
    row(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        DEEPSEEK3,
    ),
    row(
        &["spark2_5"],
        &[
            Pattern(r"\p{N}{1,3}"),
            Pattern("[一-龥\u{3040}-ゟ゠-ヿ]+"),
            Words(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]"##,
            ),
            Pattern(r"\p{N}"),
        ],
    ),
    row(
        &["afmoe"],
        &[
            Threes {
                runs: r"\p{N}+",
                is_isolated: true,
            },
            Pattern(
                r"[一-\u{9FFF}㐀-\u{4DBF}\u{F900}-\u{FAFF}\u{3040}-ゟ゠-ヿ\u{FF65}-\u{FF9F}\u{2F00}-\u{2FDF}เ-\u{E7F}\u{E80}-\u{EFF}ក-\u{17FF}က-\u{109F}\u{AA60}-\u{AA7F}\u{A9E0}-\u{A9FF}가-\u{D7AF}\u{1100}-\u{11FF}]+",
            ),
            PUNCTUATED,
        ],
    ),
    row(
        &["youtu"],
        &[
            Pattern(
                r"[가-힣ㄱ-\u{318E}]+|[！…“”‘’—：；，\u{3001}-\u{303F}\u{FE30}-\u{FE4F}]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+",
            ),
            Lines(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
            ),
        ],
    )
    .with_whole_words(),
    row(&["poro-chat", "bloom", "gpt3-finnish"], &[SENTENCES]),
    row(&["viking"], &[SENTENCES, Pattern(r"\p{N}")]),
    row(
        &["tekken"],
        &[Lines(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
        )],
    )
    .with_whole_words()
    .with_bos(),
    row(
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        &[O200K],
    ),
    row(&["granite-embed-multi-97m"], &[O200K]).with_whole_words(),
    row(
        &["tiny_aya", "cohere2moe"],
        &[
            Threes {
                runs: r"\d+\b",
                is_isolated: true,
            },
            O200K,
        ],
    ),
    row(
        &["superbpe"],
        &[
            Pattern(r"\p{N}+"),
            Threes {
                runs: r"\d+",
                is_isolated: false,
            },
        ],
    ),
    row(
        &["kimi-k2"],
        &[Lines(
            r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
        )],
    ),
    row(
        &["chameleon"],
        &[
            Pattern("<sentinel:[0-9]+>"),
            Pattern("IMGIMG[A-I]{1,4}Z"),
            Pattern(r"[\t\n]|    |  "),
            Pattern(r"\p{N}"),
            Pattern(r"[\p{P}!-/:-@\[-`{-~]"),
            GPT2,
        ],
    )
    .with_bos(),
    row(&["gemma4", "granite-embed-multi-311m"], &[NEWLINES])
        .spelled_plainly()
        .with_bos(),
    row(&["sarvam-moe"], &[NEWLINES]).spelled_plainly(),
];

const fn row(names: &'static [&'static str], cuts: &'static [Cut]) -> PreTokenizer {
    PreTokenizer {
        names,
        cuts,
        ignore_merges: false,
        add_bos: false,
        is_plain: false,
    }
}

impl PreTokenizer {
    const fn with_whole_words(mut self) -> PreTokenizer {
        self.ignore_merges = true;
        self
    }

    const fn with_bos(mut self) -> PreTokenizer {
        self.add_bos = true;
        self
    }

    const fn spelled_plainly(mut self) -> PreTokenizer {
        self.is_plain = true;
        self
    }

    /// The pre-tokenizer that the file names; `default` where it names none.
    pub fn from_metadata(metadata: &Metadata) -> Result<&'static PreTokenizer> {
        let name = metadata.str("tokenizer.ggml.pre")?.unwrap_or_else(|| {
            log::warn!("`tokenizer.ggml.pre` is absent: text is cut as for `default`");
            "default"
        });
        PreTokenizer::by_name(name)
    }

    /// The pre-tokenizer of that name.
    pub fn by_name(name: &str) -> Result<&'static PreTokenizer> {
        let found = TABLE.iter().find(|pre| pre.names.contains(&name));
        if found.is_some() && !CONFIRMED.contains(&name) {
            log::info!("pre-tokenizer `{name}`: no recorded ids have confirmed it");
        }
        found.ok_or_else(|| Error::Unsupported {
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

#[cfg(test)]
mod tests {
    use super::super::cut::Cutter;
    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let cutter = Cutter::new(PreTokenizer::by_name(name).expect("known").cuts).expect("valid");
        let words = cutter.words(text).expect("cut");
        words.into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn every_name_has_one_row_and_every_confirmed_name_has_one() {
        let names: Vec<&str> = TABLE.iter().flat_map(|pre| pre.names).copied().collect();
        for name in &names {
            assert_eq!(names.iter().filter(|other| *other == name).count(), 1);
        }
        assert!(CONFIRMED.iter().all(|name| names.contains(name)));
    }

    #[test]
    fn every_row_cuts_and_loses_nothing() {
        let text =
            "I'VE  12345 ÉÉté/x\r\n\n \t日本語カナ 한국어! «a»\u{301}\u{85}\u{0}१२३ e.g. 🦀\n   ";
        for name in TABLE.iter().flat_map(|pre| pre.names) {
            let words = words(name, text);
            assert_eq!(words.concat(), text, "{name}");
            assert!(words.iter().all(|word| !word.is_empty()), "{name}");
        }
    }

    #[test]
    fn digits_are_cut_as_the_names_say() {
        for (name, expected) in [
            ("gpt-2", &["a", " 12345"][..]),
            ("smollm", &["a", " ", "1", "2", "3", "4", "5"]),
            ("llama-bpe", &["a", " ", "123", "45"]),
            ("qwen2", &["a", " ", "1", "2", "3", "4", "5"]),
            ("deepseek-v3", &["a", " ", "123", "45"]),
            ("afmoe", &["a", " ", "12", "345"]),
            ("tiny_aya", &["a", " ", "12", "345"]),
            ("superbpe", &["a ", "12", "345"]),
        ] {
            assert_eq!(words(name, "a 12345"), expected, "{name}");
        }
        // No word ends behind these digits: they are cut from the left.
        assert_eq!(words("tiny_aya", "12345a"), ["123", "45", "a"]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_those_that_are_known() {
        let error = PreTokenizer::by_name("x").expect_err("unknown").to_string();
        assert!(error.contains("`x`") && error.contains("tekken"), "{error}");
    }
}
