//! Traces of tiny models on every device, and of the real ones against reference results.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use support::{devices, shared};
use tiny::{engine, tokens};
use trueshot::gguf::{Gguf, WeightType};
use trueshot::kv_cache::{chunk_start, first_visible};
use trueshot::plan::Op;
use trueshot::{
    Activations, Device, DiffOptions, Engine, Error, KvType, Trace, TraceEntry, TraceFinding,
    TraceOptions,
};

/// Relative error that the order of summation explains, over a tiny model. Seen: 8e-6, on the CPU and on
/// lavapipe.
const BOUND: f64 = 1e-4;

fn everything() -> TraceOptions {
    TraceOptions {
        names: vec!["*".to_owned()],
        whole: true,
        ..TraceOptions::default()
    }
}

fn trace(engine: &Engine, tokens: &[u32], options: &TraceOptions) -> Trace {
    engine.session().unwrap().trace(tokens, options).unwrap()
}

#[track_caller]
fn assert_agrees(found: &Trace, expected: &Trace, tolerance: f64) {
    let diff = found.diff(expected, &DiffOptions { tolerance });
    println!("{} and {}: {diff}", found.source, expected.source);
    assert!(diff.agrees(), "{diff}");
}

#[test]
fn trace_agrees_between_devices() {
    let tokens = tokens(40);
    let expected = trace(&engine(Device::Reference), &tokens, &everything());
    assert_eq!(
        expected.entry("blk.1.ffn_gate").unwrap().shape,
        [tokens.len(), 96]
    );
    for device in devices() {
        let found = trace(&engine(device), &tokens, &everything());
        assert_agrees(&found, &expected, BOUND);
        assert_agrees(&found, &Trace::from_json(&jsonl(&expected)).unwrap(), BOUND);
    }
}

fn jsonl(trace: &Trace) -> String {
    let mut bytes = Vec::new();
    trace.write_jsonl(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn trace_in_chunks_equals_the_one_at_once() {
    let tokens = tokens(70);
    for device in devices() {
        let engine = engine(device.clone());
        let at_once = trace(&engine, &tokens, &everything());
        for size in [1, 7, 64] {
            let options = TraceOptions {
                batch_tokens: Some(size),
                ..everything()
            };
            let chunks = trace(&engine, &tokens, &options);
            assert_agrees(&chunks, &at_once, BOUND);
            if device == Device::Reference {
                assert_eq!(chunks.entries, at_once.entries, "chunks of {size}");
            }
        }
    }
}

#[test]
fn trace_names_every_step_in_order() {
    let engine = engine(Device::Cpu);
    let trace = trace(&engine, &tokens(3), &TraceOptions::default());
    let mut names: Vec<&str> = trace.entries.iter().map(|e| e.name.as_str()).collect();
    for layer in ["blk.0", "blk.1"] {
        let keys = format!("{layer}.kv_cache.keys");
        let at = names.iter().position(|&name| name == keys).unwrap();
        assert_eq!(names.remove(at + 1), format!("{layer}.kv_cache.values"));
        names[at] = names[at].strip_suffix(".keys").unwrap();
    }
    let steps: Vec<&str> = engine.plan().steps.iter().map(|step| &*step.name).collect();
    assert_eq!(names, steps);
    assert_eq!(trace.entry("result_output").unwrap().positions, [2]);
}

#[test]
fn selected_rows_are_those_of_the_whole_trace() {
    let engine = engine(Device::Cpu);
    let all = trace(&engine, &tokens(9), &everything());
    let options = TraceOptions {
        names: vec!["*cur".to_owned(), "attn_weights".to_owned()],
        layers: vec![1],
        positions: vec![2, 5],
        first_values: 3,
        ..everything()
    };
    let some = trace(&engine, &tokens(9), &options);
    let names: Vec<&str> = some.entries.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "blk.1.Vcur",
            "blk.1.Qcur",
            "blk.1.Kcur",
            "blk.1.attn_weights"
        ]
    );
    for entry in &some.entries {
        let whole = all.entry(&entry.name).unwrap();
        let row = |row: usize| &values(whole)[row * whole.width()..][..whole.width()];
        assert_eq!(entry.positions, [2, 5]);
        assert_eq!(values(entry), [row(2), row(5)].concat());
        assert_eq!(entry.first_values, row(5)[..3]);
        assert_eq!(entry.row_rms, [whole.row_rms[2], whole.row_rms[5]]);
    }
    assert_agrees(&some, &all, 0.0);
}

