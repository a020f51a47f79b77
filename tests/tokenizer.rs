//! Text to ids and back: against hand-worked vocabularies, a naive merger, and real vocabularies.

mod support;

use std::collections::HashMap;
use std::path::PathBuf;

use support::shared;
use trueshot::gguf::{Gguf, Metadata};
use trueshot::{Error, Tokenizer};

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// A byte-level vocabulary: the 256 bytes in order, merges, and special tokens from id 261 on.
fn tiny_bpe() -> Metadata {
    let mut tokens: Vec<String> = Vec::new();
    let mut beyond_latin = 0x100_u32;
    for byte in 0..=255_u8 {
        let is_printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let c = if is_printable {
            u32::from(byte)
        } else {
            beyond_latin
        };
        beyond_latin += u32::from(!is_printable);
        tokens.push(char::from_u32(c).unwrap().to_string());
    }
    let merges = ["Ġ t", "h e", "Ġt he", "l l", "ll o"];
    tokens.extend(merges.map(|merge| merge.replace(' ', "")));
    let mut types = vec![NORMAL; tokens.len()];
    for (token, kind) in [
        ("<|im_start|>", CONTROL),
        ("<|im_end|>", CONTROL),
        ("<tag>", USER_DEFINED),
        ("<tag><tag>", USER_DEFINED),
        ("<|begin|>", CONTROL),
    ] {
        tokens.push(token.to_owned());
        types.push(kind);
    }
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "gpt-2");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", merges.map(str::to_owned).to_vec());
    metadata.insert("tokenizer.ggml.bos_token_id", 265_u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 262_u32);
    metadata
}

/// A SentencePiece vocabulary: `<unk>`, `<s>`, `</s>`, the 256 byte tokens from id 3, `pieces` from
/// id 259, and a user-defined token behind them.
fn spm(pieces: &[(&str, f32)]) -> Metadata {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut types = vec![UNKNOWN, CONTROL, CONTROL];
    tokens.extend((0..=255).map(|byte: u8| format!("<0x{byte:02X}>")));
    types.resize(tokens.len(), BYTE);
    let mut scores = vec![0.0; tokens.len()];
    for &(piece, score) in pieces {
        tokens.push(piece.to_owned());
        types.push(NORMAL);
        scores.push(score);
    }
    tokens.push("<tag>".to_owned());
    types.push(USER_DEFINED);
    scores.push(0.0);
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "llama");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.scores", scores);
    metadata
}

const TINY_PIECES: &[(&str, f32)] = &[
    ("▁", -9.0),   // 259
    ("a", -9.0),   // 260
    ("b", -9.0),   // 261
    ("c", -9.0),   // 262
    ("ab", -1.0),  // 263
    ("bc", -1.0),  // 264
    ("▁a", -2.0),  // 265
    ("▁ab", -3.0), // 266
    ("cc", -0.5),  // 267
];
const TINY_TAG: u32 = 268;

fn build(metadata: &Metadata) -> Tokenizer {
    Tokenizer::from_metadata(metadata).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, false, false).unwrap()
}

#[test]
fn byte_level_bpe_merges_by_rank_within_words() {
    let tokenizer = build(&tiny_bpe());
    assert_eq!(ids(&tokenizer, "hello the"), [257, 260, 258]);
    assert_eq!(ids(&tokenizer, "é\n"), [0xC3, 0xA9, 0x0A]);
    // "l l" ranks before "ll o", and of three l the left two merge.
    assert_eq!(ids(&tokenizer, "lllo"), [259, 0x6C, 0x6F]);
    assert!(ids(&tokenizer, "").is_empty());
}

#[test]
fn special_tokens_are_parsed_only_on_demand_and_user_defined_ones_always() {
    let tokenizer = build(&tiny_bpe());
    let text = "<|im_start|>the<tag><tag><tag>";
    let parsed = tokenizer.encode(text, false, true).unwrap();
    assert_eq!(parsed, [261, 0x74, 257, 264, 263]);
    assert_eq!(tokenizer.decode(&parsed).unwrap(), "the<tag><tag><tag>");

    let plain = ids(&tokenizer, text);
    assert!(!plain.contains(&261), "{plain:?}");
    assert!(plain.ends_with(&[264, 263]), "{plain:?}");
    assert_eq!(tokenizer.decode(&plain).unwrap(), text);
}

