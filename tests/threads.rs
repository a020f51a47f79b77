//! Sessions of one engine side by side: no answer depends on what else the device does.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::sync::Barrier;
use support::devices;
use tiny::{engine, tokens};
use trueshot::{Engine, GenerateOptions, SamplingOptions, Session};

const PROMPTS: [&str; 4] = ["w1 w2 w3", "w40", "w7 w7 w8 w9 w10 w11", "w55 w20"];
const ROUNDS: usize = 3;

/// Half of the answers are chosen on the device; penalties make the host choose the others.
fn options(place: usize) -> GenerateOptions {
    GenerateOptions {
        max_tokens: 12,
        sampling: SamplingOptions {
            seed: Some(place as u64),
            repetition_penalty: if place < 2 { 1.0 } else { 1.1 },
            ..Default::default()
        },
        ignore_eos: true,
        ..Default::default()
    }
}

/// What a session comes to: the tokens of some answers, and the bits of logits behind each.
#[derive(Debug, PartialEq)]
struct Outcome {
    tokens: Vec<u32>,
    logits: Vec<u32>,
}

/// Prompts and answers in turns; `place` chooses them.
fn converse(session: &mut Session, place: usize) -> Outcome {
    let mut logits = Vec::new();
    for round in 0..ROUNDS {
        let prompt = PROMPTS[(place + round) % PROMPTS.len()];
        let answer = session.generate(prompt, &options(place)).unwrap();
        answer.text().unwrap();
        let last = session.eval(&tokens(5 + place)).unwrap();
        logits.extend(last.iter().map(|logit| logit.to_bits()));
    }
    Outcome {
        tokens: session.tokens().to_vec(),
        logits,
    }
}

fn alone(engine: &Engine, place: usize) -> Outcome {
    converse(&mut engine.session().unwrap(), place)
}

/// The outcomes of so many sessions, each on its own thread, all at once.
fn together(engine: &Engine, n: usize) -> Vec<Outcome> {
    let start = Barrier::new(n);
    std::thread::scope(|scope| {
        let run = |place| {
            let start = &start;
            scope.spawn(move || {
                let mut session = engine.session().unwrap();
                start.wait();
                converse(&mut session, place)
            })
        };
        let threads: Vec<_> = (0..n).map(run).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Outcome>| thread.join().unwrap();
        threads.into_iter().map(join).collect()
    })
}

#[test]
fn sessions_on_threads_give_the_bits_they_give_alone() {
    for device in devices() {
        let engine = engine(device.clone());
        let expected: Vec<_> = (0..PROMPTS.len())
            .map(|place| alone(&engine, place))
            .collect();
        for (a, b) in [(0, 1), (0, 2), (1, 3), (2, 3)] {
            assert_ne!(
                expected[a], expected[b],
                "{device}: a mix-up would not show"
            );
        }
        for n in [2, 4] {
            for (place, outcome) in together(&engine, n).iter().enumerate() {
                let expected = &expected[place];
                assert_eq!(
                    outcome.tokens, expected.tokens,
                    "{device}, session {place} of {n}"
                );
                let differs = (0..expected.logits.len())
                    .find(|&index| outcome.logits.get(index) != expected.logits.get(index));
                assert_eq!(differs, None, "{device}, session {place} of {n}: logits");
            }
        }
    }
}

#[test]
fn sessions_that_take_turns_at_each_token_give_what_they_give_alone() {
    for device in devices() {
        let engine = engine(device.clone());
        let answer_alone = |place: usize| {
            let mut session = engine.session().unwrap();
            let answer = session.generate(PROMPTS[place], &options(place)).unwrap();
            answer.complete().unwrap().tokens
        };
        for (a, b) in [(0, 1), (1, 2), (2, 3)] {
            let mut sessions = [engine.session().unwrap(), engine.session().unwrap()];
            let [first, second] = &mut sessions;
            let mut answers = [
                first.generate(PROMPTS[a], &options(a)).unwrap(),
                second.generate(PROMPTS[b], &options(b)).unwrap(),
            ];
            let mut found = [Vec::new(), Vec::new()];
            for _ in 0..options(a).max_tokens {
                for (answer, found) in answers.iter_mut().zip(&mut found) {
                    let piece = answer.next().and_then(|piece| piece.unwrap().token);
                    found.extend(piece);
                }
            }
            let expected = [answer_alone(a), answer_alone(b)];
            assert_ne!(
                expected[0], expected[1],
                "{device}: a mix-up would not show"
            );
            assert_eq!(found, expected, "{device}, {a} and {b}");
        }
    }
}
