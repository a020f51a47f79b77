//! Examples as a person runs them.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// An example that `cargo test` has built beside this test.
pub fn example(name: &str) -> Command {
    // Not `current_exe`: it names the loader where a test runs through one.
    let this = PathBuf::from(std::env::args_os().next().expect("a program has a name"));
    let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    let profile = this
        .ancestors()
        .nth(2)
        .expect("a test lies in target/PROFILE/deps");
    let path = profile.join("examples").join(file);
    assert!(
        path.exists(),
        "{} is missing: `cargo build --release --examples`",
        path.display()
    );
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

pub fn run(name: &str, args: &[&str]) -> Output {
    example(name).args(args).output().unwrap()
}

pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
pub fn assert_succeeds(output: &Output) {
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        stderr(output)
    );
}

#[track_caller]
pub fn assert_fails(output: &Output, code: i32, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(stdout(output), "");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("error: "))
            .count(),
        1,
        "{text}"
    );
    assert!(!text.contains("panicked"), "{text}");
}
