//! The examples as a person runs them: what goes to stdout, what to stderr, and the exit code.

#[path = "support/example.rs"]
mod example;
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use example::{assert_fails, assert_succeeds, example, run, stderr, stdout};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use trueshot::gguf::{Gguf, TensorType, WeightType, Writer};

fn run_with_input(name: &str, args: &[&str], input: &str) -> Output {
    let mut command = example(name);
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn scratch_file(name: &str, contents: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, contents).unwrap();
    path
}

fn model_file(name: &str, writer: Writer) -> String {
    let path = scratch_file(name, &writer.to_bytes().unwrap());
    path.to_str().unwrap().to_owned()
}

const EXAMPLES: [&str; 9] = [
    "chat", "generate", "embed", "inspect", "verify", "trace", "compare", "profile", "bench",
];

const GREEDY: [&str; 4] = ["--device", "cpu", "--temperature", "0"];

#[test]
fn chat_answers_a_prompt_on_stdout_alone() {
    let question = [
        "--prompt",
        "What is the capital of France?",
        "--max-tokens",
        "32",
    ];
    let output = run("chat", &[&GREEDY[..], &question].concat());
    assert_succeeds(&output);
    let answer = stdout(&output);
    assert!(answer.contains("Paris"), "{answer}");
    for noise in ["loading", "info", "> ", "context of"] {
        assert!(!answer.contains(noise), "`{noise}` is in: {answer}");
    }
    assert!(
        stderr(&output).contains("context of"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn chat_takes_each_piped_line_as_a_turn_or_a_command() {
    let input = "/system Answer in one word.\n/stats\nSay hello.\n/stats\n\n/reset\n/nonsense\n\
                 What is the capital of France?\n/quit\nnever asked\n";
    let args = [&GREEDY[..], &["--max-tokens", "12"]].concat();
    let output = run_with_input("chat", &args, input);
    assert_succeeds(&output);
    let (answers, rest) = (stdout(&output), stderr(&output));
    assert!(
        answers.lines().filter(|line| !line.is_empty()).count() >= 2,
        "{answers}"
    );
    assert!(answers.contains("Paris"), "{answers}");
    assert_eq!(rest.matches("session: ").count(), 2, "{rest}");
    assert_eq!(rest.matches("tokens/s; answer: ").count(), 1, "{rest}");
    assert!(rest.contains("no command `/nonsense`"), "{rest}");
}

#[test]
fn chat_ends_at_the_end_of_its_input() {
    let output = run_with_input("chat", &GREEDY, "");
    assert_succeeds(&output);
    assert_eq!(stdout(&output), "");
}

#[test]
fn generate_continues_a_text() {
    let prompt = ["--prompt", "The capital of France is", "--max-tokens", "4"];
    let output = run("generate", &[&GREEDY[..], &prompt].concat());
    assert_succeeds(&output);
    assert!(stdout(&output).starts_with(" Paris"), "{}", stdout(&output));
    let piped = run_with_input(
        "generate",
        &[&GREEDY[..], &["--max-tokens", "4"]].concat(),
        "The capital of France is",
    );
    assert_eq!(stdout(&piped), stdout(&output));
}

#[test]
fn embed_prints_how_near_texts_are() {
    let Some(model) = support::shared("arch/bert.gguf") else {
        return;
    };
    let args = ["--device", "cpu", "--model", model.to_str().unwrap()];
    let texts = ["--text", "one", "--text", "another", "--text", "one"];
    let output = run("embed", &[&args[..], &texts].concat());
    assert_succeeds(&output);
    let lines: Vec<&str> = stdout(&output).lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].ends_with("  one | another"), "{lines:?}");
    assert_eq!(lines[1], " 1.0000  one | one");
    assert!(!lines[0].contains("1.0000"), "{lines:?}");

    let input = run_with_input("embed", &[&args[..], &["--vectors"]].concat(), "one\n");
    assert_succeeds(&input);
    let vector: Vec<f32> = serde_json::from_str(stdout(&input)).unwrap();
    assert_eq!(vector.len(), 48);
    let alone = run("embed", &[&args[..], &texts[..2]].concat());
    assert_fails(&alone, 1, &["1 texts, expected at least 2"]);
}

#[test]
fn generate_prints_token_ids_when_asked() {
    let args = [
        "--prompt",
        "The capital of France is",
        "--max-tokens",
        "3",
        "--tokens",
    ];
    let output = run("generate", &[&GREEDY[..], &args].concat());
    assert_succeeds(&output);
    let ids = |text: &str| -> Vec<u32> {
        text.split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect()
    };
    assert_eq!(ids(stdout(&output)).len(), 3);
    let prompt = stderr(&output)
        .lines()
        .find_map(|line| line.strip_prefix("prompt: "));
    assert_eq!(ids(prompt.unwrap()), [504, 3575, 282, 4649, 314]);
}

#[test]
fn generate_repeats_itself_with_a_seed() {
    let args = [
        "--device",
        "cpu",
        "--prompt",
        "Once",
        "--max-tokens",
        "8",
        "--seed",
        "7",
    ];
    let (first, second) = (run("generate", &args), run("generate", &args));
    assert_succeeds(&first);
    assert_eq!(stdout(&first), stdout(&second));
}

#[test]
fn bench_writes_an_object_a_line() {
    let args = [
        "--device", "cpu", "--pp", "16", "--tg", "4", "--repeat", "2", "--json",
    ];
    let output = run("bench", &args);
    assert_succeeds(&output);
    let lines: Vec<serde_json::Value> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let tests: Vec<&str> = lines
        .iter()
        .map(|line| line["test"].as_str().unwrap())
        .collect();
    assert_eq!(tests, ["pp16", "tg4"]);
    for line in &lines {
        assert_eq!(line["model"], "SmolLM2-135M-Instruct.Q4_1");
        assert_eq!(line["weight_type"], "q4_1");
        assert!(
            line["device"].is_string() && line["threads"].as_u64().unwrap() > 0,
            "{line}"
        );
        let speed = |key: &str| line[key].as_f64().unwrap();
        let median = speed("tokens_per_second");
        assert!(median > 0.0, "{line}");
        assert!(speed("tokens_per_second_min") <= median, "{line}");
        assert!(speed("tokens_per_second_max") >= median, "{line}");
    }
}

#[test]
fn profile_has_a_line_for_each_kind_of_step() {
    let args = ["--device", "cpu", "--tg", "8", "--repeat", "1"];
    let output = run("profile", &args);
    assert_succeeds(&output);
    let text = stdout(&output);
    let row = |step: &str| {
        let line = text.lines().find(|line| line.starts_with(step));
        line.unwrap_or_else(|| panic!("`{step}` is not in: {text}"))
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert_eq!(row("ffn_gate")[1], "30");
    assert_eq!(row("result_output")[1], "1");
    assert_eq!(row("484")[1], "dispatches:");
    assert_eq!(row("unprofiled")[0], "unprofiled,");
    assert_fails(&run("profile", &["--pp", "0"]), 1, &["--pp 0"]);
}

#[test]
fn profile_is_of_a_model_that_is_not_watched_unless_asked() {
    let ty = WeightType::F32;
    let (n_vocab, width) = (tiny::vocabulary().len(), 64);
    // Sentinels refuse what the layers make of it, and the logits are sound.
    let writer = tiny::altered(ty, None, &|name, values| {
        if name == "token_embd.weight" {
            values.chunks_exact_mut(width).for_each(|row| row[9] = 1e18);
        }
    });
    let output = ty.encode(&vec![0.5; n_vocab * width]);
    let writer = writer.tensor("output.weight", vec![n_vocab, width], ty, output);
    let model = model_file("watched.gguf", writer.unwrap());
    let args = [
        "--model", &model, "--device", "cpu", "--pp", "3", "--repeat", "1",
    ];
    assert_succeeds(&run("profile", &args));
    let watched = run("profile", &[&args[..], &["--sentinels", "1"]].concat());
    assert_fails(&watched, 1, &["blk.0.l_out"]);
}

#[test]
fn profile_without_a_debugger_to_capture_it_fails() {
    if support::gpu().is_none() {
        return;
    }
    if cfg!(target_vendor = "apple") {
        return support::skipped("Metal is not asked whether a debugger is there");
    }
    let model = model_file("captured.gguf", tiny::llama(WeightType::F32, None));
    let mut command = example("profile");
    // A driver that comes with a C library of its own serves only programs that are started through its loader.
    command
        .env_remove("VK_DRIVER_FILES")
        .env_remove("VK_ICD_FILENAMES");
    command.args([
        "--model",
        &model,
        "--device",
        "gpu",
        "--tg",
        "3",
        "--capture",
    ]);
    let output = command.output().unwrap();
    if stderr(&output).contains("no such device") {
        return support::skipped(
            "the driver of these tests serves no examples, and there is no other",
        );
    }
    assert_fails(&output, 1, &["no graphics debugger"]);
}

#[test]
fn examples_encode_a_prompt_as_a_session_does() {
    let writer = tiny::llama(WeightType::F32, None).metadata("tokenizer.ggml.add_eos_token", true);
    let model = model_file("prompt.gguf", writer);
    let args = ["--model", &model, "--device", "cpu", "--prompt", "</s>!"];
    let traced = run("trace", &[&args[..], &["--json"]].concat());
    assert_succeeds(&traced);
    let head = stdout(&traced).lines().next().unwrap();
    let head: serde_json::Value = serde_json::from_str(head).unwrap();
    assert_eq!(head["tokens"], serde_json::json!([1, 2, 229, 153, 132, 36]));
    let one_token = ["--tokens", "--max-tokens", "1"];
    let generated = run("generate", &[&args[..], &one_token].concat());
    assert_succeeds(&generated);
    let said = stderr(&generated);
    assert!(said.contains("prompt: 1 2 229 153 132 36\n"), "{said}");
    assert!(said.contains("(prompt: 6 tokens"), "{said}");
}

const TRACE: [&str; 6] = ["--device", "cpu", "--kv", "f32", "--context", "64"];

#[test]
fn trace_has_a_line_for_each_tensor() {
    let args = [
        "--names",
        "Qcur,attn_weights,kv_cache*",
        "--layers",
        "0,28-29",
        "--positions",
        "1-2,4",
        "--values",
        "3",
    ];
    let output = run("trace", &[&TRACE[..], &args].concat());
    assert_succeeds(&output);
    let lines: Vec<Vec<&str>> = stdout(&output)
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines.len(), 2 + 3 * 4, "{}", stdout(&output));
    let row = |name: &str| lines.iter().find(|line| line[0] == name).unwrap();
    let q = row("blk.0.Qcur");
    assert_eq!(q[1], "3x576");
    assert_eq!(q[9..], ["0.39745", "0.24843", "-0.10287"]);
    assert_eq!(row("blk.29.kv_cache.values")[1], "3x192");
    // Nine heads, and of five positions three, two and none are not visible.
    let weights = row("blk.28.attn_weights");
    assert_eq!((weights[1], weights[6]), ("3x9x5", "45"));
    assert_eq!(weights.len(), 9 + 3);
}

#[test]
fn trace_files_are_compared() {
    let write = |name: &str, args: &[&str]| {
        let output = run("trace", &[&TRACE[..], args, &["--json"]].concat());
        assert_succeeds(&output);
        let path = scratch_file(name, &output.stdout);
        path.to_str().unwrap().to_owned()
    };
    let first = write("trace-1.jsonl", &["--layers", "0-3"]);
    let second = write(
        "trace-2.jsonl",
        &["--layers", "0-3", "--batch", "1", "--whole"],
    );
    let f16 = write("trace-f16.jsonl", &["--layers", "0-3", "--weights", "f16"]);
    let text = std::fs::read_to_string(&first).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["tokens"].as_array().unwrap().len(), 5);
    assert_eq!(lines[1]["name"], "blk.0.attn_norm");
    assert_eq!(lines.len(), 1 + 4 * 17);

    let same = run("trace", &["--diff", &first, &second]);
    assert_succeeds(&same);
    let said = stdout(&same);
    assert!(said.starts_with("68 tensors agree within 1e-3"), "{said}");

    let differs = |args: &[&str], parts: &[&str]| {
        let output = run("trace", args);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("the traces differ"),
            "{}",
            stderr(&output)
        );
        for part in parts {
            let said = stdout(&output);
            assert!(said.contains(part), "`{part}` is not in: {said}");
        }
    };
    differs(
        &["--diff", &first, &f16, "--tolerance", "1e-5"],
        &[
            "DIFFERS: first in `blk.0.attn_norm`: position",
            "the error grows",
        ],
    );
    let changed = text.replacen("\"blk.2.ffn_up\"", "\"blk.2.ffn_down\"", 1);
    let changed = scratch_file("trace-changed.jsonl", changed.as_bytes());
    differs(
        &["--diff", &first, changed.to_str().unwrap()],
        &[
            "ONLY IN THE FIRST: `blk.2.ffn_up`",
            "ONLY IN THE SECOND: `blk.2.ffn_down`",
        ],
    );
    let cut = scratch_file("trace-cut.jsonl", &text.as_bytes()[..text.len() / 2]);
    let cut = cut.to_str().unwrap();
    assert_fails(&run("trace", &["--diff", &first, cut]), 1, &[cut, "line "]);
    assert_fails(&run("trace", &["--diff", &first]), 2, &["--diff"]);
    assert_fails(&run("trace", &["--layers", "3-1"]), 2, &["--layers 3-1"]);
    let nothing = run("trace", &[&TRACE[..], &["--names", "Qcurr"]].concat());
    assert_eq!(nothing.status.code(), Some(1));
    assert!(
        stderr(&nothing).contains("`Qcurr` matches no tensor"),
        "{}",
        stderr(&nothing)
    );
}