#[test]
fn bos_and_eos_are_added_as_the_file_asks() {
    let mut metadata = tiny_bpe();
    let encode = |metadata: &Metadata| build(metadata).encode("he", true, false).unwrap();
    assert_eq!(encode(&metadata), [257]);
    metadata.insert("tokenizer.ggml.pre", "llama-bpe");
    assert_eq!(
        encode(&metadata),
        [265, 257],
        "llama-bpe has a BOS by default"
    );
    metadata.insert("tokenizer.ggml.add_bos_token", false);
    metadata.insert("tokenizer.ggml.add_eos_token", true);
    assert_eq!(encode(&metadata), [257, 262]);

    let tokenizer = build(&spm(TINY_PIECES));
    assert_eq!(
        tokenizer.encode("", true, false).unwrap(),
        [1],
        "llama has a BOS by default"
    );
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
}

#[test]
fn end_of_generation_is_known_by_key_and_by_name() {
    let mut metadata = tiny_bpe();
    assert_eq!(build(&metadata).end_of_generation_ids(), [262]);
    metadata.insert("tokenizer.ggml.eot_token_id", 265_u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 261_u32);
    let tokenizer = build(&metadata);
    assert_eq!(tokenizer.end_of_generation_ids(), [261, 262, 265]);
    assert!(tokenizer.is_end_of_generation(262) && !tokenizer.is_end_of_generation(257));

    // A file that takes `<|im_end|>` for plain text is not believed; `</s>` may well be that.
    let mut tokens = metadata
        .strings("tokenizer.ggml.tokens")
        .unwrap()
        .unwrap()
        .to_vec();
    tokens[264] = "</s>".to_owned();
    let n_tokens = tokens.len();
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", vec![NORMAL; n_tokens]);
    let tokenizer = build(&metadata);
    assert_eq!(tokenizer.end_of_generation_ids(), [261, 262, 265]);
    assert!(tokenizer.is_special(262) && !tokenizer.is_special(264));
}

#[test]
fn sentence_piece_merges_the_best_score_first_and_the_leftmost_on_a_tie() {
    let tokenizer = build(&spm(TINY_PIECES));
    // ab and bc tie: ab is further left; then ▁ab.
    assert_eq!(ids(&tokenizer, "abc"), [266, 262]);
    // cc has a better score than bc.
    assert_eq!(ids(&tokenizer, "abcc bc"), [266, 267, 259, 264]);
    // No piece: its UTF-8 bytes.
    assert_eq!(ids(&tokenizer, "é"), [259, 3 + 0xC3, 3 + 0xA9]);
}

#[test]
fn sentence_piece_puts_a_space_in_front_of_text_at_the_start_and_behind_special_tokens() {
    let mut metadata = spm(TINY_PIECES);
    let text = "a</s>a<tag> a";
    let tokenizer = build(&metadata);
    let with_prefix = tokenizer.encode(text, false, true).unwrap();
    assert_eq!(with_prefix, [265, 2, 265, TINY_TAG, 259, 265]);
    assert_eq!(tokenizer.decode(&with_prefix).unwrap(), "aa<tag> a");

    metadata.insert("tokenizer.ggml.add_space_prefix", false);
    let tokenizer = build(&metadata);
    let without = tokenizer.encode(text, false, true).unwrap();
    assert_eq!(without, [260, 2, 260, TINY_TAG, 265]);
    assert_eq!(tokenizer.decode(&without).unwrap(), "aa<tag> a");
}

#[test]
fn sentence_piece_never_takes_plain_text_for_a_control_token() {
    let mut pieces = TINY_PIECES.to_vec();
    pieces.extend([("<", -5.0), ("<s", -5.0), (">", -5.0), ("s", -5.0)]);
    let tokenizer = build(&spm(&pieces));
    assert!(!ids(&tokenizer, "<s>").contains(&1));
    assert_eq!(
        tokenizer.decode(&ids(&tokenizer, "<s><0x41>")).unwrap(),
        "<s><0x41>"
    );
}

#[test]
fn phi_3_drops_the_whitespace_behind_its_special_tokens() {
    let mut metadata = tiny_bpe();
    metadata.insert("general.name", "Phi-3-mini");
    let tokenizer = build(&metadata);
    assert_eq!(
        tokenizer.encode("<|im_start|> \n he", false, true).unwrap(),
        [261, 257]
    );
}