#[test]
fn rows_of_outputs_are_taken_at_the_last_position_alone() {
    let engine = engine(Device::Cpu);
    let all = trace(&engine, &tokens(9), &everything());
    for (positions, is_there) in [(vec![0], false), (vec![0, 8], true)] {
        let options = TraceOptions {
            positions,
            ..everything()
        };
        let some = trace(&engine, &tokens(9), &options);
        assert_eq!(some.entry("result_output").is_some(), is_there);
        assert_agrees(&some, &all, 0.0);
        assert_agrees(&all, &some, 0.0);
    }
}

fn values(entry: &TraceEntry) -> &[f32] {
    entry.values.as_deref().unwrap()
}

/// Each attention of a trace of everything: the weights are the softmax of the queries on the keys that
/// are in the trace too, and with the values they make what the device has made of them. Gives the number
/// of layers whose window is shorter than the trace.
fn check_attention(engine: &Engine, trace: &Trace) -> usize {
    // Seen: 1.2e-6, on the CPU.
    const OUT_BOUND: f64 = 1e-5;
    let mut largest = 0.0f64;
    let mut n_windows = 0;
    for step in &engine.plan().steps {
        let Op::Attention {
            layer,
            n_head,
            scale,
            window,
            chunk,
            ..
        } = step.op
        else {
            continue;
        };
        let of_layer = |name: &str| values(trace.entry(&format!("blk.{layer}.{name}")).unwrap());
        let (q, weights, out) = (
            of_layer("Qcur"),
            of_layer("attn_weights"),
            of_layer(step.name_in_layer()),
        );
        let (keys, cached) = (of_layer("kv_cache.keys"), of_layer("kv_cache.values"));
        let cache = engine.kv_layout().layers[layer];
        let n_rows = trace.tokens.len();
        let [query_dim, key_dim, value_dim] = [cache.query_dim(), cache.head_dim, cache.value_dim];
        n_windows += usize::from(window.is_some_and(|window| window < n_rows));
        for row in 0..n_rows {
            for head in 0..n_head {
                let at =
                    |position: usize| position * cache.n_head_kv + head * cache.n_head_kv / n_head;
                let of_key = |position: usize| &keys[at(position) * key_dim..][..key_dim];
                let of_value = |position: usize| &cached[at(position) * value_dim..][..value_dim];
                let found = &weights[(row * n_head + head) * n_rows..][..n_rows];
                let q = &q[(row * n_head + head) * query_dim..][..query_dim];
                let score = |position: usize| -> f64 {
                    let rest = match cache.values_end_keys {
                        true => of_value(position),
                        false => &[],
                    };
                    let products = q.iter().zip(of_key(position).iter().chain(rest));
                    let dot: f64 = products.map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    (f64::from(scale) * dot).exp()
                };
                let first = first_visible(row, window).max(chunk_start(row, chunk));
                let total: f64 = (first..=row).map(score).sum();
                for (position, &weight) in found.iter().enumerate() {
                    let expected = match position {
                        _ if position < first || position > row => 0.0,
                        _ => score(position) / total,
                    };
                    let error = (f64::from(weight) - expected).abs();
                    assert!(
                        error <= 1e-6 * expected,
                        "layer {layer}, row {row}, head {head}, position {position}: {weight}, \
                         expected {expected}"
                    );
                }
                let sum: f64 = found.iter().map(|&weight| f64::from(weight)).sum();
                assert!((sum - 1.0).abs() <= 1e-6, "{sum}");
                for column in 0..value_dim {
                    let products = found.iter().enumerate();
                    let expected: f64 = products
                        .map(|(position, &weight)| {
                            f64::from(weight) * f64::from(of_value(position)[column])
                        })
                        .sum();
                    let found = out[(row * n_head + head) * value_dim + column];
                    let error = (f64::from(found) - expected).abs();
                    largest = largest.max(error);
                    assert!(
                        error <= OUT_BOUND,
                        "layer {layer}, row {row}, head {head}, column {column}: {found}, \
                         expected {expected}"
                    );
                }
            }
        }
    }
    println!("{}: {largest:.1e}, bound {OUT_BOUND:.0e}", trace.source);
    n_windows
}

