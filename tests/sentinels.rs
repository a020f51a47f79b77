//! Models that are damaged on purpose, on every device: the error names layer and position, and the session
//! works again behind it. Sound ones are left alone.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use support::{centred_relative_error, devices, model};
use tiny::{greedy, tokens};
use trueshot::gguf::{Gguf, WeightType, Writer};
use trueshot::{
    Activations, Device, Engine, EngineBuilder, Error, GenerateOptions, KvType, SamplingOptions,
    Sentinels, Session,
};

/// Relative error that the order of summation explains, on every device.
const CHUNK_BOUND: f64 = 1e-5;

/// A token that the other prompts here do not have.
const BAD: u32 = 258;
/// Elements of a row of the hidden state of models with matrices of 32-bit floats.
const HIDDEN: usize = 64;

type Alter<'a> = &'a dyn Fn(&str, &mut [f32]);

fn builder(writer: Writer, device: &Device) -> EngineBuilder {
    let gguf = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
    Engine::builder_from(gguf)
        .device(device.clone())
        .cache_folder(None)
}

/// An engine that computes in 32-bit floats throughout.
fn engine(alter: Alter<'_>, device: &Device, sentinels: Sentinels) -> Engine {
    builder(with_output(alter), device)
        .activations(Activations::F32)
        .kv(KvType::F32)
        .sentinels(sentinels)
        .build()
        .unwrap()
}

/// The altered model of 32-bit floats with an output matrix of its own, which is not altered: an embedding that
/// is damaged does not show in the logits of other tokens.
fn with_output(alter: Alter<'_>) -> Writer {
    let mut random = tiny::Random(11);
    let n_vocab = tiny::vocabulary().len();
    let output: Vec<f32> = (0..n_vocab * HIDDEN).map(|_| random.next_f32()).collect();
    let ty = WeightType::F32;
    tiny::altered(ty, None, alter)
        .tensor(
            "output.weight",
            vec![n_vocab, HIDDEN],
            ty,
            ty.encode(&output),
        )
        .unwrap()
}

/// Puts a value into the embedding of a token.
fn embedding(token: u32, value: f32) -> impl Fn(&str, &mut [f32]) {
    move |name, values| {
        if name == "token_embd.weight" {
            values[token as usize * HIDDEN + 9] = value;
        }
    }
}

/// Too large for a layer's result; what follows from it is finite.
const HUGE: f32 = 1e18;

/// Fails unless the error names the step, the position and what is wrong.
fn assert_names(error: Error, what: &str, step: &str, position: usize, finding: &str) {
    let text = error.to_string();
    let is_it = matches!(&error, Error::WrongResult { step: found, .. } if found == step)
        && text.contains(&format!("position {position} has "))
        && text.contains(finding);
    assert!(
        is_it,
        "{what}: `{text}`, expected {finding} at position {position} in {step}"
    );
}

/// `tokens(n)` with [`BAD`] at an index.
fn with_bad(n: usize, index: usize) -> Vec<u32> {
    let mut tokens = tokens(n);
    tokens[index] = BAD;
    tokens
}

#[test]
fn nan_in_a_norm_names_its_layer_in_batches_of_any_size() {
    for device in devices() {
        for layer in 0..2 {
            for (ty, activations) in [
                (WeightType::F32, Activations::F32),
                (WeightType::Q8_0, Activations::Auto),
                (WeightType::Q4_K, Activations::Auto),
                (WeightType::Q8_0, Activations::F16),
                (WeightType::Q8_0, Activations::Int8),
                (WeightType::Q4_K, Activations::Int8),
            ] {
                let damaged = format!("blk.{layer}.ffn_norm.weight");
                let writer = tiny::altered(ty, None, &|name, values| {
                    if name == damaged {
                        values[5] = f32::NAN;
                    }
                });
                let builder = builder(writer, &device).activations(activations);
                let mut session = builder.build().unwrap().session().unwrap();
                for n_tokens in [1, 3, 40] {
                    let error = session.eval(&tokens(n_tokens)).unwrap_err();
                    let what = format!("{device}, {ty:?}, {n_tokens} tokens");
                    let step = format!("blk.{layer}.l_out");
                    assert_names(error, &what, &step, 0, "not a number");
                }
            }
        }
    }
}

