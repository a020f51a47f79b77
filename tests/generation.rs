//! Answers of a tiny model, on every device: in pieces, from seeds, to their end, and dropped.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use support::{centred_relative_error, devices};
use tiny::{engine, greedy, tokens};
use trueshot::gguf::{Gguf, WeightType};
use trueshot::{Engine, Error, FinishReason, GenerateOptions, SamplingOptions, Session};

/// Relative error that the order of summation explains, on every device.
const CHUNK_BOUND: f64 = 1e-5;

#[test]
fn generation_is_the_same_in_pieces_and_at_once() {
    for device in devices() {
        let engine = engine(device);
        let mut session = engine.session().unwrap();
        let mut streamed = String::new();
        let mut generation = session.generate("w1 w2 w3", &greedy(12)).unwrap();
        for piece in &mut generation {
            streamed += &piece.unwrap().text;
        }
        assert_eq!(generation.finish_reason(), Some(&FinishReason::MaxTokens));
        assert_eq!(generation.stats().n_generated, 12);
        session.rewind(0).unwrap();
        assert_eq!(
            session
                .generate("w1 w2 w3", &greedy(12))
                .unwrap()
                .text()
                .unwrap(),
            streamed
        );
        assert!(!streamed.is_empty());
    }
}

#[test]
fn generation_goes_on_where_the_last_one_stopped() {
    for device in devices() {
        let engine = engine(device);
        let mut whole = engine.session().unwrap();
        let expected = whole.generate("w1 w2 w3", &greedy(10)).unwrap();
        let expected = expected.complete().unwrap().tokens;
        let mut parts = engine.session().unwrap();
        let first = parts.generate("w1 w2 w3", &greedy(4)).unwrap();
        let mut tokens = first.complete().unwrap().tokens;
        let second = parts.generate("", &greedy(6)).unwrap();
        tokens.extend(second.complete().unwrap().tokens);
        assert_eq!(tokens, expected);
        assert_eq!(parts.tokens(), whole.tokens());
    }
}

#[test]
fn generation_ends_before_a_stop_string_that_spans_tokens() {
    for device in devices() {
        ends_before_a_stop_string(&engine(device));
    }
}

fn ends_before_a_stop_string(engine: &Engine) {
    let mut session = engine.session().unwrap();
    let text = session
        .generate("w1 w2 w3", &greedy(12))
        .unwrap()
        .text()
        .unwrap();
    // Cut across a piece in the middle of the text.
    let chars: Vec<char> = text.chars().collect();
    let middle = chars.len() / 2;
    let stop: String = chars[middle - 1..middle + 2].iter().collect();
    let expected = &text[..text.find(&stop).unwrap()];
    session.rewind(0).unwrap();
    let options = GenerateOptions {
        stop: vec![stop.clone()],
        ..greedy(12)
    };
    let completion = session
        .generate("w1 w2 w3", &options)
        .unwrap()
        .complete()
        .unwrap();
    assert_eq!(completion.text, expected);
    assert_eq!(completion.finish_reason, FinishReason::Stop(stop));
}

#[test]
fn sampled_generation_repeats_with_its_seed() {
    for device in devices() {
        let mut session = engine(device).session().unwrap();
        let mut generate = |seed| {
            session.rewind(0).unwrap();
            let generation = session.generate("w5", &seeded(seed, 20)).unwrap();
            generation.complete().unwrap().tokens
        };
        let first = generate(11);
        assert_eq!(generate(11), first);
        assert_ne!(generate(12), first);
    }
}

#[test]
fn generation_without_a_prompt_goes_on_from_what_was_evaluated() {
    for device in devices() {
        let engine = engine(device);
        let mut session = engine.session().unwrap();
        let prompt = engine.tokenizer().encode("w1 w2 w3", true, true).unwrap();
        let generate = |session: &mut Session, prompt: &str| {
            let generation = session.generate(prompt, &greedy(6)).unwrap();
            generation.complete().unwrap().tokens
        };
        let expected = generate(&mut session, "w1 w2 w3");
        session.rewind(0).unwrap();
        session.eval(&prompt).unwrap();
        assert_eq!(generate(&mut session, ""), expected);
        session.rewind(0).unwrap();
        session.eval_all(&prompt).unwrap();
        assert_eq!(generate(&mut session, ""), expected);
        // Rewound behind the prompt, the logits of its last token are had once more.
        session.rewind(prompt.len()).unwrap();
        assert_eq!(generate(&mut session, ""), expected);
        session.rewind(0).unwrap();
        let empty = session.generate("", &greedy(6)).err();
        assert!(
            empty.is_none(),
            "the beginning of text alone is a prompt: {empty:?}"
        );
    }
}

