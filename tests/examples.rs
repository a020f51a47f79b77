//! The examples as a person runs them: what goes to stdout, what to stderr, and the exit code.

#[path = "support/example.rs"]
mod example;

use example::{assert_fails, assert_succeeds, example, run, stderr, stdout};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

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

const EXAMPLES: [&str; 7] = [
    "chat", "generate", "inspect", "verify", "compare", "profile", "bench",
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