#[test]
fn first_row_at_fault_of_a_prompt_is_named() {
    for device in devices() {
        for (value, finding) in [(f32::NAN, "not a number"), (HUGE, "2^56 or more")] {
            let engine = engine(&embedding(BAD, value), &device, Sentinels::default());
            for (n, index) in [(1, 0), (3, 2), (4, 1), (40, 0), (40, 27), (40, 39)] {
                let mut session = engine.session().unwrap();
                let error = session.eval(&with_bad(n, index)).unwrap_err();
                let what = format!("{device}, {n} tokens");
                assert_names(error, &what, "blk.0.l_out", index, finding);
                // Behind other tokens.
                session.eval(&tokens(6)).unwrap();
                let error = session.eval(&with_bad(n, index)).unwrap_err();
                if n > 1 {
                    assert_names(error, &what, "blk.0.l_out", 6 + index, finding);
                }
            }
        }
    }
}

#[test]
fn infinity_in_the_second_layer_is_told_from_nan() {
    // The largest activation of the block, so that its product with the largest weight is infinite.
    let sound = engine(&|_, _| (), &Device::Reference, Sentinels::Off);
    let mut gated = Vec::new();
    let mut session = sound.session().unwrap();
    session
        .observe(&[BAD], &mut |step| {
            if step.name == "blk.1.ffn_gated" {
                gated = step.values.to_vec();
            }
        })
        .unwrap();
    let magnitude = |&column: &usize| gated[column].abs();
    let column = (0..gated.len())
        .max_by(|a, b| magnitude(a).total_cmp(&magnitude(b)))
        .unwrap();
    assert!(magnitude(&column) > 1.1, "{gated:?}");
    let alter = |name: &str, values: &mut [f32]| {
        if name == "blk.1.ffn_down.weight" {
            values[3 * gated.len()..][..gated.len()].fill(0.0);
            values[3 * gated.len() + column] = f32::MAX;
        }
    };
    for device in devices() {
        let engine = engine(&alter, &device, Sentinels::default());
        let error = engine.session().unwrap().eval(&[BAD]).unwrap_err();
        let what = device.to_string();
        assert_names(error, &what, "blk.1.l_out", 0, "an infinite value");
    }
}

#[test]
fn rows_of_zeros_are_found_behind_the_first_position() {
    let alter = |name: &str, values: &mut [f32]| {
        if name == "token_embd.weight" {
            values[BAD as usize * HIDDEN..][..HIDDEN].fill(0.0);
        }
    };
    for device in devices() {
        let engine = engine(&alter, &device, Sentinels::default());
        let mut session = engine.session().unwrap();
        let what = device.to_string();
        let error = session.eval(&[BAD, BAD, 260, 261, 262]).unwrap_err();
        assert_names(error, &what, "blk.0.l_out", 1, "nothing but zeros");
        // There a padding token may have an embedding of zeros; not so its logits, if they are wanted.
        let first = session.eval(&[BAD]).unwrap_err();
        assert_names(first, &what, "result_output", 0, "nothing but zeros");
        session.eval(&[BAD, 260, 261, 262, 263]).unwrap();
    }
}

#[test]
fn fault_in_an_early_batch_of_a_long_prompt_is_found() {
    for device in devices() {
        let sentinels = Sentinels::default();
        let writer = with_output(&embedding(BAD, HUGE));
        let builder = builder(writer, &device).context_length(1200);
        let engine = builder.sentinels(sentinels).build().unwrap();
        let max_rows = engine.plan().max_rows;
        assert!(max_rows < 1030, "one batch has all");
        let mut session = engine.session().unwrap();
        for index in [max_rows - 1, max_rows] {
            let error = session.eval(&with_bad(2 * max_rows + 6, index));
            let error = error.err().unwrap();
            let what = device.to_string();
            assert_names(error, &what, "blk.0.l_out", index, "2^56 or more");
        }
        // What was seen of the failed prompt is not held against the next.
        session.eval(&tokens(max_rows + 1)).unwrap();
    }
}

#[test]
fn every_nth_token_is_watched_from_the_first_behind_the_prompt() {
    const N_PROMPT: usize = 5;
    for device in devices() {
        let engine = engine(&embedding(BAD, HUGE), &device, Sentinels::Every(4));
        let mut session = engine.session().unwrap();
        for offset in 0..9usize {
            session.rewind(0).unwrap();
            session.eval(&tokens(N_PROMPT)).unwrap();
            // From there on every token has the fault.
            let all: Vec<u32> = (0..16)
                .map(|i| if i < offset { 260 } else { BAD })
                .collect();
            let failed = all.iter().find_map(|&token| session.eval(&[token]).err());
            let at = N_PROMPT + offset.next_multiple_of(4);
            let what = format!("{device}, from token {offset}");
            assert_names(failed.unwrap(), &what, "blk.0.l_out", at, "2^56 or more");
            assert_eq!(session.tokens().len(), at, "{what}");
        }
    }
}

