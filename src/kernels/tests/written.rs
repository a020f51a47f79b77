//! Every variant of every kernel as a file, for the compilers that `.ci/run` gives them to.

use super::translate::{has_subgroups, matrix_of, parse, to_msl, with_constants};
use super::variants;
use crate::kernels::{ALL, Kernel, Uses, Variant};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The folder that the files go to; without it they go to one that is removed again.
const FOLDER: &str = "TRUESHOT_KERNELS_TO";

/// What measures a GPU's memory is a kernel too.
const STREAM: Kernel = Kernel {
    name: "stream",
    wgsl: include_str!("../../device/wgpu/measure/stream.wgsl"),
    bindings: &[],
    params_bytes: 16,
    uses: Uses::NOTHING,
};

/// As other compilers take it. WGSL has no cooperative matrices, which naga adds to it.
fn to_wgsl(kernel: &Kernel, variant: &Variant, source: &str) -> Option<String> {
    // naga has subgroups without the line that others need.
    let enable = if has_subgroups(kernel, variant) {
        "enable subgroups;\n"
    } else {
        ""
    };
    let is_standard = matrix_of(kernel, variant).is_none();
    is_standard.then(|| format!("{enable}// {variant:?}\n{source}"))
}

/// For Metal, whose matrices are not loaded from arrays of vectors.
fn to_metal(kernel: &Kernel, variant: &Variant, source: &str) -> Option<String> {
    if matrix_of(kernel, variant).is_some_and(|(matrix, _)| matrix.from_vectors) {
        return None;
    }
    let parsed = parse(kernel, variant, source);
    let translated = parsed.and_then(|(module, info)| to_msl(&module, &info));
    let text = translated.unwrap_or_else(|error| panic!("`{}`: {error}", kernel.name));
    Some(format!("// {variant:?}\n{text}"))
}

/// Writes the files; how many there are of each kind.
fn write_all(folder: &Path) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    let mut seen = HashSet::new();
    for kernel in ALL.into_iter().chain([&STREAM]) {
        let mut all = variants(kernel, true);
        let constant: Vec<_> = all
            .iter()
            .filter_map(|v| with_constants(kernel, v))
            .collect();
        all.extend(constant);
        for (index, variant) in all.iter().enumerate() {
            let source = kernel.source(variant);
            if !seen.insert(source.clone()) {
                continue;
            }
            let wgsl = to_wgsl(kernel, variant, &source);
            let metal = to_metal(kernel, variant, &source);
            for (ending, text) in [("wgsl", wgsl), ("metal", metal)] {
                if let Some(text) = text {
                    let name = format!("{}_{index}.{ending}", kernel.name);
                    fs::write(folder.join(name), text).unwrap();
                    *counts.entry(ending).or_default() += 1;
                }
            }
        }
    }
    counts
}

#[test]
fn every_variant_of_every_kernel_is_written_for_other_compilers() {
    let asked = std::env::var_os(FOLDER).map(PathBuf::from);
    let own = std::env::temp_dir().join(format!("trueshot-kernels-{}", std::process::id()));
    let folder = asked.as_ref().unwrap_or(&own);
    fs::create_dir_all(folder).unwrap();
    let counts = write_all(folder);
    let lacks = |ending: &str| {
        let first = |kernel: &&Kernel| folder.join(format!("{}_0.{ending}", kernel.name));
        let kernels = ALL.into_iter().filter(|kernel| !first(kernel).exists());
        kernels.map(|kernel| kernel.name).collect::<Vec<_>>()
    };
    let missing = [lacks("wgsl"), lacks("metal")];
    let n_files = fs::read_dir(folder).unwrap().count();
    if asked.is_none() {
        fs::remove_dir_all(&own).unwrap();
    }
    // The first variants of these are for NVIDIA.
    let coop = vec!["attention_coop", "expert_matmul_coop", "matmul_coop"];
    assert_eq!(missing, [coop.clone(), coop]);
    assert_eq!(n_files, counts.values().sum::<usize>(), "{counts:?}");
    assert!(counts["metal"] > counts["wgsl"], "{counts:?}");
}
