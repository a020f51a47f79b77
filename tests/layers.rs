//! The layers of docs/ARCHITECTURE.md and other rules of the house, checked over the source text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The modules of the crate: each knows those of its own layer and of the layers above it in this
/// list. What stands nowhere here (`error`) is for all.
const LAYERS: [&[&str]; 5] = [
    &["gguf", "tokenizer", "chat_template", "sampler", "kv_cache"],
    &["model", "plan"],
    &["kernels"],
    &["device"],
    &["diagnostics", "engine", "session", "generation"],
];

/// The library logs and prints nothing.
const PRINTS: [&str; 3] = ["print!", "println!", "dbg!"];

/// What a graphics debugger would show without a name.
const NAMELESS: [&str; 3] = [
    "create_command_encoder(&Default",
    "begin_compute_pass(&Default",
    "label: None",
];

/// Where the file at `path`, below `src`, breaks a rule.
fn violations(path: &str, text: &str) -> Vec<String> {
    let names: Vec<&str> = path
        .split('/')
        .map(|part| part.trim_end_matches(".rs"))
        .collect();
    if names.iter().any(|name| ["tests", "testing"].contains(name)) {
        return Vec::new();
    }
    let mut forbidden: Vec<String> = PRINTS.map(str::to_owned).into();
    if let Some(layer) = LAYERS.iter().position(|layer| layer.contains(&names[0])) {
        let later = LAYERS[layer + 1..].concat();
        forbidden.extend(later.iter().map(|module| format!("crate::{module}")));
        // A list in braces would hide names from this check.
        forbidden.push("crate::{".to_owned());
    }
    // `device/mod.rs` calls its own module `wgpu` by its bare name.
    if !path.starts_with("device/wgpu/") && path != "device/mod.rs" {
        forbidden.extend(["wgpu::", "use wgpu"].map(str::to_owned));
    }
    forbidden.extend(NAMELESS.map(str::to_owned));
    let mut found = Vec::new();
    for (number, line) in code_lines(text) {
        // The module of that name, by its path, is not the crate.
        let line = line.replace("device::wgpu", "device");
        let broken = forbidden.iter().filter(|text| line.contains(*text));
        found.extend(broken.map(|text| format!("src/{path}:{number}: `{text}`")));
    }
    found
}

/// The numbered lines of a formatted source file without comments and without items for tests alone.
fn code_lines(text: &str) -> Vec<(usize, &str)> {
    let mut lines = text.lines().enumerate();
    let mut code = Vec::new();
    while let Some((index, line)) = lines.next() {
        if line.trim_start() == "#[cfg(test)]" {
            let indent = line.len() - line.trim_start().len();
            // An item ends with the first line of its own indentation that closes it.
            lines.find(|(_, line)| {
                line.len() - line.trim_start().len() == indent && line.ends_with(['}', ';', ','])
            });
        } else {
            let end = line.find("//").unwrap_or(line.len());
            code.push((index + 1, &line[..end]));
        }
    }
    code
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

#[test]
fn source_keeps_to_its_layers() {
    let src = src();
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for file in files(&src)
        .iter()
        .filter(|file| file.extension().is_some_and(|e| e == "rs"))
    {
        let path = file
            .strip_prefix(&src)
            .unwrap()
            .to_str()
            .unwrap()
            .replace('\\', "/");
        found.extend(violations(&path, &std::fs::read_to_string(file).unwrap()));
        let module = path.split(['/', '.']).next();
        seen.extend(module.map(str::to_owned));
    }
    assert!(found.is_empty(), "{found:#?}");
    // The rules would hold for nothing where a module was renamed.
    for module in LAYERS.concat() {
        assert!(seen.contains(module), "no module `{module}`");
    }
}

#[test]
fn check_of_the_layers_refuses_what_breaks_them() {
    for (path, line, expected) in [
        ("engine.rs", "fn f(device: &wgpu::Device) {}", "wgpu::"),
        ("kernels/add.rs", "use wgpu as gpu;", "use wgpu"),
        (
            "gguf/reader.rs",
            "use crate::engine::Engine;",
            "crate::engine",
        ),
        ("kv_cache/mod.rs", "use crate::{device, plan};", "crate::{"),
        (
            "plan/check.rs",
            "    crate::kernels::add::twin();",
            "crate::kernels",
        ),
        (
            "device/mod.rs",
            "fn f(engine: &crate::engine::Engine) {}",
            "crate::engine",
        ),
        (
            "kernels/mod.rs",
            "use crate::device::Device;",
            "crate::device",
        ),
        (
            "device/wgpu/chain.rs",
            "let pass = encoder.begin_compute_pass(&Default::default());",
            "begin_compute_pass(&Default",
        ),
        ("device/wgpu/chain.rs", "    label: None,", "label: None"),
        ("session.rs", "    eprintln!(\"{logits:?}\");", "println!"),
    ] {
        let text = format!("#[cfg(test)]\nmod tests {{\n    use a;\n}}\n{line}\n");
        let expected = format!("src/{path}:5: `{expected}`");
        assert_eq!(violations(path, &text), [expected]);
    }
}

#[test]
fn check_of_the_layers_passes_tests_comments_and_the_module_wgpu() {
    for (path, text) in [
        ("engine.rs", "use crate::device::wgpu::GpuBackend;"),
        ("device/wgpu/context.rs", "use wgpu::Adapter;"),
        ("gguf/mod.rs", "/// println!(\"{}\", gguf.version());"),
        ("kernels/tests/mod.rs", "use crate::device::wgpu::testing;"),
        (
            "plan/mod.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::device::Device;\n}",
        ),
        ("plan/mod.rs", "#[cfg(test)]\nuse crate::device::Device;"),
    ] {
        assert_eq!(violations(path, text), [""; 0], "{path}");
    }
}

#[test]
fn every_kernel_is_a_pair_of_rust_and_wgsl() {
    let names = |extension: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(src().join("kernels")).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|found| found == extension))
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .filter(|name| name != "mod")
            .collect()
    };
    let rust = names("rs");
    assert!(!rust.is_empty());
    assert_eq!(rust, names("wgsl"));
}