/// Fails unless the session gives what a new one does, whatever ran in it before.
fn assert_works(session: &mut Session, n_kept: usize, what: &str) {
    session.rewind(n_kept).unwrap();
    let mut fresh = session.engine().session().unwrap();
    fresh.eval(session.tokens()).unwrap();
    let expected = fresh.eval(&tokens(6)).unwrap().to_vec();
    let error = centred_relative_error(session.eval(&tokens(6)).unwrap(), &expected);
    assert!(error <= CHUNK_BOUND, "{what}: {error:e}");
}

#[test]
fn session_works_behind_an_error_and_runs_what_it_keeps_again() {
    for device in devices() {
        for value in [f32::NAN, HUGE] {
            let engine = engine(&embedding(BAD, value), &device, Sentinels::Every(4));
            let mut session = engine.session().unwrap();
            session.eval(&tokens(7)).unwrap();
            assert!(session.eval(&with_bad(9, 4)).is_err(), "{device}");
            let what = format!("{device}, {value}");
            assert_works(&mut session, 7, &what);
            assert!(session.eval(&with_bad(2, 1)).is_err(), "{device}");
            assert_works(&mut session, 3, &what);
        }
        // The second token behind the prompt is not watched, the fifth is; what the second left in the cache is
        // not used, though it is kept.
        let engine = engine(&embedding(BAD, HUGE), &device, Sentinels::Every(4));
        let mut session = engine.session().unwrap();
        session.eval(&tokens(7)).unwrap();
        for token in [260, BAD, 260, 260] {
            session.eval(&[token]).unwrap();
        }
        let what = device.to_string();
        let error = session.eval(&[BAD]).unwrap_err();
        assert_names(error, &what, "blk.0.l_out", 11, "2^56 or more");
        session.rewind(9).unwrap();
        let error = session.eval(&tokens(3)).unwrap_err();
        assert_names(error, &what, "blk.0.l_out", 8, "2^56 or more");
        assert_works(&mut session, 8, &what);
    }
}

/// An answer of the sound model and the number of tokens in front of it.
fn sound_answer(options: &GenerateOptions) -> (Vec<u32>, usize) {
    let sound = engine(&|_, _| (), &Device::Reference, Sentinels::Off);
    let mut session = sound.session().unwrap();
    let answer = session.generate(PROMPT, options).unwrap();
    let answer = answer.complete().unwrap().tokens;
    let n_prompt = session.tokens().len() - answer.len();
    (answer, n_prompt)
}

const PROMPT: &str = "w1 w2 w3";

/// Greedy, and so that a GPU does not choose by itself.
fn on_the_host(max_tokens: usize) -> GenerateOptions {
    let sampling = SamplingOptions {
        logit_bias: vec![(0, -1e3)],
        ..SamplingOptions::greedy()
    };
    GenerateOptions {
        sampling,
        ..greedy(max_tokens)
    }
}

#[test]
fn fault_in_a_generated_token_is_an_error_when_the_next_is_asked_for() {
    for options in [greedy(12), on_the_host(12)] {
        let (answer, n_prompt) = sound_answer(&options);
        let is_new = |&j: &usize| !answer[..j].contains(&answer[j]) && answer[j] > 2;
        let late: Vec<usize> = (1..answer.len() - 1).filter(is_new).collect();
        assert!(late.len() > 3, "{answer:?}");
        for device in devices() {
            for &j in &late {
                for (value, every, finding) in [
                    (HUGE, 1, "2^56 or more"),
                    (f32::NAN, 1, "not a number"),
                    (HUGE, 3, "2^56 or more"),
                ] {
                    if j % every > 0 {
                        continue;
                    }
                    let alter = embedding(answer[j], value);
                    let engine = engine(&alter, &device, Sentinels::Every(every));
                    let mut session = engine.session().unwrap();
                    let mut given = Vec::new();
                    let mut generation = session.generate(PROMPT, &options).unwrap();
                    let error = generation.find_map(|piece| match piece {
                        Ok(piece) => {
                            given.extend(piece.token);
                            None
                        }
                        Err(error) => Some(error),
                    });
                    assert!(generation.next().is_none());
                    drop(generation);
                    let what = format!("{device}, token {j} of {answer:?}");
                    let position = n_prompt + j;
                    assert_names(error.unwrap(), &what, "blk.0.l_out", position, finding);
                    assert_eq!(given, answer[..=j], "{what}");
                    assert_works(&mut session, position, &what);
                }
            }
        }
    }
}