#[test]
fn attention_weights_explain_what_attention_gives() {
    for device in devices() {
        let engine = engine(device);
        check_attention(&engine, &trace(&engine, &tokens(40), &everything()));
    }
}

#[test]
fn attention_weights_stop_at_the_window() {
    let Some(folder) = shared("arch") else { return };
    for device in devices() {
        let engine = Engine::builder(folder.join("gemma3.gguf"))
            .device(device)
            .activations(Activations::F32)
            .kv(KvType::F16)
            .context_length(64)
            .build()
            .unwrap();
        let tokens = tokens(40);
        let trace = trace(&engine, &tokens, &everything());
        assert_eq!(check_attention(&engine, &trace), 6);
        let weights = trace.entry("blk.0.attn_weights").unwrap();
        assert_eq!(weights.shape[2], tokens.len());
        assert_eq!(values(weights)[values(weights).len() - tokens.len()], 0.0);
    }
}

#[test]
fn attention_weights_of_latents_are_those_of_the_keys_that_they_end() {
    let Some(folder) = shared("arch") else { return };
    let tokens = tokens(30);
    for device in devices() {
        let engine = Engine::builder(folder.join("deepseek2-v3.gguf"))
            .device(device)
            .activations(Activations::F32)
            .kv(KvType::F16)
            .context_length(64)
            .build()
            .unwrap();
        let whole = trace(&engine, &tokens, &everything());
        check_attention(&engine, &whole);
        let shape = |name: &str| whole.entry(name).unwrap().shape.clone();
        assert_eq!(shape("blk.1.kv_cache.keys"), [30, 8]);
        assert_eq!(shape("blk.1.kv_cache.values"), [30, 20]);

        let mut session = engine.session().unwrap();
        session.eval(&tokens[..11]).unwrap();
        let options = TraceOptions {
            names: vec!["attn_weights".to_owned()],
            ..everything()
        };
        let behind = session.trace(&tokens[11..], &options).unwrap();
        let later = TraceOptions {
            positions: (11..30).collect(),
            ..options
        };
        assert_agrees(&behind, &trace(&engine, &tokens, &later), BOUND);
    }
}