#[test]
fn inspect_shows_every_part_of_a_model() {
    let output = run("inspect", &[]);
    assert_succeeds(&output);
    let text = stdout(&output);
    for part in [
        "general.architecture = \"llama\"",
        "token_embd.weight",
        "n_head 9, n_head_kv 3, head_dim 64",
        "blk.29.attn_norm",
        "result_output",
        "weights: ",
        "cache: ",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn inspect_escapes_names_that_are_not_printable() {
    let writer = tiny::llama(WeightType::F32, None)
        .metadata("note\u{1b}[2J", 1_u32)
        .metadata("general.name", "tiny\u{1b}[1m");
    let output = run("inspect", &["--model", &model_file("escape.gguf", writer)]);
    let text = stdout(&output);
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(text.contains("note\\u{1b}[2J = 1"), "{text}");
}

/// What inspect says at the end of a file, and its exit code.
fn needs(file: &str, writer: Writer) -> (String, Option<i32>) {
    let model = model_file(file, writer);
    let output = run("inspect", &["--model", &model]);
    let text = stdout(&output);
    let start = text.find("\nruns: ").unwrap_or_else(|| panic!("{text}"));
    (text[start + 1..].to_owned(), output.status.code())
}

#[test]
fn inspect_says_of_any_file_whether_it_runs_and_what_it_needs() {
    let tiny = || tiny::llama(WeightType::Q8_0, None);
    let (text, code) = needs("runs.gguf", tiny());
    assert_eq!(code, Some(0), "{text}");
    // Weights: the sum over the tensors. Cache: 2 layers, 256 tokens, keys and values of 2 heads of 16, 2 bytes.
    let gguf = Gguf::from_bytes(tiny().to_bytes().unwrap()).unwrap();
    let bytes: u64 = gguf.tensors().iter().map(|tensor| tensor.n_bytes).sum();
    let weights = bytes as f64 / f64::from(1 << 20);
    for line in [
        "runs: yes\n",
        "  architecture: llama, supported\n",
        "  weight types: f32 (5 tensors, supported), q8_0 (15 tensors, supported)\n",
        "  tokenizer: llama, supported\n",
        "  chat template: the file has none (key `tokenizer.chat_template`)\n",
        &format!(
            "  needs {weights:.1} MiB for the weights, 0.1 MiB for the cache of a session of 256 tokens\n"
        ),
    ] {
        assert!(text.contains(line), "`{line}` is not in: {text}");
    }

    let bytes = vec![0; 36 * 320];
    let types = tiny()
        .tensor("output.weight", [320, 64], TensorType::NVFP4, bytes)
        .unwrap();
    let architecture = tiny().metadata("general.architecture", "mamba9");
    let tokenizer = tiny()
        .metadata("tokenizer.ggml.model", "gpt2")
        .metadata("tokenizer.ggml.merges", vec!["a b".to_owned()])
        .metadata("tokenizer.ggml.pre", "tomorrow");
    for (file, writer, lines) in [
        (
            "type.gguf",
            types,
            [
                "runs: no: weight type `40 (nvfp4) of output.weight` is not supported",
                "nvfp4 (1 tensor, not supported)",
            ],
        ),
        (
            "architecture.gguf",
            architecture,
            [
                "runs: no: architecture `mamba9` is not supported",
                "  architecture: mamba9, not supported\n",
            ],
        ),
        (
            "pre.gguf",
            tokenizer,
            [
                "runs: no: pre-tokenizer `tomorrow` is not supported",
                "  tokenizer: gpt2, pre-tokenizer tomorrow, pre-tokenizer tomorrow is not supported\n",
            ],
        ),
    ] {
        let (text, code) = needs(file, writer);
        assert_eq!(code, Some(1), "{text}");
        for line in lines {
            assert!(text.contains(line), "`{line}` is not in: {text}");
        }
        assert!(
            text.contains("MiB for the weights as they are in the file"),
            "{text}"
        );
    }
}

#[test]
fn inspect_says_that_a_file_with_an_unknown_tensor_type_does_not_run() {
    let mut bytes = tiny::llama(WeightType::F32, None).to_bytes().unwrap();
    let name = b"output_norm.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 8;
    bytes[at..at + 4].copy_from_slice(&4u32.to_le_bytes());
    let path = scratch_file("removed.gguf", &bytes);
    let output = run("inspect", &["--model", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    let expected = "runs: no: tensor type `4 (q4_2, which ggml has removed) of output_norm.weight`";
    assert!(text.starts_with(expected), "{text}");
    assert!(
        stderr(&output).contains("removed.gguf"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn inspect_shows_hashes_where_they_are_asked_for() {
    let output = run("inspect", &["--hashes"]);
    assert_succeeds(&output);
    let is_hash = |text: &str| text.len() == 16 && text.chars().all(|c| c.is_ascii_hexdigit());
    let tensors = stdout(&output)
        .lines()
        .filter(|line| line.contains(" bytes at "));
    let (mut n_tensors, mut hashes) = (0, BTreeSet::new());
    for line in tensors {
        let hash = line.split_once(", xxh64 ").map(|(_, hash)| hash);
        assert!(hash.is_some_and(is_hash), "{line}");
        hashes.extend(hash);
        n_tensors += 1;
    }
    assert_eq!((n_tensors, hashes.len()), (272, 272));
    assert!(!stdout(&run("inspect", &[])).contains("xxh64"));
}

#[test]
fn inspect_ends_quietly_when_nobody_reads_on() {
    let mut command = example("inspect");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
}

#[test]
fn missing_file_is_named() {
    for name in EXAMPLES {
        let output = run(name, &["--model", "no/such.gguf", "--prompt", "Hello"]);
        assert_fails(&output, 1, &["no/such.gguf"]);
    }
}

#[test]
fn adapters_are_added_with_their_scale() {
    let lora = |scale| {
        let f32 = WeightType::F32;
        let writer = Writer::new()
            .metadata("general.type", "adapter")
            .metadata("general.architecture", "llama")
            .metadata("adapter.type", "lora")
            .metadata("adapter.lora.alpha", 1.0_f32)
            .tensor(
                "blk.1.ffn_down.weight.lora_a",
                [1, 96],
                f32,
                f32.encode(&[1.0; 96]),
            )
            .unwrap()
            .tensor(
                "blk.1.ffn_down.weight.lora_b",
                [64, 1],
                f32,
                f32.encode(&[1.0; 64]),
            )
            .unwrap();
        let model = model_file("lora-base.gguf", tiny::llama(f32, None));
        let adapter = model_file(&format!("lora-{scale}.gguf"), writer);
        let args = ["--model", &model, "--lora", &adapter, "--lora-scale", scale];
        let prompt = ["--prompt", "w1 w2", "--max-tokens", "8", "--tokens"];
        let output = run("generate", &[&GREEDY[..], &args, &prompt].concat());
        assert_succeeds(&output);
        stdout(&output).to_owned()
    };
    assert_ne!(lora("0"), lora("50"));
    let missing = ["--lora", "no/such.gguf", "--prompt", "Hello"];
    let output = run("generate", &[&GREEDY[..], &missing].concat());
    assert_fails(&output, 1, &["no/such.gguf"]);
}

#[test]
fn damaged_file_is_named_with_the_offset() {
    let path = scratch_file("damaged.gguf", b"GGUF\x03\0\0\0");
    let path = path.to_str().unwrap();
    assert_fails(&run("inspect", &["--model", path]), 1, &[path, "at byte"]);
}

#[test]
fn wrong_options_are_refused_by_name() {
    assert_fails(&run("chat", &["--colour"]), 2, &["--colour", "--help"]);
    assert_fails(&run("chat", &["--max-tokens"]), 2, &["--max-tokens"]);
    assert_fails(&run("bench", &["--tokens"]), 2, &["--tokens"]);
    assert_fails(&run("generate", &["--top-k", "many"]), 2, &["--top-k many"]);
    assert_fails(
        &run("generate", &["--device", "abacus"]),
        2,
        &["abacus", "reference"],
    );
    assert_fails(
        &run("generate", &["--kv", "q3"]),
        2,
        &["--kv q3", "f16, f32"],
    );
    assert_fails(
        &run("inspect", &["--model", "synthetic:gpt-9:q4_0"]),
        1,
        &["gpt-9", "llama3-8b"],
    );
}

#[test]
fn help_lists_the_options() {
    for name in EXAMPLES {
        let output = run(name, &["--help"]);
        assert_succeeds(&output);
        let text = stdout(&output);
        assert!(text.starts_with(&format!("{name}: ")), "{text}");
        for option in [
            "--model",
            "--device",
            "--threads",
            "--context",
            "--prompt",
            "--seed",
        ] {
            assert!(text.contains(option), "`{option}` is not in: {text}");
        }
    }
}

#[test]
fn model_that_cannot_be_fetched_is_an_error_that_names_the_way_out() {
    let empty = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-models");
    let mut command = example("inspect");
    command.env("TRUESHOT_MODELS", &empty).env("PATH", "");
    let output = command.output().unwrap();
    assert_fails(&output, 1, &["no python3", "--model"]);
    assert_eq!(
        std::fs::read_dir(&empty).unwrap().count(),
        0,
        "the unfinished download is removed"
    );
}
