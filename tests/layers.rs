//! The layers of docs/ARCHITECTURE.md and other rules of the house, checked over the source text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Text that must not stand in the code of some folders, tests apart.
struct Rule {
    /// Below `src`; the empty one is all of it.
    folders: &'static [&'static str],
    /// Places below `src` that the rule leaves alone.
    except: &'static [&'static str],
    forbids: &'static [&'static str],
}

const RULES: [Rule; 5] = [
    // The module `device::wgpu` is not the crate; `device/mod.rs` calls it by its bare name.
    Rule {
        folders: &[""],
        except: &["device/wgpu/", "device/mod.rs"],
        forbids: &["wgpu::", "use wgpu"],
    },
    Rule {
        folders: &["gguf", "tokenizer", "chat_template", "sampler", "kv_cache"],
        except: &[],
        forbids: &[
            "crate::device",
            "crate::engine",
            "crate::session",
            "crate::kernels",
            "crate::plan",
            "crate::model",
            "crate::{",
        ],
    },
    Rule {
        folders: &["model", "plan"],
        except: &[],
        forbids: &[
            "crate::device",
            "crate::engine",
            "crate::session",
            "crate::kernels",
            "crate::{",
        ],
    },
    Rule {
        folders: &["kernels"],
        except: &[],
        forbids: &[
            "crate::device",
            "crate::engine",
            "crate::session",
            "crate::{",
        ],
    },
    Rule {
        folders: &[""],
        except: &[],
        forbids: &["print!", "println!", "dbg!"],
    },
];

impl Rule {
    fn holds_for(&self, path: &str) -> bool {
        let is_below = |folder: &&str| path.starts_with(*folder);
        self.folders.iter().any(is_below) && !self.except.iter().any(is_below)
    }
}

/// Where the file at `path`, below `src`, breaks a rule.
fn violations(path: &str, text: &str) -> Vec<String> {
    let is_test = path.split('/').any(|part| {
        let name = part.strip_suffix(".rs").unwrap_or(part);
        name == "tests" || name == "testing"
    });
    if is_test {
        return Vec::new();
    }
    let rules: Vec<&Rule> = RULES.iter().filter(|rule| rule.holds_for(path)).collect();
    let mut found = Vec::new();
    for (number, line) in code_lines(text) {
        // The module of that name, by its path.
        let line = line.replace("device::wgpu", "");
        for forbidden in rules.iter().flat_map(|rule| rule.forbids) {
            if line.contains(forbidden) {
                found.push(format!("src/{path}:{number}: `{forbidden}`"));
            }
        }
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
        seen.extend(path.split_once('/').map(|(folder, _)| folder.to_owned()));
    }
    assert!(found.is_empty(), "{found:#?}");
    // A rule for a folder that was renamed would hold for nothing.
    for folder in RULES
        .iter()
        .flat_map(|rule| rule.folders)
        .filter(|f| !f.is_empty())
    {
        assert!(seen.contains(*folder), "no folder src/{folder}");
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
            "kernels/mod.rs",
            "use crate::device::Device;",
            "crate::device",
        ),
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