#[test]
fn attention_weights_behind_earlier_tokens_are_those_of_all_at_once() {
    let tokens = tokens(30);
    let options = TraceOptions {
        names: vec!["attn_weights".to_owned()],
        ..everything()
    };
    for device in devices() {
        let engine = engine(device);
        let mut session = engine.session().unwrap();
        session.eval(&tokens[..11]).unwrap();
        let behind = session.trace(&tokens[11..], &options).unwrap();
        let later = TraceOptions {
            positions: (11..30).collect(),
            ..options.clone()
        };
        assert_eq!(behind.position, 11);
        let at_once = trace(&engine, &tokens, &later);
        assert_agrees(&behind, &at_once, BOUND);
        let shapes = |trace: &Trace| {
            trace
                .entries
                .iter()
                .map(|e| e.shape.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(shapes(&behind), vec![vec![19, 4, 30]; 2]);
        assert_eq!(shapes(&behind), shapes(&at_once));
    }
}

#[test]
fn trace_leaves_the_session_as_eval_does() {
    for device in devices() {
        let engine = engine(device);
        let mut session = engine.session().unwrap();
        let trace = session.trace(&tokens(20), &everything()).unwrap();
        let logits = session.eval(&[]).unwrap();
        assert_eq!(values(trace.entry("result_output").unwrap()), logits);
        assert_eq!(session.tokens(), tokens(20));
    }
}

fn altered(device: Device, alter: &dyn Fn(&str, &mut [f32])) -> Engine {
    let writer = tiny::altered(WeightType::F32, None, alter);
    let gguf = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
    Engine::builder_from(gguf)
        .device(device)
        .activations(Activations::F32)
        .kv(KvType::F32)
        .build()
        .unwrap()
}

#[test]
fn diff_names_the_step_of_one_changed_weight() {
    let expected = trace(
        &altered(Device::Cpu, &|_, _| ()),
        &tokens(12),
        &everything(),
    );
    for step in ["ffn_up", "attn_k"] {
        let changed = altered(Device::Cpu, &|name, values| {
            if name == format!("blk.1.{step}.weight") {
                values[64 * 5 + 3] += 0.1;
            }
        });
        let found = trace(&changed, &tokens(12), &everything());
        let diff = found.diff(&expected, &DiffOptions::default());
        let first = diff.first().unwrap();
        assert_eq!(first.name, format!("blk.1.{step}"), "{diff}");
        assert!(
            matches!(first.finding, Some(TraceFinding::Value { column: 5, .. })),
            "{diff}"
        );
    }
}

#[test]
fn trace_shows_where_logits_that_are_no_numbers_come_from() {
    for device in devices() {
        let engine = altered(device.clone(), &|name, values| {
            if name == "blk.1.ffn_gate.weight" {
                values[7] = f32::NAN;
            }
        });
        let mut session = engine.session().unwrap();
        assert!(matches!(
            session.eval(&tokens(5)),
            Err(Error::WrongResult { .. })
        ));
        let trace = session.trace(&tokens(5), &TraceOptions::default()).unwrap();
        assert!(session.tokens().is_empty());
        let first = trace.entries.iter().find(|entry| entry.n_nan != Some(0));
        let first = first.unwrap();
        assert_eq!(
            (&*first.name, first.n_nan),
            ("blk.1.ffn_gate", Some(5)),
            "{device}"
        );
        assert!(trace.entry("result_output").unwrap().n_nan > Some(0));
    }
}

#[test]
fn options_that_select_what_is_not_there_are_refused() {
    let engine = engine(Device::Cpu);
    let mut session = engine.session().unwrap();
    session.eval(&tokens(4)).unwrap();
    let plain = TraceOptions::default;
    let named = |names: &[&str]| TraceOptions {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        ..plain()
    };
    for (options, expected) in [
        (
            named(&["Qcur", "attn_norn"]),
            "`attn_norn` matches no tensor",
        ),
        (
            TraceOptions {
                layers: vec![0, 2],
                ..plain()
            },
            "`layers`: 2, expected less than 2",
        ),
        (
            TraceOptions {
                layers: vec![1],
                ..named(&["embd"])
            },
            "no tensor of these layers",
        ),
        (
            TraceOptions {
                positions: vec![3],
                ..plain()
            },
            "`positions`: 3, but",
        ),
        (
            TraceOptions {
                positions: vec![7],
                ..plain()
            },
            "positions that run are 4..7",
        ),
        (
            TraceOptions {
                positions: vec![4, 5],
                ..named(&["result_*"])
            },
            "`positions`: these tensors have a row at position 6 alone",
        ),
        (
            TraceOptions {
                batch_tokens: Some(0),
                ..plain()
            },
            "`batch_tokens`: 0",
        ),
    ] {
        let error = session.trace(&tokens(3), &options).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
        assert!(
            error.to_string().contains(expected),
            "`{expected}`: {error}"
        );
    }
    assert!(matches!(
        session.trace(&[], &plain()),
        Err(Error::InvalidArgument { name: "tokens", .. })
    ));
    assert!(matches!(
        session.trace(&tokens(400), &plain()),
        Err(Error::ContextFull { .. })
    ));
    assert_eq!(session.tokens(), tokens(4));
}

/// Relative error of class f32 (see `tests/golden.rs`). Seen: 8e-6, of SmolLM2 on the reference.
const GOLDEN_BOUND: f64 = 1e-4;

fn check_golden(model: std::path::PathBuf, name: &str) {
    let Some(path) = shared(&format!("golden/{name}.json")) else {
        return;
    };
    let golden = Trace::read(path).unwrap();
    for device in devices() {
        let engine = Engine::builder(&model)
            .device(device)
            .activations(Activations::F32)
            .kv(KvType::F32)
            .context_length(64)
            .build()
            .unwrap();
        let found = trace(&engine, &golden.tokens, &TraceOptions::default());
        let diff = found.diff(
            &golden,
            &DiffOptions {
                tolerance: GOLDEN_BOUND,
            },
        );
        println!("{}: {diff}", found.source);
        assert!(diff.agrees(), "{diff}");
        assert_eq!(diff.tensors.len(), golden.entries.len());
    }
}

#[test]
fn trace_of_smollm2_agrees_with_the_reference_file() {
    check_golden(
        support::model::smollm2().unwrap(),
        "smollm2-135m-instruct-q4_1",
    );
}

#[test]
fn trace_of_gemma3_agrees_with_the_reference_file() {
    check_golden(support::model::gemma3().unwrap(), "gemma-3-270m-q4_k_m");
}
