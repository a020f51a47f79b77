//! Files that have a part of what a model is: weights without a tokenizer, a vocabulary without weights.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use support::shared;
use tiny::greedy;
use trueshot::gguf::{Gguf, WeightType, Writer};
use trueshot::{Device, Engine, Error, Tokenizer, VerifyOptions};

/// The tiny model with the keys that `keeps` wants, and its tensors or not.
fn tiny_model(keeps: impl Fn(&str) -> bool, has_tensors: bool) -> Writer {
    let gguf = tiny::gguf(WeightType::F32, None);
    let keys = gguf.metadata().iter().filter(|(key, _)| keeps(key));
    let writer = keys.fold(Writer::new(), |writer, (key, value)| {
        writer.metadata(key, value.clone())
    });
    let tensors = gguf.tensors().iter().filter(|_| has_tensors);
    tensors.fold(writer, |writer, tensor| {
        let bytes = gguf.tensor_bytes(tensor).to_vec();
        writer
            .tensor(&tensor.name, tensor.shape.clone(), tensor.ty, bytes)
            .unwrap()
    })
}

fn build(writer: &Writer) -> trueshot::Result<Engine> {
    let gguf = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
    Engine::builder_from(gguf).device(Device::Cpu).build()
}

#[test]
fn a_model_without_a_tokenizer_runs_on_ids() {
    let whole = build(&tiny_model(|_| true, true)).unwrap();
    let prompt = [1, 260, 270, 280];
    let mut session = whole.session().unwrap();
    let expected = session
        .generate_tokens(&prompt, &greedy(6))
        .unwrap()
        .complete()
        .unwrap();
    assert!(!expected.text.is_empty());
    assert_eq!(session.tokens()[..prompt.len()], prompt);

    let bare = || tiny_model(|key| !key.starts_with("tokenizer."), true);
    for writer in [
        bare(),
        bare().metadata("tokenizer.ggml.model", "none"),
        bare().metadata("tokenizer.ggml.model", "no_vocab"),
    ] {
        let engine = build(&writer).unwrap();
        assert!(engine.tokenizer().is_absent());
        assert_eq!(engine.tokenizer().vocab_size(), engine.spec().vocab_size);
        let mut session = engine.session().unwrap();
        let found = session
            .generate_tokens(&prompt, &greedy(6))
            .unwrap()
            .complete()
            .unwrap();
        assert_eq!(found.tokens, expected.tokens);
        assert_eq!(found.text, "");
    }
}

#[test]
fn text_for_a_model_without_a_tokenizer_is_an_error_that_says_so() {
    let engine = build(&tiny_model(|key| !key.starts_with("tokenizer."), true)).unwrap();
    let mut session = engine.session().unwrap();
    let errors = [
        session.generate("w1", &greedy(1)).err().unwrap(),
        engine.tokenizer().encode("", true, true).unwrap_err(),
        engine.tokenizer().decode(&[1]).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::Tokenizer { .. }), "{error:?}");
        assert!(error.to_string().contains("the file has none"), "{error}");
    }
    assert!(session.tokens().is_empty());
}

#[test]
fn a_model_without_a_tokenizer_is_verified() {
    let engine = build(&tiny_model(|key| !key.starts_with("tokenizer."), true)).unwrap();
    let report = engine.verify(&VerifyOptions::default()).unwrap();
    assert!(report.passed(), "{report}");
}

#[test]
fn half_a_tokenizer_is_refused() {
    let writer = tiny_model(|key| key != "tokenizer.ggml.model", true);
    let error = build(&writer).unwrap_err().to_string();
    assert_eq!(error, "key `tokenizer.ggml.model` is missing");
}

/// Gives a tokenizer, and no engine.
fn assert_vocabulary_only(gguf: Gguf) {
    let tokenizer = Tokenizer::from_metadata(gguf.metadata()).unwrap();
    assert!(tokenizer.vocab_size() > 0 && !tokenizer.is_absent());
    assert!(!tokenizer.encode("w1", false, false).unwrap().is_empty());
    let error = Engine::builder_from(gguf)
        .device(Device::Cpu)
        .build()
        .unwrap_err();
    assert!(matches!(error, Error::InvalidModel { .. }), "{error:?}");
    assert!(
        error.to_string().contains("a vocabulary without a model"),
        "{error}"
    );
}

#[test]
fn a_vocabulary_alone_gives_a_tokenizer_and_no_engine() {
    let bytes = tiny_model(|_| true, false).to_bytes().unwrap();
    assert_vocabulary_only(Gguf::from_bytes(bytes).unwrap());
    let Some(folder) = shared("vocab") else {
        return;
    };
    for name in ["llama-spm", "llama-bpe"] {
        let path = folder.join(format!("ggml-vocab-{name}.gguf"));
        assert_vocabulary_only(Gguf::open(path).unwrap());
    }
}