#[test]
fn a_character_without_any_token_is_an_error_or_unknown() {
    let mut metadata = spm(TINY_PIECES);
    let n_tokens = metadata
        .strings("tokenizer.ggml.tokens")
        .unwrap()
        .unwrap()
        .len();
    metadata.insert("tokenizer.ggml.token_type", vec![NORMAL; n_tokens]);
    assert_eq!(ids(&build(&metadata), "aéa"), [265, 0, 260]);
}

#[test]
fn stream_decoder_never_emits_half_a_character() {
    let tokenizer = build(&tiny_bpe());
    let mut decoder = tokenizer.decoder();
    let mut push = |id: u32| decoder.push(id).unwrap();
    let crab: Vec<String> = "🦀".bytes().map(|byte| push(byte.into())).collect();
    assert_eq!(crab, ["", "", "", "🦀"]);
    // A character broken off by another is U+FFFD as soon as that is certain.
    assert_eq!([push(0xE2), push(0x82), push(0x61)], ["", "", "\u{FFFD}a"]);
    assert_eq!(push(0xFF), "\u{FFFD}");
    assert_eq!(push(0xF0), "");
    assert_eq!(decoder.finish(), "\u{FFFD}");
    assert_eq!(decoder.finish(), "");
}

#[test]
fn stream_decoder_keeps_the_space_inside_a_text() {
    let tokenizer = build(&spm(TINY_PIECES));
    let (space_a, control) = (265, 1);
    assert_eq!(tokenizer.decoder().push(space_a).unwrap(), "a");
    assert_eq!(
        tokenizer
            .decoder_after(&[control])
            .unwrap()
            .push(space_a)
            .unwrap(),
        "a"
    );
    assert_eq!(
        tokenizer
            .decoder_after(&[control, 260])
            .unwrap()
            .push(space_a)
            .unwrap(),
        " a"
    );
}

#[test]
fn token_bytes_are_what_a_token_stands_for() {
    let bpe = build(&tiny_bpe());
    assert_eq!(bpe.token_bytes(258).unwrap().as_ref(), b" the");
    assert_eq!(bpe.token(258), Some("Ġthe"));
    assert_eq!(bpe.token_bytes(0xC3).unwrap().as_ref(), [0xC3]);
    assert_eq!(bpe.token_bytes(262).unwrap().as_ref(), b"<|im_end|>");
    let spm = build(&spm(TINY_PIECES));
    assert_eq!(spm.token_bytes(266).unwrap().as_ref(), b" ab");
    assert_eq!(spm.token_bytes(3 + 0xFF).unwrap().as_ref(), [0xFF]);
}

#[test]
fn ids_beyond_the_vocabulary_are_errors() {
    let tokenizer = build(&tiny_bpe());
    let n_tokens = tokenizer.vocab_size() as u32;
    assert_eq!(n_tokens, 266);
    let error = tokenizer.decode(&[257, n_tokens]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tokenizer: token id 266, expected below 266"
    );
    assert!(tokenizer.token_bytes(u32::MAX).is_err());
    assert!(tokenizer.decoder_after(&[n_tokens]).is_err());
    assert_eq!(tokenizer.token(n_tokens), None);
    assert!(!tokenizer.is_special(u32::MAX) && !tokenizer.is_end_of_generation(u32::MAX));
}