/// Options that make the host choose: a bias of nothing is still a bias.
fn on_the_host(options: GenerateOptions) -> GenerateOptions {
    let sampling = SamplingOptions {
        logit_bias: vec![(0, 0.0)],
        ..options.sampling
    };
    GenerateOptions {
        sampling,
        ..options
    }
}

fn seeded(seed: u64, max_tokens: usize) -> GenerateOptions {
    let sampling = SamplingOptions {
        seed: Some(seed),
        temperature: 1.5,
        ..Default::default()
    };
    GenerateOptions {
        max_tokens,
        sampling,
        ..Default::default()
    }
}

#[test]
fn device_chooses_the_tokens_that_the_host_would() {
    for device in devices() {
        let mut session = engine(device.clone()).session().unwrap();
        let mut generate = |prompt: &str, options: &GenerateOptions| {
            session.rewind(0).unwrap();
            let generation = session.generate(prompt, options).unwrap();
            generation.complete().unwrap()
        };
        let mut with_top_k = seeded(9, 20);
        for options in [
            greedy(1),
            greedy(2),
            greedy(60),
            seeded(1, 60),
            seeded(2, 60),
        ] {
            let ignore_eos = GenerateOptions {
                ignore_eos: true,
                ..options.clone()
            };
            for options in [options, ignore_eos] {
                let there = generate("w1 w2 w3", &options);
                let here = generate("w1 w2 w3", &on_the_host(options.clone()));
                let message = format!("{device}, {options:?}");
                assert_eq!(there.tokens, here.tokens, "{message}");
                assert_eq!(there.finish_reason, here.finish_reason, "{message}");
                if options.ignore_eos {
                    assert_eq!(there.tokens.len(), options.max_tokens, "{message}");
                }
            }
        }
        // More candidates than the device has room for.
        for top_k in [0, 65] {
            with_top_k.sampling.top_k = top_k;
            let tokens = generate("w1", &with_top_k).tokens;
            assert_eq!(
                tokens,
                generate("w1", &on_the_host(with_top_k.clone())).tokens
            );
        }
    }
}

#[test]
fn session_goes_on_right_after_an_answer_that_was_dropped() {
    for device in devices() {
        let engine = engine(device.clone());
        let mut whole = engine.session().unwrap();
        let expected = whole.generate("w1 w2 w3", &greedy(12)).unwrap();
        let expected = expected.complete().unwrap().tokens;
        let n_prompt = whole.tokens().len() - expected.len();
        for n_taken in 0..5 {
            let mut session = engine.session().unwrap();
            let mut generation = session.generate("w1 w2 w3", &greedy(100)).unwrap();
            for piece in generation.by_ref().take(n_taken) {
                piece.unwrap();
            }
            drop(generation);
            let message = format!("{device}, {n_taken} tokens");
            assert_eq!(session.tokens(), &whole.tokens()[..n_prompt + n_taken]);
            let rest = session.generate("", &greedy(12 - n_taken)).unwrap();
            assert_eq!(
                rest.complete().unwrap().tokens,
                expected[n_taken..],
                "{message}"
            );
            // Back where an answer began whose logits have been overwritten since.
            session.rewind(n_prompt + n_taken).unwrap();
            drop(session.generate("", &greedy(9)).unwrap().next());
            session.rewind(n_prompt + n_taken).unwrap();
            let rest = session.generate("", &greedy(12 - n_taken)).unwrap();
            let rest = rest.complete().unwrap().tokens;
            assert_eq!(rest, expected[n_taken..], "{message}, again");

            // The cache behind the rewound tokens holds what ran ahead, which nothing must read.
            session.rewind(n_prompt + n_taken).unwrap();
            drop(session.generate("", &greedy(9)).unwrap().next());
            session.rewind(n_prompt).unwrap();
            let logits = session.eval(&tokens(7)).unwrap().to_vec();
            let mut fresh = engine.session().unwrap();
            fresh.eval(&whole.tokens()[..n_prompt]).unwrap();
            let error = centred_relative_error(&logits, fresh.eval(&tokens(7)).unwrap());
            assert!(error <= CHUNK_BOUND, "{message}: {error:e}");
        }
    }
}

