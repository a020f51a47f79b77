//! Sessions on a tiny model, on every device: batches, rewinding, generating, chatting.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use support::{centred_relative_error, devices, eval_in_chunks};
use trueshot::gguf::WeightType;
use trueshot::{
    Activations, Device, Engine, Error, FinishReason, GenerateOptions, KvType, Message,
    SamplingOptions,
};

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

fn engine(device: Device) -> Engine {
    let gguf = tiny::gguf(WeightType::Q8_0, Some(TEMPLATE));
    Engine::builder_from(gguf)
        .device(device)
        .activations(Activations::F32)
        .kv(KvType::F32)
        .build()
        .unwrap()
}

fn tokens(n: usize) -> Vec<u32> {
    let mut random = tiny::Random(3);
    (0..n).map(|_| 259 + random.below(61) as u32).collect()
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_tokens,
        sampling: SamplingOptions::greedy(),
        ..Default::default()
    }
}

/// Relative error that the order of summation explains, on every device.
const CHUNK_BOUND: f64 = 1e-5;

#[test]
fn prefill_gives_the_same_logits_in_chunks_of_any_size() {
    let tokens = tokens(150);
    for device in devices() {
        let mut session = engine(device.clone()).session().unwrap();
        let at_once = eval_in_chunks(&mut session, &tokens, tokens.len());
        for size in [1, 7, 64] {
            let logits = eval_in_chunks(&mut session, &tokens, size);
            let error = centred_relative_error(&logits, &at_once);
            assert!(
                error <= CHUNK_BOUND,
                "{device}, chunks of {size}: {error:e}"
            );
        }
        session.rewind(0).unwrap();
        let all = session.eval_all(&tokens).unwrap();
        let last = &all[all.len() - at_once.len()..];
        let error = centred_relative_error(last, &at_once);
        assert!(error <= CHUNK_BOUND, "{device}, eval_all: {error:e}");
        assert_eq!(all.len(), tokens.len() * at_once.len());
    }
}

#[test]
fn devices_agree_with_the_reference_for_every_weight_type() {
    let tokens = tokens(20);
    for ty in WeightType::ALL {
        let eval = |device: Device| {
            let gguf = tiny::gguf(ty, None);
            let engine = Engine::builder_from(gguf)
                .device(device)
                .activations(Activations::F32)
                .kv(KvType::F32)
                .build()
                .unwrap();
            engine.session().unwrap().eval(&tokens).unwrap().to_vec()
        };
        let expected = eval(Device::Reference);
        for device in devices() {
            let error = centred_relative_error(&eval(device.clone()), &expected);
            assert!(error <= 1e-5, "{ty:?} on {device}: {error:e}");
        }
    }
}

#[test]
fn rewound_session_repeats_its_bits() {
    let tokens = tokens(40);
    for device in devices() {
        let mut session = engine(device).session().unwrap();
        let first = session.eval(&tokens).unwrap().to_vec();
        session.eval(&tokens[..9]).unwrap();
        session.rewind(0).unwrap();
        assert_eq!(session.eval(&tokens).unwrap(), first);
        session.rewind(25).unwrap();
        assert_eq!(session.tokens(), &tokens[..25]);
        let again = session.eval(&tokens[25..]).unwrap();
        assert!(centred_relative_error(again, &first) <= CHUNK_BOUND);
        assert!(matches!(
            session.rewind(41),
            Err(Error::InvalidArgument { .. })
        ));
    }
}

#[test]
fn sessions_of_one_engine_do_not_touch_each_other() {
    let tokens = tokens(30);
    for device in devices() {
        let engine = engine(device);
        let mut alone = engine.session().unwrap();
        let expected = alone.eval(&tokens).unwrap().to_vec();
        let (mut a, mut b) = (engine.session().unwrap(), engine.session().unwrap());
        a.eval(&tokens[..10]).unwrap();
        b.eval(&tokens[5..25]).unwrap();
        let last = a.eval(&tokens[10..]).unwrap();
        assert!(centred_relative_error(last, &expected) <= CHUNK_BOUND);
    }
}

#[test]
fn full_context_is_an_error_that_names_length_and_capacity() {
    let gguf = tiny::gguf(WeightType::F32, None);
    let engine = Engine::builder_from(gguf)
        .device(Device::Cpu)
        .context_length(16)
        .build()
        .unwrap();
    let mut session = engine.session().unwrap();
    session.eval(&tokens(10)).unwrap();
    let error = session.eval(&tokens(7)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::ContextFull {
                length: 10,
                requested: 7,
                capacity: 16
            }
        ),
        "{error}"
    );
    assert_eq!(session.tokens().len(), 10);
    session.eval(&tokens(6)).unwrap();
    session.rewind(10).unwrap();
    let completion = session
        .generate("w1", &greedy(50))
        .unwrap()
        .complete()
        .unwrap();
    assert_eq!(completion.finish_reason, FinishReason::ContextFull);
    assert_eq!(session.tokens().len(), 16);
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let mut session = engine(Device::Cpu).session().unwrap();
    for bad in [&[][..], &[320], &[5, u32::MAX]] {
        assert!(
            matches!(session.eval(bad), Err(Error::InvalidArgument { .. })),
            "{bad:?}"
        );
    }
    assert!(session.tokens().is_empty());
}

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
    let engine = engine(Device::Cpu);
    let mut whole = engine.session().unwrap();
    let expected = whole
        .generate("w1 w2 w3", &greedy(10))
        .unwrap()
        .complete()
        .unwrap();
    let mut parts = engine.session().unwrap();
    let mut tokens = Vec::new();
    let first = parts
        .generate("w1 w2 w3", &greedy(4))
        .unwrap()
        .complete()
        .unwrap();
    tokens.extend(first.tokens);
    let second = parts.generate("", &greedy(6)).unwrap().complete().unwrap();
    tokens.extend(second.tokens);
    assert_eq!(tokens, expected.tokens);
    assert_eq!(parts.tokens(), whole.tokens());
}

