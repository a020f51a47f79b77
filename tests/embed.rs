//! Texts made into vectors, and what says no.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use tiny::Random;
use trueshot::gguf::{Gguf, WeightType, Writer};
use trueshot::{
    Activations, Device, EmbedOptions, Engine, Error, KvType, Pooling, VerifyOptions, WeightStorage,
};

const HIDDEN: usize = 32;
const INNER: usize = 48;
const POSITIONS: usize = 24;
const WORDS: [&str; 8] = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "\u{2581}cats",
    "\u{2581}like",
    "\u{2581}milk",
    "s",
];

/// A tiny BERT of random weights.
fn bert(pooling: u32) -> Writer {
    let kinds: Vec<i32> = (0..WORDS.len() as i32)
        .map(|id| match id {
            0 | 2 | 3 => 3,
            1 => 2,
            _ => 1,
        })
        .collect();
    let mut writer = Writer::new()
        .metadata("general.architecture", "bert")
        .metadata("bert.block_count", 2u32)
        .metadata("bert.context_length", POSITIONS as u32)
        .metadata("bert.embedding_length", HIDDEN as u32)
        .metadata("bert.feed_forward_length", INNER as u32)
        .metadata("bert.attention.head_count", 4u32)
        .metadata("bert.attention.layer_norm_epsilon", 1e-12f32)
        .metadata("bert.attention.causal", false)
        .metadata("bert.pooling_type", pooling)
        .metadata("tokenizer.ggml.model", "bert")
        .metadata("tokenizer.ggml.tokens", WORDS.map(str::to_owned).to_vec())
        .metadata("tokenizer.ggml.token_type", kinds)
        .metadata("tokenizer.ggml.unknown_token_id", 1u32)
        .metadata("tokenizer.ggml.bos_token_id", 2u32)
        .metadata("tokenizer.ggml.seperator_token_id", 3u32);
    let mut random = Random(11);
    let mut tensor = |writer: Writer, name: String, shape: Vec<usize>| {
        let n: usize = shape.iter().product();
        let centre = if name.ends_with("norm.weight") {
            1.0
        } else {
            0.0
        };
        let values: Vec<f32> = (0..n).map(|_| centre + 0.4 * random.next_f32()).collect();
        let ty = WeightType::F32;
        writer.tensor(name, shape, ty, ty.encode(&values)).unwrap()
    };
    for (name, shape) in [
        ("token_embd.weight", vec![WORDS.len(), HIDDEN]),
        ("token_types.weight", vec![2, HIDDEN]),
        ("position_embd.weight", vec![POSITIONS, HIDDEN]),
        ("token_embd_norm.weight", vec![HIDDEN]),
        ("token_embd_norm.bias", vec![HIDDEN]),
    ] {
        writer = tensor(writer, name.to_owned(), shape);
    }
    for layer in 0..2 {
        for (name, n_out, n_in) in [
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", HIDDEN, HIDDEN),
            ("attn_v", HIDDEN, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("attn_output_norm", HIDDEN, 0),
            ("ffn_up", INNER, HIDDEN),
            ("ffn_down", HIDDEN, INNER),
            ("layer_output_norm", HIDDEN, 0),
        ] {
            let shape = if n_in == 0 {
                vec![n_out]
            } else {
                vec![n_out, n_in]
            };
            writer = tensor(writer, format!("blk.{layer}.{name}.weight"), shape);
            writer = tensor(writer, format!("blk.{layer}.{name}.bias"), vec![n_out]);
        }
    }
    writer
}

fn open(writer: Writer) -> Gguf {
    Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap()
}

fn engine(device: Device) -> Engine {
    let builder = Engine::builder_from(open(bert(1))).device(device);
    builder.build().unwrap()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn vectors_of_texts_have_the_length_of_one_and_depend_on_their_text_alone() {
    for device in support::devices() {
        let engine = engine(device);
        let cats = engine.embed("cats like milk").unwrap();
        assert_eq!(cats.len(), HIDDEN);
        assert!((dot(&cats, &cats) - 1.0).abs() < 1e-6);
        let milk = engine.embed("milk like cats").unwrap();
        // The same words in another order are not the same text.
        assert!(dot(&cats, &milk) < 0.9999);
        let mut embedder = engine.embedder().unwrap();
        assert_eq!(embedder.embed("cats like milk").unwrap(), cats);
        assert_eq!(embedder.embed("milk like cats").unwrap(), milk);
        assert_eq!(engine.embed("cats like milk").unwrap(), cats);
        assert_eq!(engine.embed("Cats   like MILK").unwrap(), cats);
    }
}

#[test]
fn devices_embed_alike() {
    let reference = engine(Device::Reference).embed("cats like milk").unwrap();
    for device in support::devices() {
        let found = engine(device.clone()).embed("cats like milk").unwrap();
        let distance = found.iter().zip(&reference).map(|(a, b)| (a - b).abs());
        // Seen: 6e-8 on the CPU, 9e-8 on lavapipe.
        let distance = distance.fold(0.0, f32::max);
        assert!(distance <= 5e-6, "{device}: {distance:e}");
    }
}

#[test]
fn pooling_is_that_of_the_file_unless_another_is_asked_for() {
    let tokens = [2, 4, 5, 6, 3];
    let raw = |pooling| EmbedOptions {
        pooling,
        normalise: false,
        ..EmbedOptions::default()
    };
    let embed = |of_file: u32, options: &EmbedOptions| {
        let engine = Engine::builder_from(open(bert(of_file))).device(Device::Cpu);
        let mut embedder = engine.build().unwrap().embedder().unwrap();
        embedder.embed_tokens(&tokens, options).unwrap()
    };
    let rows = embed(0, &raw(None));
    assert_eq!(rows.len(), tokens.len() * HIDDEN);
    let mean: Vec<f32> = (0..HIDDEN)
        .map(|column| rows[column..].iter().step_by(HIDDEN).sum::<f32>() / tokens.len() as f32)
        .collect();
    let found = embed(1, &raw(None));
    let near = found.iter().zip(&mean).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(near, "{found:?}, expected {mean:?}");
    assert_eq!(embed(2, &raw(None)), rows[..HIDDEN]);
    assert_eq!(embed(3, &raw(None)), rows[rows.len() - HIDDEN..]);
    assert_eq!(embed(3, &raw(Some(Pooling::Cls))), rows[..HIDDEN]);
    assert_eq!(embed(3, &raw(Some(Pooling::None))), rows);
    let unit = EmbedOptions {
        pooling: Some(Pooling::None),
        ..EmbedOptions::default()
    };
    for row in embed(1, &unit).chunks(HIDDEN) {
        assert!((dot(row, row) - 1.0).abs() < 1e-6);
    }
}

#[test]
fn special_tokens_in_a_text_are_text_unless_asked_for() {
    let engine = engine(Device::Cpu);
    let ids = |parse_special| engine.tokenizer().encode("cats [SEP]", true, parse_special);
    assert_eq!(ids(true).unwrap(), [2, 4, 3, 3]);
    let plain = engine.embed("cats [SEP]").unwrap();
    let options = EmbedOptions {
        parse_special: true,
        ..EmbedOptions::default()
    };
    let special = engine.embed_with("cats [SEP]", &options).unwrap();
    assert_ne!(plain, special);
    let mut embedder = engine.embedder().unwrap();
    let of = |ids: Vec<u32>| embedder.embed_tokens(&ids, &EmbedOptions::default());
    let [found_plain, found_special] = [ids(false), ids(true)].map(|ids| ids.unwrap());
    let mut of = of;
    assert_eq!(of(found_plain).unwrap(), plain);
    assert_eq!(of(found_special).unwrap(), special);
}

#[test]
fn texts_beyond_the_context_and_wrong_tokens_are_refused() {
    let engine = engine(Device::Cpu);
    assert_eq!(engine.context_length(), POSITIONS);
    let mut embedder = engine.embedder().unwrap();
    let options = EmbedOptions::default();
    assert!(embedder.embed_tokens(&[4; POSITIONS], &options).is_ok());
    for (tokens, expected) in [
        (
            vec![4; POSITIONS + 1],
            "`tokens`: 25 tokens, expected 1 to 24, the context: an encoder sees a text as a whole",
        ),
        (vec![], "`tokens`: 0 tokens, expected 1 to 24"),
        (vec![4, 8], "`tokens`: token 8, expected less than 8"),
    ] {
        let error = embedder.embed_tokens(&tokens, &options).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let long = "cats ".repeat(POSITIONS);
    assert!(engine.embed(&long).is_err());
    assert!(engine.embed("cats").is_ok());
}

#[test]
fn encoders_refuse_sessions_and_decoders_refuse_texts() {
    let error = engine(Device::Cpu).session().map(|_| ()).unwrap_err();
    let expected = "generation by `bert` is not supported (supported: decoders; an encoder embeds texts, see \
                    `Engine::embed`)";
    assert_eq!(error.to_string(), expected);
    let decoder = tiny::engine(Device::Cpu);
    let error = decoder.embed("w1").unwrap_err();
    let expected = "embedding by `llama` is not supported (supported: bert, nomic-bert)";
    assert_eq!(error.to_string(), expected);
    assert!(decoder.session().is_ok());
}

#[test]
fn files_whose_pooling_or_direction_is_not_known_are_refused() {
    let refusal = |writer: Writer| {
        let built = Engine::builder_from(open(writer))
            .device(Device::Cpu)
            .build();
        built.map(|_| ()).unwrap_err().to_string()
    };
    let error = refusal(bert(4));
    assert!(
        error.contains("pooling type `4` is not supported"),
        "{error}"
    );
    let error = refusal(bert(1).metadata("bert.attention.causal", true));
    let expected = "key `bert.attention.causal`: true, expected false";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn caches_and_weights_of_other_types_give_nearly_the_same() {
    let exact = engine(Device::Cpu).embed("cats like milk").unwrap();
    let other = Engine::builder_from(open(bert(1)))
        .device(Device::Cpu)
        .kv(KvType::F16)
        .weights(WeightStorage::F16);
    let other = other.build().unwrap().embed("cats like milk").unwrap();
    assert_ne!(other, exact);
    assert!(dot(&other, &exact) > 0.9999);
}

/// With cooperative matrices, where there are any, texts of many tokens go through attention of 16-bit floats.
#[test]
fn texts_of_many_tokens_verify_in_16_bit_floats() {
    let Some(device) = support::gpu() else { return };
    let builder = Engine::builder_from(open(bert(1))).device(device);
    let engine = builder.activations(Activations::F16).build().unwrap();
    let options = VerifyOptions {
        prompt: "cats like milk".to_owned(),
        ..VerifyOptions::default()
    };
    let report = engine.verify(&options).unwrap();
    assert!(report.passed(), "{report}");
    let text = "milks like cats like ".repeat(4);
    let found = engine.embed(&text).unwrap();
    let exact = self::engine(Device::Reference).embed(&text).unwrap();
    // Seen: 1.
    assert!(dot(&found, &exact) > 0.9999);
}

#[test]
fn encoders_verify_and_bisect_on_every_device() {
    let options = VerifyOptions {
        prompt: "cats like milk".to_owned(),
        ..VerifyOptions::default()
    };
    for device in support::devices() {
        let engine = engine(device);
        let report = engine.verify(&options).unwrap();
        assert!(report.passed(), "{report}");
        let report = engine.bisect(&options).unwrap();
        assert!(report.culprit.is_none(), "{report}");
    }
}
