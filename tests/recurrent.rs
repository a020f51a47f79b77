//! Sessions of models with states, which cannot go back: however a session came to its tokens, it gives what they say.

mod support;

use serde::Deserialize;
use support::{centred_relative_error, devices, shared};
use trueshot::{
    Activations, DiffOptions, Engine, FinishReason, GenerateOptions, KvType, SamplingOptions,
    Session, TraceOptions,
};

const FILES: &[&str] = &[
    "lfm2",
    "mamba",
    "mamba2",
    "granitehybrid",
    "qwen35",
    "qwen3next",
];

/// Relative error that the order of summation explains.
const BOUND: f64 = 1e-5;

#[derive(Deserialize)]
struct Case {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    tokens: Vec<u32>,
}

/// Calls `each` with an engine of every file on every device, and 40 tokens.
fn for_engines(each: impl Fn(&str, &Engine, &[u32])) {
    let Some(folder) = shared("arch") else { return };
    for name in FILES {
        let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let case: Case = serde_json::from_str(&text).unwrap();
        for device in devices() {
            let engine = Engine::builder(folder.join(format!("{name}.gguf")))
                .device(device.clone())
                .kv(KvType::F32)
                .activations(Activations::F32)
                .context_length(128)
                .build()
                .unwrap();
            each(
                &format!("{name} on {device}"),
                &engine,
                &case.prompts[1].tokens,
            );
        }
    }
}

/// The logits behind runs of tokens, each one evaluation, in a new session.
fn fresh(engine: &Engine, runs: &[&[u32]]) -> Vec<f32> {
    let mut session = engine.session().unwrap();
    for tokens in runs {
        session.eval(tokens).unwrap();
    }
    session.eval(&[1]).unwrap().to_vec()
}

fn behind(session: &mut Session) -> Vec<f32> {
    session.eval(&[1]).unwrap().to_vec()
}

#[test]
fn session_that_was_rewound_gives_the_bits_of_a_new_one() {
    for_engines(|what, engine, tokens| {
        let (a, b) = tokens.split_at(17);
        let expected = fresh(engine, &[a, b]);
        let mut session = engine.session().unwrap();
        session.eval(a).unwrap();
        session.eval(&b[3..9]).unwrap();
        session.rewind(a.len()).unwrap();
        session.eval(b).unwrap();
        assert_eq!(
            behind(&mut session),
            expected,
            "{what}: behind another text"
        );
        session.rewind(tokens.len()).unwrap();
        // Now what is kept ran as one prompt.
        let as_one = fresh(engine, &[tokens]);
        assert_eq!(behind(&mut session), as_one, "{what}: a token again");
        session.rewind(5).unwrap();
        session.rewind(3).unwrap();
        session.eval(&tokens[3..]).unwrap();
        let expected = fresh(engine, &[&tokens[..3], &tokens[3..]]);
        assert_eq!(behind(&mut session), expected, "{what}: twice");
        session.rewind(0).unwrap();
        session.eval(tokens).unwrap();
        assert_eq!(behind(&mut session), as_one, "{what}: to the start");
        let error = centred_relative_error(&as_one, &fresh(engine, &[b]));
        assert!(error > 1e-2, "{what}: the first tokens matter ({error:e})");
    });
}

#[test]
fn two_turns_give_what_one_does() {
    for_engines(|what, engine, tokens| {
        let expected = fresh(engine, &[tokens]);
        for at in [1, 2, 17, 39] {
            let found = fresh(engine, &[&tokens[..at], &tokens[at..]]);
            let error = centred_relative_error(&found, &expected);
            assert!(error <= BOUND, "{what}, cut at {at}: {error:e}");
        }
        let mut session = engine.session().unwrap();
        session.eval_all(&tokens[..9]).unwrap();
        session.observe(&tokens[9..12], &mut |_| ()).unwrap();
        session.eval_all(&tokens[12..]).unwrap();
        let error = centred_relative_error(&behind(&mut session), &expected);
        assert!(error <= BOUND, "{what}, by all calls: {error:e}");
    });
}