#[test]
fn generation_ends_before_a_stop_string_that_spans_tokens() {
    let engine = engine(Device::Cpu);
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
    let mut session = engine(Device::Cpu).session().unwrap();
    let mut generate = |seed| {
        session.rewind(0).unwrap();
        let sampling = SamplingOptions {
            seed: Some(seed),
            ..Default::default()
        };
        let options = GenerateOptions {
            max_tokens: 20,
            sampling,
            ..Default::default()
        };
        session
            .generate("w5", &options)
            .unwrap()
            .complete()
            .unwrap()
            .tokens
    };
    let first = generate(11);
    assert_eq!(generate(11), first);
    assert_ne!(generate(12), first);
}

#[test]
fn chat_runs_only_what_the_session_has_not_seen() {
    let engine = engine(Device::Cpu);
    let mut session = engine.session().unwrap();
    let mut messages = vec![Message::user("w1 w2 w3 w4")];
    let first = session
        .chat(&messages, &greedy(5))
        .unwrap()
        .complete()
        .unwrap();
    messages.push(Message::assistant(&first.text));
    messages.push(Message::user("w9"));
    let second = session
        .chat(&messages, &greedy(5))
        .unwrap()
        .complete()
        .unwrap();
    let all = engine
        .chat_template()
        .unwrap()
        .render(&messages, true)
        .unwrap();
    let n_all = engine.tokenizer().encode(&all, true, true).unwrap().len();
    assert!(
        second.stats.n_prompt_tokens < n_all - 5,
        "{:?} of {n_all}",
        second.stats
    );

    let mut fresh = engine.session().unwrap();
    let again = fresh
        .chat(&messages, &greedy(5))
        .unwrap()
        .complete()
        .unwrap();
    assert_eq!(again.tokens, second.tokens);
}

#[test]
fn chat_without_a_template_is_an_error_that_says_so() {
    let gguf = tiny::gguf(WeightType::F32, None);
    let engine = Engine::builder_from(gguf)
        .device(Device::Cpu)
        .build()
        .unwrap();
    let mut session = engine.session().unwrap();
    let error = session
        .chat(&[Message::user("w1")], &greedy(5))
        .err()
        .unwrap();
    assert!(
        matches!(&error, Error::ChatTemplate { message } if message.contains("none")),
        "{error}"
    );
}

#[test]
fn default_context_is_the_models_own() {
    assert_eq!(engine(Device::Cpu).context_length(), 256);
}

#[test]
fn observed_steps_carry_the_plans_names_in_order() {
    for device in devices() {
        let engine = engine(device);
        let mut names = Vec::new();
        let mut session = engine.session().unwrap();
        session
            .observe(&tokens(3), &mut |step| names.push(step.name.to_owned()))
            .unwrap();
        let expected: Vec<&str> = engine.plan().steps.iter().map(|step| &*step.name).collect();
        assert_eq!(names, expected);
    }
}

#[test]
fn generation_without_a_prompt_goes_on_from_what_was_evaluated() {
    let engine = engine(Device::Cpu);
    let mut session = engine.session().unwrap();
    let prompt = engine.tokenizer().encode("w1 w2 w3", true, true).unwrap();
    let expected = session
        .generate("w1 w2 w3", &greedy(6))
        .unwrap()
        .complete()
        .unwrap();
    session.rewind(0).unwrap();
    session.eval(&prompt).unwrap();
    let again = session
        .generate("", &greedy(6))
        .unwrap()
        .complete()
        .unwrap();
    assert_eq!(again.tokens, expected.tokens);
    // Rewound behind the prompt, the logits of its last token are had once more.
    session.rewind(prompt.len()).unwrap();
    let again = session
        .generate("", &greedy(6))
        .unwrap()
        .complete()
        .unwrap();
    assert_eq!(again.tokens, expected.tokens);
    session.rewind(0).unwrap();
    let empty = session.generate("", &greedy(6)).err();
    assert!(
        empty.is_none(),
        "the beginning of text alone is a prompt: {empty:?}"
    );
}

#[test]
fn failed_call_leaves_the_session_as_it_was() {
    let engine = engine(Device::Cpu);
    let mut session = engine.session().unwrap();
    let expected = session.eval(&tokens(20)).unwrap().to_vec();
    let before = session.tokens().to_vec();
    let wrong = GenerateOptions {
        stop: vec![String::new()],
        ..greedy(5)
    };
    assert!(session.generate("w1", &wrong).is_err());
    assert!(session.chat(&[Message::user("w1 w2")], &wrong).is_err());
    assert!(session.eval(&[1, 400]).is_err());
    assert!(session.eval(&tokens(300)).is_err());
    assert!(session.eval_all(&tokens(300)).is_err());
    assert_eq!(session.tokens(), before);
    assert_eq!(session.eval(&[]).unwrap(), expected);
}

#[test]
fn engines_and_sessions_go_to_other_threads() {
    fn is_send<T: Send>() {}
    fn is_sync<T: Sync>() {}
    is_send::<Engine>();
    is_sync::<Engine>();
    is_send::<trueshot::Session>();
    is_send::<trueshot::EngineBuilder>();
    let engine = engine(Device::Cpu);
    let texts: Vec<String> = std::thread::scope(|scope| {
        let answer = || {
            engine
                .session()
                .unwrap()
                .generate("w4", &greedy(8))
                .unwrap()
                .text()
                .unwrap()
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(answer)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(texts[0], texts[1]);
}
