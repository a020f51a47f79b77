//! Sessions on a tiny model, on every device: batches, rewinding, generating, chatting.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::collections::BTreeSet;
use std::time::Duration;
use support::{centred_relative_error, devices, eval_in_chunks, gpu};
use tiny::{engine, greedy, tokens};
use trueshot::gguf::WeightType;
use trueshot::{
    Activations, ChatOptions, Device, Engine, Error, FinishReason, GenerateOptions, KvType,
    Message, ProfiledDispatch,
};

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
fn chat_uses_the_callers_template_and_its_variables() {
    let build = |template: &str| {
        Engine::builder_from(tiny::gguf(
            WeightType::F32,
            Some("{{ raise_exception('no') }}"),
        ))
        .device(Device::Cpu)
        .chat_template(template)
        .build()
    };
    let error = build("{% if %}").unwrap_err();
    assert!(matches!(error, Error::ChatTemplate { .. }), "{error}");

    let source = "{{ eos_token }}{{ messages[0].content }} {{ extra }} {{ tools[0].name }}";
    let engine = build(source).unwrap();
    let chat = ChatOptions {
        tools: vec![r#"{"name": "w7"}"#.parse().unwrap()],
        variables: [("extra".to_owned(), "w5".into())].into(),
        ..ChatOptions::default()
    };
    let mut session = engine.session().unwrap();
    let messages = [Message::user("w1</s>")];
    session
        .chat_with(&messages, &chat, &greedy(1))
        .unwrap()
        .complete()
        .unwrap();
    let tokenizer = engine.tokenizer();
    let body = tokenizer.encode("w1</s> w5 w7", false, false).unwrap();
    let expected = [&[1, 2], body.as_slice()].concat();
    assert_eq!(session.tokens()[..expected.len()], expected);
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
fn profile_covers_every_step_and_leaves_the_session_as_eval_does() {
    for device in devices() {
        let engine = engine(device.clone());
        let mut session = engine.session().unwrap();
        session.eval(&tokens(5)).unwrap();
        let profile = session.profile(&tokens(3)).unwrap();
        let profiled = session.eval(&tokens(2)).unwrap().to_vec();
        let mut expected = engine.session().unwrap();
        let all = [tokens(5), tokens(3), tokens(2)].concat();
        let error = centred_relative_error(&profiled, expected.eval(&all).unwrap());
        assert!(error <= CHUNK_BOUND, "{device}: {error:e}");

        let named: BTreeSet<&str> = profile
            .dispatches
            .iter()
            .flat_map(|dispatch| dispatch.steps.iter().map(String::as_str))
            .collect();
        let steps = engine.plan().steps.iter().map(|step| step.name.as_str());
        assert_eq!(named, steps.collect(), "{device}");

        // Matrices 2 * rows * elements; of attention 6 + 7 + 8 positions, 4 heads of 16.
        let sum = |count: fn(&ProfiledDispatch) -> u64| -> u64 {
            profile.dispatches.iter().map(count).sum()
        };
        let layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96;
        let attention = (6 + 7 + 8) * 4 * 4 * 16;
        let products = 2 * 3 * layer * 2 + 2 * 64 * 320;
        assert_eq!(sum(|d| d.operations), products + 2 * attention, "{device}");
        // Q8_0: 34 bytes for 32 weights; the cache: 3 rows stored and 8 read, keys and values, f32.
        let matrices = (2 * layer + (320 + 3) * 64) * 34 / 32;
        let cache = 2 * (3 + 8) * 2 * 32 * 4;
        assert_eq!(sum(|d| d.bytes), matrices + cache, "{device}");
        assert!(profile.total_time() > Duration::ZERO, "{device}");

        let too_many = vec![260; engine.plan().max_rows + 1];
        assert!(matches!(
            session.profile(&too_many),
            Err(Error::InvalidArgument { name: "tokens", .. })
        ));
    }
}

#[test]
fn captured_batch_gives_the_logits_of_eval() {
    let Some(device) = gpu() else { return };
    let engine = engine(device);
    let mut plain = engine.session().unwrap();
    let mut captured = engine.session().unwrap();
    for n_tokens in [1, 20, 1, 3] {
        let tokens = tokens(n_tokens);
        let has_captured = captured.capture(&tokens).unwrap();
        // No debugger has started the tests, but wgpu does not ask Metal for one.
        assert!(!has_captured || cfg!(target_vendor = "apple"));
        let expected = plain.eval(&tokens).unwrap();
        assert_eq!(captured.eval(&[]).unwrap(), expected, "{n_tokens} tokens");
    }
    let answer = |session: &mut trueshot::Session| {
        session.generate("w1", &greedy(5)).unwrap().text().unwrap()
    };
    assert_eq!(answer(&mut captured), answer(&mut plain));
}

#[test]
fn capture_without_a_gpu_is_refused() {
    for device in [Device::Cpu, Device::Reference] {
        let mut session = engine(device).session().unwrap();
        let error = session.capture(&tokens(3)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(session.tokens().is_empty());
    }
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
    for device in devices() {
        answers_the_same_in_threads(&engine(device));
    }
}

fn answers_the_same_in_threads(engine: &Engine) {
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
