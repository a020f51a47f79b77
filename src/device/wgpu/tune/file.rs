//! What was found, kept between runs.

use super::Tuning;
use crate::cache_file::CacheFile;
use crate::device::DeviceInfo;
use std::path::Path;

/// Changes with what is tried, and with what files say.
const VERSION: u32 = 1;

/// The file of an adapter.
#[derive(Debug)]
pub(super) struct TuningFile(CacheFile);

impl TuningFile {
    /// That of an adapter in a folder: what another driver, or another version of the crate, has left there is as good
    /// as absent.
    pub(super) fn new(folder: &Path, info: &DeviceInfo) -> TuningFile {
        let DeviceInfo {
            name,
            backend,
            driver,
            ..
        } = info;
        let plain = |c: char| match c.is_ascii_alphanumeric() {
            true => c.to_ascii_lowercase(),
            false => '_',
        };
        let file: String = name.chars().map(plain).collect();
        let version = env!("CARGO_PKG_VERSION");
        let key = format!("{version} {VERSION} {backend} {name} {driver}");
        TuningFile(CacheFile::new(
            folder,
            &format!("tuning_{backend}_{file}.bin"),
            key,
        ))
    }

    /// What it says; nothing where it is absent, damaged or of another key.
    pub(super) fn read(&self) -> Tuning {
        let contents = self.0.read();
        let parse = |contents: Vec<u8>| serde_json::from_slice(&contents).ok();
        contents.and_then(parse).unwrap_or_default()
    }

    /// Replaces what it says.
    pub(super) fn write(&self, tuning: &Tuning) {
        if let Ok(contents) = serde_json::to_vec(tuning) {
            self.0.write(&contents);
        }
    }
}