#[test]
fn logits_are_right_behind_an_answer() {
    for device in devices() {
        let engine = engine(device.clone());
        let mut session = engine.session().unwrap();
        for (max_tokens, n_more) in [(1, 0), (2, 0), (7, 0), (1, 3), (7, 3)] {
            let generation = session.generate("w7 w8", &greedy(max_tokens)).unwrap();
            assert_eq!(generation.complete().unwrap().tokens.len(), max_tokens);
            let logits = session.eval(&tokens(n_more)).unwrap().to_vec();
            let mut fresh = engine.session().unwrap();
            let error = centred_relative_error(&logits, fresh.eval(session.tokens()).unwrap());
            assert!(
                error <= CHUNK_BOUND,
                "{device}, {max_tokens} tokens and {n_more}: {error:e}"
            );
        }
    }
}

#[test]
fn answer_fills_the_context_to_the_last_token_and_no_further() {
    for device in devices() {
        let gguf = tiny::gguf(WeightType::F32, None);
        let builder = Engine::builder_from(gguf).device(device.clone());
        let engine = builder.context_length(16).build().unwrap();
        let mut session = engine.session().unwrap();
        for n_prompt in [10, 14, 15, 16] {
            session.rewind(0).unwrap();
            session.eval(&tokens(n_prompt)).unwrap();
            let options = GenerateOptions {
                ignore_eos: true,
                ..greedy(50)
            };
            let completion = session.generate("", &options).unwrap().complete().unwrap();
            assert_eq!(
                completion.finish_reason,
                FinishReason::ContextFull,
                "{device}"
            );
            assert_eq!(completion.tokens.len(), 16 - n_prompt, "{device}");
            assert_eq!(session.tokens().len(), 16, "{device}");
        }
    }
}

/// A tiny model in which all tokens but a few give `value` for every element of their embedding, and
/// attention gives nothing.
fn spoilt(value: f32) -> Gguf {
    let alter = |name: &str, values: &mut [f32]| {
        if name.ends_with("attn_output.weight") {
            values.fill(0.0);
        }
        if name == "token_embd.weight" {
            let n_vocab = tiny::vocabulary().len();
            let width = values.len() / n_vocab;
            values[4 * width..].fill(value);
        }
    };
    let n_vocab = tiny::vocabulary().len();
    let mut random = tiny::Random(1);
    let output: Vec<f32> = (0..n_vocab * 64).map(|_| random.next_f32()).collect();
    let ty = WeightType::F32;
    let writer = tiny::altered(ty, None, &alter)
        .tensor("output.weight", vec![n_vocab, 64], ty, ty.encode(&output))
        .unwrap();
    Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap()
}

#[test]
fn logits_that_cannot_be_right_end_an_answer_with_an_error() {
    for device in devices() {
        for value in [f32::NAN, 0.0] {
            let builder = Engine::builder_from(spoilt(value)).device(device.clone());
            let mut session = builder.build().unwrap().session().unwrap();
            for options in [greedy(20), seeded(3, 20)] {
                session.rewind(0).unwrap();
                session.eval(&[3]).unwrap();
                let options = GenerateOptions {
                    ignore_eos: true,
                    ..options
                };
                let mut generation = session.generate("", &options).unwrap();
                let error = generation.find_map(Result::err);
                assert!(
                    matches!(&error, Some(Error::WrongResult { step, .. }) if step == "result_output"),
                    "{device}, {value}: {error:?}"
                );
                assert!(generation.next().is_none());
                let n_tokens = session.tokens().len();
                assert!(n_tokens > 1, "{device}, {value}: the first token is right");
                session.rewind(0).unwrap();
                session.eval(&[3]).unwrap();
            }
        }
    }
}

#[test]
fn completing_an_answer_that_has_failed_gives_its_error_again() {
    for device in devices() {
        let builder = Engine::builder_from(spoilt(f32::NAN)).device(device.clone());
        let engine = builder.build().unwrap();
        let mut session = engine.session().unwrap();
        for take_text in [false, true] {
            session.rewind(0).unwrap();
            session.eval(&[3]).unwrap();
            let options = GenerateOptions {
                ignore_eos: true,
                ..greedy(20)
            };
            let mut generation = session.generate("", &options).unwrap();
            let first = generation.find_map(Result::err).unwrap();
            assert!(matches!(first, Error::WrongResult { .. }), "{first}");
            assert_eq!(generation.finish_reason(), None);
            let again = match take_text {
                true => generation.text().err(),
                false => generation.complete().err(),
            };
            let again = again.map(|error| format!("{error:?}"));
            assert_eq!(again, Some(format!("{first:?}")), "{device}");
        }
    }
}