#[test]
fn without_sentinels_only_the_logits_are_looked_at() {
    for device in devices() {
        let engine = |value| engine(&embedding(BAD, value), &device, Sentinels::Off);
        let mut session = engine(HUGE).session().unwrap();
        session.eval(&with_bad(9, 4)).unwrap();
        session.eval(&[BAD]).unwrap();
        let error = engine(f32::NAN).session().unwrap();
        let error = { error }.eval(&with_bad(9, 4)).err().unwrap();
        assert_names(error, "off", "result_output", 8, "not a number");
    }
}

#[test]
fn every_zeroth_token_is_refused() {
    let builder = builder(tiny::llama(WeightType::F32, None), &Device::Cpu);
    let error = builder.sentinels(Sentinels::Every(0)).build().unwrap_err();
    assert!(error.to_string().contains("at least 1"), "{error}");
}

#[test]
fn sound_models_are_left_alone_and_answer_the_same() {
    for device in devices() {
        for ty in WeightType::ALL {
            let answer = |sentinels| {
                let builder = builder(tiny::llama(ty, None), &device);
                let engine = builder.sentinels(sentinels).build().unwrap();
                let mut session = engine.session().unwrap();
                session.eval(&tokens(70)).unwrap();
                session.generate(PROMPT, &greedy(20)).unwrap().complete()
            };
            let tokens = answer(Sentinels::Every(1)).unwrap().tokens;
            assert_eq!(tokens, answer(Sentinels::Off).unwrap().tokens, "{ty:?}");
        }
    }
}

/// Whatever layers add to the embedding is zero.
fn no_layers(name: &str, values: &mut [f32]) {
    if name.starts_with("blk.") && !name.contains("norm") {
        values.fill(0.0);
    }
}

#[test]
fn answer_that_cannot_depend_on_the_prompt_is_an_error() {
    for device in devices() {
        for options in [greedy(40), on_the_host(40)] {
            let engine = |alter: Alter<'_>, sentinels| {
                let writer = tiny::altered(WeightType::F32, None, alter);
                builder(writer, &device)
                    .sentinels(sentinels)
                    .build()
                    .unwrap()
            };
            let broken = engine(&no_layers, Sentinels::default());
            let mut session = broken.session().unwrap();
            let mut pieces = session.generate(PROMPT, &options).unwrap();
            let n_given = pieces.by_ref().take_while(Result::is_ok).count();
            assert_eq!(n_given, 15, "{device}");
            drop(pieces);
            session.rewind(0).unwrap();
            let error = session.generate(PROMPT, &options).unwrap().complete();
            let error = error.unwrap_err();
            let text = error.to_string();
            let is_it =
                matches!(&error, Error::WrongResult { step, .. } if step == "result_output");
            assert!(is_it && text.contains("16 times"), "{device}: {text}");

            let unguarded = engine(&no_layers, Sentinels::Off);
            let mut session = unguarded.session().unwrap();
            let answer = session.generate(PROMPT, &options).unwrap().complete();
            assert_eq!(answer.unwrap().tokens.len(), 40);

            // Where all tokens are alike a sound model may well repeat itself.
            let mut session = broken.session().unwrap();
            session.eval(&[263; 40]).unwrap();
            let answer = session.generate("", &options).unwrap().complete();
            assert_eq!(answer.unwrap().tokens.len(), 40);
        }
    }
}

#[test]
fn model_that_repeats_what_it_was_told_to_is_left_alone() {
    let path = model::SMOLLM2.path().unwrap();
    // Half of the tokens that count, so that only the logits speak for the model.
    let told = "Here is what the man with the hat and the dog said to all of us, over and over, in the \
                garden behind the old house, without any end at all:";
    let told = told.to_owned() + &" yes".repeat(15);
    let letters = " a".repeat(8);
    let options = GenerateOptions {
        ignore_eos: true,
        ..greedy(24)
    };
    for device in devices() {
        if device == Device::Reference {
            continue;
        }
        let builder = Engine::builder(&path).device(device.clone());
        let builder = builder.sentinels(Sentinels::Every(1)).context_length(128);
        let mut session = builder.build().unwrap().session().unwrap();
        let mut answer = |prompt: &str| {
            session.rewind(0).unwrap();
            let answer = session.generate(prompt, &options).unwrap().complete();
            answer.unwrap().tokens
        };
        let repeated = answer(&told);
        let yes = repeated[0];
        assert_eq!(
            repeated, [yes; 24],
            "{device}: it is not that it repeats a token"
        );
        assert_eq!(answer(&letters).len(), 24, "{device}");
    }
}