#[test]
fn contradictions_in_the_metadata_name_the_key() {
    type Change = fn(&mut Metadata);
    let cases: [(Metadata, Change, &str); 14] = [
        (
            Metadata::default(),
            |_| {},
            "`tokenizer.ggml.model` is missing",
        ),
        (
            tiny_bpe(),
            |m| drop(m.insert("tokenizer.ggml.model", "rwkv")),
            "tokenizer `rwkv` is not supported (supported: gpt2, gemma4, llama, t5, bert)",
        ),
        (
            tiny_bpe(),
            |m| drop(m.insert("tokenizer.ggml.model", "none")),
            "key `tokenizer.ggml.model`: `none`: the file has no tokenizer",
        ),
        (
            tiny_bpe(),
            |m| drop(m.insert("tokenizer.ggml.pre", "x")),
            "pre-tokenizer `x` is not",
        ),
        (
            tiny_bpe(),
            |m| drop(m.insert("tokenizer.ggml.token_type", vec![1_i32; 3])),
            "key `tokenizer.ggml.token_type`: 3 entries, expected 266",
        ),
        (
            tiny_bpe(),
            |m| drop(m.insert("tokenizer.ggml.token_type", vec![7_i32; 266])),
            "key `tokenizer.ggml.token_type`: entry 0 is 7",
        ),
        (
            tiny_bpe(),
            |m| drop(m.insert("tokenizer.ggml.token_type", vec![BYTE; 266])),
            "key `tokenizer.ggml.tokens`: byte token 0 is",
        ),
        (
            words(
                "t5",
                &unscored(&["a", &"b".repeat(4096), &"c".repeat(4097)]),
            ),
            |_| {},
            "key `tokenizer.ggml.tokens`: entry 5 has 4097 bytes, expected at most 4096",
        ),
        (
            tiny_bpe(),
            |m| drop(m.insert("tokenizer.ggml.bos_token_id", 266_u32)),
            "key `tokenizer.ggml.bos_token_id`: 266, expected below 266",
        ),
        (
            tiny_bpe(),
            |m| {
                drop(m.insert(
                    "tokenizer.ggml.merges",
                    vec!["h e".to_owned(), "he".to_owned()],
                ))
            },
            "key `tokenizer.ggml.merges`: entry 1 is `he`",
        ),
        (
            tiny_bpe(),
            |m| drop(m.insert("tokenizer.ggml.merges", vec!["h x".to_owned()])),
            "key `tokenizer.ggml.merges`: Token `hx` out of vocabulary",
        ),
        (
            spm(TINY_PIECES),
            |m| drop(m.insert("tokenizer.ggml.scores", vec![0.0_f32; 3])),
            "key `tokenizer.ggml.scores`: 3 entries, expected 269",
        ),
        (
            spm(TINY_PIECES),
            |m| drop(m.insert("tokenizer.ggml.scores", vec![f32::NAN; 269])),
            "key `tokenizer.ggml.scores`: entry 0 is NaN",
        ),
        (
            spm(&[]),
            |m| drop(m.insert("tokenizer.ggml.tokens", vec!["a".to_owned()])),
            "key `tokenizer.ggml.token_type`: 260 entries, expected 1",
        ),
    ];
    for (mut metadata, change, expected) in cases {
        change(&mut metadata);
        let error = Tokenizer::from_metadata(&metadata).unwrap_err();
        assert!(
            matches!(
                error,
                Error::InvalidModel { .. } | Error::Unsupported { .. }
            ),
            "{error:?}"
        );
        assert!(
            error.to_string().contains(expected),
            "{error}, expected `{expected}`"
        );
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

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Text of every script, with the whitespace and the controls that tokenizers stumble on.
    fn unicode(&mut self) -> String {
        const RANGES: &[(u32, u32)] = &[
            (0x20, 0x7E),
            (0x61, 0x7A),
            (0x20, 0x20),
            (0x00, 0x1F),
            (0x0A, 0x0D),
            (0x80, 0x2FF),
            (0x300, 0x36F),
            (0x400, 0x6FF),
            (0x900, 0xE7F),
            (0x2000, 0x206F),
            (0x3000, 0x30FF),
            (0x4E00, 0x9FFF),
            (0xAC00, 0xD7A3),
            (0xE000, 0xFFFD),
            (0x1F300, 0x1FAFF),
            (0x10000, 0x10FFFF),
        ];
        let mut text = String::new();
        while self.below(24) > 0 {
            let (first, last) = self.pick(RANGES);
            for _ in 0..=self.below(4) {
                let c = first + self.below((last - first + 1) as usize) as u32;
                text.extend(char::from_u32(c));
            }
        }
        text
    }
}

/// The definition of SentencePiece's BPE: again and again, the best pair of all, the leftmost of
/// equals.
fn merge_naively(pieces: &[(&str, f32)], text: &str) -> Vec<String> {
    let scores: HashMap<&str, f32> = pieces.iter().copied().collect();
    let marked = format!("▁{}", text.replace(' ', "▁"));
    let mut symbols: Vec<String> = marked.chars().map(String::from).collect();
    loop {
        let mut best: Option<(usize, f32)> = None;
        for left in 1..symbols.len() {
            let pair = format!("{}{}", symbols[left - 1], symbols[left]);
            if let Some(&score) = scores.get(pair.as_str())
                && best.is_none_or(|(_, so_far)| score > so_far)
            {
                best = Some((left, score));
            }
        }
        let Some((left, _)) = best else {
            return symbols;
        };
        let right = symbols.remove(left);
        symbols[left - 1].push_str(&right);
    }
}

#[test]
fn sentence_piece_agrees_with_the_naive_loop_on_random_vocabularies() {
    const ALPHABET: [&str; 4] = ["a", "b", "c", "▁"];
    let seed = 11;
    let mut random = Random(seed);
    for round in 0..300 {
        let mut pieces: Vec<(String, f32)> =
            ALPHABET.map(|letter| (letter.to_owned(), -99.0)).to_vec();
        for _ in 0..random.below(30) {
            let piece: String = (0..2 + random.below(4))
                .map(|_| random.pick(&ALPHABET))
                .collect();
            if pieces.iter().all(|(known, _)| *known != piece) {
                pieces.push((piece, -(random.below(6) as f32)));
            }
        }
        let pieces: Vec<(&str, f32)> = pieces.iter().map(|(p, s)| (p.as_str(), *s)).collect();
        let tokenizer = build(&spm(&pieces));
        for _ in 0..20 {
            let text: String = (0..random.below(40))
                .map(|_| random.pick(&["a", "b", "c", " "]))
                .collect();
            let found = ids(&tokenizer, &text);
            let found: Vec<&str> = found
                .iter()
                .map(|&id| tokenizer.token(id).unwrap())
                .collect();
            let expected = if text.is_empty() {
                vec![]
            } else {
                merge_naively(&pieces, &text)
            };
            assert_eq!(
                found, expected,
                "seed {seed}, round {round}, {text:?}, {pieces:?}"
            );
        }
    }
}

/// Decodes at once and token by token, and expects the text back both times.
fn assert_round_trip(name: &str, tokenizer: &Tokenizer, text: &str) {
    let found = tokenizer.encode(text, true, false).unwrap();
    assert_eq!(tokenizer.decode(&found).unwrap(), text, "{name}");
    let mut decoder = tokenizer.decoder();
    let mut streamed: String = found.iter().map(|&id| decoder.push(id).unwrap()).collect();
    streamed.push_str(&decoder.finish());
    assert_eq!(streamed, text, "{name}, streamed");
}

#[test]
fn random_unicode_comes_back_from_every_vocabulary() {
    let mut tokenizers = vec![
        ("tiny bpe".to_owned(), build(&tiny_bpe())),
        ("tiny spm".to_owned(), build(&spm(TINY_PIECES))),
    ];
    for name in ["gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3"] {
        if let Some(path) = shared(&format!("vocab/ggml-vocab-{name}.gguf")) {
            tokenizers.push((name.to_owned(), build(Gguf::open(path).unwrap().metadata())));
        }
    }
    for (name, tokenizer) in &tokenizers {
        let mut random = Random(7);
        for _ in 0..400 {
            // The mark for a space cannot be told from a space.
            let text = random.unicode().replace('▁', "");
            assert_round_trip(name, tokenizer, &text);
        }
        for text in [
            " a",
            "  a  ",
            "</s>",
            "<|im_end|> <|endoftext|>",
            "<0x41>",
            "\r\n\t ",
        ] {
            assert_round_trip(name, tokenizer, text);
        }
    }
}

#[test]
fn long_runs_of_one_character_are_encoded_in_reasonable_time() {
    for (name, metadata) in [("bpe", tiny_bpe()), ("spm", spm(TINY_PIECES))] {
        let tokenizer = build(&metadata);
        for c in ["a", " ", "\n", "日"] {
            assert_round_trip(name, &tokenizer, &c.repeat(100_000));
        }
    }
}

#[test]
fn a_run_of_more_than_a_million_spaces_is_cut_as_a_short_one() {
    for pre in ["gpt-2", "llama-bpe", "jais-2", "deepseek-llm"] {
        let mut metadata = tiny_bpe();
        metadata.insert("tokenizer.ggml.pre", pre);
        let tokenizer = build(&metadata);
        let text = " ".repeat(1_500_000) + "x";
        let found = ids(&tokenizer, &text);
        assert_eq!(
            (found.len(), found.last()),
            (1_500_001, Some(&0x78)),
            "{pre}"
        );
        assert_eq!(tokenizer.decode(&found).unwrap(), text, "{pre}");
    }
}

#[test]
fn llama_cpp_vocabularies_give_the_recorded_ids() {
    // As recorded by llama.cpp's tests/test-tokenizer-0: no BOS, special tokens not parsed.
    for name in [
        "gpt-2",
        "llama-bpe",
        "qwen2",
        "falcon",
        "llama-spm",
        "phi-3",
        "bert-bge",
    ] {
        let Some(path) = shared(&format!("vocab/ggml-vocab-{name}.gguf")) else {
            return;
        };
        let tokenizer = build(Gguf::open(&path).unwrap().metadata());
        let read = |extension: &str| {
            let path = PathBuf::from(format!("{}.{extension}", path.display()));
            std::fs::read_to_string(path).unwrap()
        };
        let (inputs, outputs) = (read("inp"), read("out"));
        let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        let (last, inputs) = inputs.split_last().unwrap();
        assert_eq!(
            (*last, inputs.len()),
            ("", outputs.lines().count()),
            "{name}"
        );
        for (input, output) in inputs.iter().zip(outputs.lines()) {
            let expected: Vec<u32> = output
                .split_whitespace()
                .map(|id| id.parse().unwrap())
                .collect();
            assert_eq!(ids(&tokenizer, input), expected, "{name}: {input:?}");
            if name != "bert-bge" {
                assert_eq!(&tokenizer.decode(&expected).unwrap(), input, "{name}");
            }
        }
    }
}

/// A vocabulary of `t5` or `bert`: `<unk>`, `<s>`, `</s>`, then the pieces with their scores.
fn words(model: &str, pieces: &[(String, f32)]) -> Metadata {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut types = vec![UNKNOWN, CONTROL, CONTROL];
    let mut scores = vec![0.0_f32; 3];
    for (piece, score) in pieces {
        tokens.push(piece.clone());
        types.push(NORMAL);
        scores.push(*score);
    }
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", model);
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.scores", scores);
    metadata.insert("tokenizer.ggml.unknown_token_id", 0_u32);
    metadata.insert("tokenizer.ggml.bos_token_id", 1_u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 2_u32);
    metadata.insert("tokenizer.ggml.seperator_token_id", 2_u32);
    metadata
}

fn unscored(pieces: &[&str]) -> Vec<(String, f32)> {
    pieces
        .iter()
        .map(|piece| ((*piece).to_owned(), -1.0))
        .collect()
}

#[test]
fn word_piece_takes_the_longest_pieces_or_the_whole_word_is_unknown() {
    let pieces = unscored(&["▁un", "▁u", "aff", "able", "▁!", "▁a", "▁中"]);
    let mut metadata = words("bert", &pieces);
    let tokenizer = build(&metadata);
    assert_eq!(ids(&tokenizer, "UNaffable!a中a"), [3, 5, 6, 7, 8, 9, 8]);
    assert_eq!(ids(&tokenizer, "a unaffabl a"), [8, 0, 8]);
    assert_eq!(ids(&tokenizer, "\u{200B}á\u{FFFD}\u{0}\t\r\n a"), [8, 8]);
    assert_eq!(tokenizer.encode("a", true, false).unwrap(), [1, 8, 2]);
    assert_eq!(tokenizer.decode(&[1, 8, 0, 8, 2]).unwrap(), "a a");
    assert!(ids(&tokenizer, "").is_empty() && ids(&tokenizer, " \n").is_empty());
    metadata.insert("tokenizer.ggml.normalizer.lowercase", false);
    assert_eq!(ids(&build(&metadata), "A a á"), [0, 8, 0]);
}

/// Of a long piece that the text begins, but does not end, each prefix could be looked for.
#[test]
fn a_long_word_is_encoded_in_reasonable_time() {
    let long = "a".repeat(4095) + "b";
    let tokenizer = build(&words("bert", &unscored(&["▁a", "a", &long])));
    let started = std::time::Instant::now();
    let found = ids(&tokenizer, &"a".repeat(100_000));
    assert_eq!(found.len(), 100_000);
    assert!(found[0] == 3 && found[1..].iter().all(|&id| id == 4));
    let took = started.elapsed();
    assert!(took.as_secs() < 20, "{took:?}");
}

#[test]
fn user_defined_tokens_are_found_before_the_words_of_unigram() {
    let pieces = unscored(&["▁", "a", "▁a", "<x>", "<x>a"]);
    let mut metadata = words("t5", &pieces);
    let types = [
        vec![UNKNOWN, CONTROL, CONTROL],
        vec![NORMAL; 3],
        vec![USER_DEFINED; 2],
    ];
    metadata.insert("tokenizer.ggml.token_type", types.concat());
    let tokenizer = build(&metadata);
    for parse_special in [false, true] {
        let found = tokenizer.encode("a<x>a<x>", false, parse_special).unwrap();
        assert_eq!(found, [5, 7, 6]);
    }
}

#[test]
fn random_text_comes_back_normalised_from_word_piece() {
    // A part of a text, what it becomes, and whether it stands alone.
    const PARTS: [(&str, &str, bool); 14] = [
        ("a", "a", false),
        ("B", "b", false),
        ("É", "e", false),
        ("o\u{308}", "o", false),
        ("ß", "ß", false),
        ("Я", "я", false),
        ("7", "7", false),
        ("🦀", "🦀", false),
        ("!", "!", true),
        ("$", "$", true),
        ("、", "、", true),
        ("中", "中", true),
        ("\u{200B}", "", false),
        ("\u{7}", "", false),
    ];
    let mut pieces = Vec::new();
    for (_, normal, _) in PARTS.iter().filter(|part| !part.1.is_empty()) {
        pieces.extend(unscored(&[normal, &format!("▁{normal}")]));
    }
    pieces.extend(unscored(&["▁abba", "eso", "▁яя", "ab7"]));
    let tokenizer = build(&words("bert", &pieces));
    let mut random = Random(3);
    for _ in 0..2000 {
        let (mut text, mut words) = (String::new(), vec![String::new()]);
        for _ in 0..random.below(40) {
            if random.below(5) == 0 {
                text.push(random.pick(&[' ', '\n', '\t', '\u{3000}', '\u{A0}']));
                words.push(String::new());
                continue;
            }
            let (part, normal, is_alone) = random.pick(&PARTS);
            text.push_str(part);
            if is_alone {
                words.extend([normal.to_owned(), String::new()]);
            } else {
                words.last_mut().unwrap().push_str(normal);
            }
        }
        words.retain(|word| !word.is_empty());
        let found = ids(&tokenizer, &text);
        assert_eq!(
            tokenizer.decode(&found).unwrap(),
            words.join(" "),
            "{text:?}"
        );
    }
}

/// The best total score of all the ways to spell a text, by trying each.
fn best_score(pieces: &[(String, f32)], text: &str) -> f64 {
    if text.is_empty() {
        return 0.0;
    }
    let spelled = pieces.iter().filter_map(|(piece, score)| {
        let rest = text.strip_prefix(piece.as_str())?;
        Some(f64::from(*score) + best_score(pieces, rest))
    });
    spelled.fold(f64::NEG_INFINITY, f64::max)
}

#[test]
fn unigram_finds_the_best_of_all_spellings_and_gives_the_text_back() {
    let seed = 17;
    let mut random = Random(seed);
    for round in 0..200 {
        let mut pieces: Vec<(String, f32)> = Vec::new();
        for letter in ["a", "b", "é", "▁"] {
            pieces.push((letter.to_owned(), -8.0 - random.below(8) as f32));
        }
        for _ in 0..random.below(25) {
            let piece: String = (0..2 + random.below(3))
                .map(|_| random.pick(&["a", "b", "é", "▁"]))
                .collect();
            if pieces.iter().all(|(known, _)| *known != piece) {
                pieces.push((piece, -1.0 - random.below(100) as f32 / 7.0));
            }
        }
        let mut metadata = words("t5", &pieces);
        let tokenizer = build(&metadata);
        metadata.insert("tokenizer.ggml.remove_extra_whitespaces", true);
        let merging = build(&metadata);
        for _ in 0..10 {
            let text: String = (0..random.below(10))
                .map(|_| random.pick(&["a", "b", "é", " "]))
                .collect();
            let found = ids(&tokenizer, &text);
            // A text of spaces alone has no word in front of which a space would go.
            let is_blank = text.trim().is_empty();
            let marked = text.replace(' ', "▁");
            let spelled: String = found
                .iter()
                .map(|&id| tokenizer.token(id).unwrap())
                .collect();
            let leading = marked.len() - marked.trim_start_matches('▁').len();
            let expected = if is_blank {
                marked.clone()
            } else {
                format!("{}▁{}", &marked[..leading], &marked[leading..])
            };
            assert_eq!(spelled, expected, "seed {seed}, round {round}, {text:?}");
            let score: f64 = found
                .iter()
                .map(|&id| f64::from(pieces[id as usize - 3].1))
                .sum();
            let best = best_score(&pieces, &spelled);
            assert!(
                (score - best).abs() <= 1e-9,
                "seed {seed}, round {round}, {text:?}: {score}, expected {best}"
            );
            if !is_blank {
                assert_eq!(tokenizer.decode(&found).unwrap(), text, "{text:?}");
            }
            let normal = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let merged = merging.decode(&ids(&merging, &text)).unwrap();
            assert_eq!(merged, normal, "seed {seed}, round {round}, {text:?}");
        }
    }
}

#[test]
fn unigram_joins_unknown_characters_and_ends_with_eos() {
    let tokenizer = build(&words("t5", &unscored(&["▁", "a", "▁a"])));
    assert_eq!(
        tokenizer.encode("a日本a 日", true, false).unwrap(),
        [5, 0, 4, 3, 0, 2]
    );
    assert_eq!(tokenizer.decode(&[5, 0, 5, 2]).unwrap(), "a a");
}

#[test]
fn plainly_spelled_bpe_merges_across_words_and_falls_back_to_bytes() {
    let mut tokens: Vec<String> = (0..=255)
        .map(|byte: u8| format!("<0x{byte:02X}>"))
        .collect();
    let mut types = vec![BYTE; 256];
    let merges = ["a b", "▁ ab", "ab ▁ab"];
    tokens.extend(["a", "b", "▁", "ab", "▁ab", "ab▁ab", "\n", "\n\n", "<bos>"].map(str::to_owned));
    types.resize(tokens.len(), NORMAL);
    types[264] = CONTROL;
    let mut metadata = Metadata::default();
    metadata.insert("tokenizer.ggml.model", "gemma4");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", merges.map(str::to_owned).to_vec());
    metadata.insert("tokenizer.ggml.bos_token_id", 264_u32);
    let tokenizer = build(&metadata);
    let text = "ab ab\n\né ";
    let found = tokenizer.encode(text, true, false).unwrap();
    assert_eq!(found, [264, 261, 263, 0xC3, 0xA9, 258]);
    assert_eq!(tokenizer.decode(&found).unwrap(), text);
    let mut random = Random(23);
    for _ in 0..300 {
        assert_round_trip("gemma4", &tokenizer, &random.unicode().replace('▁', ""));
    }
}

#[test]
fn a_megabyte_of_random_unicode_comes_back_whole() {
    let mut tokenizers = vec![build(&tiny_bpe()), build(&spm(TINY_PIECES))];
    for name in ["gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3"] {
        if let Some(path) = shared(&format!("vocab/ggml-vocab-{name}.gguf")) {
            tokenizers.push(build(Gguf::open(path).unwrap().metadata()));
        }
    }
    // Falcon's vocabulary lacks some bytes.
    let mut random = Random(29);
    let mut text = String::new();
    while text.len() < 1 << 20 {
        text.push_str(&random.unicode().replace('▁', ""));
    }
    for (index, tokenizer) in tokenizers.iter().enumerate() {
        let found = tokenizer.decode(&ids(tokenizer, &text)).unwrap();
        let first = found.bytes().zip(text.bytes()).position(|(a, b)| a != b);
        assert_eq!(
            (first, found.len()),
            (None, text.len()),
            "tokenizer {index}"
        );
    }
}

#[test]
fn random_bytes_stream_as_the_lossy_text_of_them_all() {
    let (bpe, spm) = (build(&tiny_bpe()), build(&spm(TINY_PIECES)));
    let mut random = Random(31);
    for round in 0..3000 {
        let mut bytes = Vec::new();
        for _ in 0..random.below(30) {
            match random.below(4) {
                0 => bytes.push(random.below(256) as u8),
                1 => {
                    bytes.push(random.pick(&[0xC3, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xA6, 0xED, 0xA0]))
                }
                2 => bytes.extend("🦀".as_bytes()),
                _ => bytes.push(b'a'),
            }
        }
        // SentencePiece's own space in front of a text.
        let starts_with_space = bytes.first() == Some(&b' ');
        let expected = String::from_utf8_lossy(&bytes);
        for (tokenizer, first) in [(&bpe, 0), (&spm, 3)] {
            if first == 3 && starts_with_space {
                continue;
            }
            let mut decoder = tokenizer.decoder();
            let mut streamed = String::new();
            for &byte in &bytes {
                streamed.push_str(&decoder.push(first + u32::from(byte)).unwrap());
                let so_far = streamed.trim_end_matches('\u{FFFD}');
                assert!(expected.starts_with(so_far), "round {round}, {bytes:02X?}");
            }
            streamed.push_str(&decoder.finish());
            assert_eq!(streamed, expected, "round {round}, {bytes:02X?}");
        }
    }
}
