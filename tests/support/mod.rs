//! What several test files need. Whatever is absent makes a visible line that begins with `skipped:`.
#![allow(dead_code, reason = "each test file uses a part of it")]

#[path = "../../examples/support/model.rs"]
pub mod model;

use std::io::Write;
use std::path::{Path, PathBuf};
use trueshot::{Device, DeviceKind, Session, gpus};

/// A file or folder of the reference data that lies beside the repository (or where
/// `TRUESHOT_SHARED` says); `None` where it is absent, a failure with `TRUESHOT_REQUIRE_SHARED=1`.
pub fn shared(path: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("TRUESHOT_SHARED").map(PathBuf::from);
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let found = folder.unwrap_or_else(beside).join(path);
    if found.exists() {
        return Some(found);
    }
    assert!(
        !required("TRUESHOT_REQUIRE_SHARED"),
        "shared/{path} is absent"
    );
    skipped(&format!("shared/{path} is absent"));
    None
}

/// A GPU for tests, a software one as well; `None` where there is none, a failure with `REQUIRE_GPU=1`.
pub fn gpu() -> Option<Device> {
    if !gpus().is_empty() {
        return Some(Device::Gpu(trueshot::GpuChoice::Best));
    }
    assert!(
        !required("REQUIRE_GPU"),
        "there is no Vulkan, Metal or DX12 device"
    );
    skipped("there is no Vulkan, Metal or DX12 device");
    None
}

/// Written past the capture of the test's output, so that it is seen.
pub fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

/// Whether the GPU that tests get is a real one.
pub fn gpu_is_real() -> bool {
    gpus().iter().any(|gpu| gpu.kind != DeviceKind::SoftwareGpu)
}

/// Every device that is here.
pub fn devices() -> Vec<Device> {
    [Device::Reference, Device::Cpu]
        .into_iter()
        .chain(gpu())
        .collect()
}

fn required(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// The little-endian floats of a file.
pub fn read_f32(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

/// `|found - expected| / |expected|` of the vectors with their means taken off: a constant added to
/// all logits changes no probability.
pub fn centred_relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let mean = |values: &[f32]| {
        values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64
    };
    let (mean_found, mean_expected) = (mean(found), mean(expected));
    let (mut error, mut norm) = (0.0, 0.0);
    for (&found, &expected) in found.iter().zip(expected) {
        let expected = f64::from(expected) - mean_expected;
        error += (f64::from(found) - mean_found - expected).powi(2);
        norm += expected.powi(2);
    }
    (error / norm).sqrt()
}

/// The logits of the last of `tokens`, which an empty session runs `size` at a time.
pub fn eval_in_chunks(session: &mut Session, tokens: &[u32], size: usize) -> Vec<f32> {
    session.rewind(0).unwrap();
    let mut logits = Vec::new();
    for chunk in tokens.chunks(size) {
        logits = session.eval(chunk).unwrap().to_vec();
    }
    logits
}