#[test]
fn answer_cut_short_goes_on_as_if_its_tokens_had_been_given() {
    for_engines(|what, engine, tokens| {
        let options = GenerateOptions {
            max_tokens: 12,
            sampling: SamplingOptions::greedy(),
            ignore_eos: true,
            ..Default::default()
        };
        let mut session = engine.session().unwrap();
        let prompt = &tokens[..11];
        let whole = session.generate_tokens(prompt, &options).unwrap();
        let pieces: Vec<_> = whole.map(Result::unwrap).collect();
        let stop = pieces[5..]
            .iter()
            .find(|piece| !piece.text.trim().is_empty());
        let stop = stop.unwrap().text.clone();
        for ends in ["at a stop", "dropped"] {
            session.rewind(0).unwrap();
            let options = GenerateOptions {
                stop: (ends == "at a stop")
                    .then(|| stop.clone())
                    .into_iter()
                    .collect(),
                ..options.clone()
            };
            let mut answer = session.generate_tokens(prompt, &options).unwrap();
            if ends == "dropped" {
                answer.by_ref().take(4).for_each(drop);
            } else {
                while answer.next().is_some() {}
                assert_eq!(
                    answer.finish_reason(),
                    Some(&FinishReason::Stop(stop.clone()))
                );
            }
            drop(answer);
            let so_far = session.tokens().to_vec();
            assert!((prompt.len() + 1..prompt.len() + 12).contains(&so_far.len()));
            let expected = fresh(engine, &[&so_far, &tokens[11..20]]);
            session.eval(&tokens[11..20]).unwrap();
            let error = centred_relative_error(&behind(&mut session), &expected);
            assert!(error <= BOUND, "{what}, {ends}: {error:e}");
        }
    });
}

#[test]
fn batch_that_is_profiled_goes_into_the_state_once() {
    for_engines(|what, engine, tokens| {
        let mut session = engine.session().unwrap();
        session.eval(&tokens[..10]).unwrap();
        if session.profile(&tokens[10..14]).is_err() {
            return; // no timestamps
        }
        let expected = fresh(engine, &[&tokens[..10], &tokens[10..14]]);
        assert_eq!(behind(&mut session), expected, "{what}");
    });
}

#[test]
fn states_are_counted_as_cache() {
    for_engines(|what, engine, _| {
        let states = engine.plan().state_bytes();
        let cache = engine.memory().unwrap().cache_bytes;
        let kv = engine.kv_layout().total_bytes();
        // Layers without attention have an element each on a GPU.
        let most = kv + states + 8 * engine.spec().n_layer() as u64;
        assert!(states > 0, "{what}");
        assert!(
            (kv + states..=most).contains(&cache),
            "{what}: {cache}, {kv} and {states}"
        );
    });
}

#[test]
fn trace_of_tokens_behind_others_is_that_of_any_batches() {
    for_engines(|what, engine, tokens| {
        let trace = |batch_tokens| {
            let mut session = engine.session().unwrap();
            session.eval(&tokens[..10]).unwrap();
            let options = TraceOptions {
                batch_tokens,
                ..TraceOptions::default()
            };
            session.trace(&tokens[10..25], &options).unwrap()
        };
        let whole = trace(None);
        // What experts a token has is a number that a step further on may tip.
        let diff = trace(Some(4)).diff(&whole, &DiffOptions { tolerance: 1e-3 });
        assert!(diff.agrees(), "{what}: {diff}");
        let keeps = |step: &&trueshot::plan::Step| step.op.state().is_some();
        for step in engine.plan().steps.iter().filter(keeps) {
            let is_there = whole.entries.iter().any(|entry| entry.name == step.name);
            assert!(is_there, "{what}: {}", step.name);
        }
    });
}

#[test]
fn steps_on_the_reference_leave_their_states_to_the_device() {
    for_engines(|what, engine, tokens| {
        let n_steps = engine.plan().steps.len();
        let whole = engine.logits_with_reference(tokens, 0..0).unwrap();
        for steps in [0..n_steps, 0..n_steps / 2, n_steps / 3..n_steps] {
            let mixed = engine.logits_with_reference(tokens, steps.clone()).unwrap();
            let error = centred_relative_error(&mixed, &whole);
            assert!(error <= BOUND, "{what}, {steps:?}: {error:e}");
        }
    });
}
