//! Files of what can be worked out again: they may be lost, damaged or of another version, and nothing
//! but time is lost.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, fs, io, process};

/// The user's folder for such files; `None` where the platform does not say where that is.
pub(crate) fn user_folder() -> Option<PathBuf> {
    let folder = |variable: &str| env::var_os(variable).filter(|path| !path.is_empty());
    let below = |folder: OsString, path: &str| Path::new(&folder).join(path);
    if cfg!(windows) {
        Some(below(folder("LOCALAPPDATA")?, r"trueshot\cache"))
    } else if cfg!(target_os = "macos") {
        Some(below(folder("HOME")?, "Library/Caches/trueshot"))
    } else {
        // XDG Base Directory Specification 0.8.
        folder("XDG_CACHE_HOME")
            .map(|caches| below(caches, "trueshot"))
            .or_else(|| Some(below(folder("HOME")?, ".cache/trueshot")))
    }
}

/// One file, whose contents hold for one key.
#[derive(Debug)]
pub(crate) struct CacheFile {
    path: PathBuf,
    key: String,
}

/// Bytes of the checksum in front of the contents.
const CHECKSUM_BYTES: usize = 8;

impl CacheFile {
    /// The file `name` of a folder, neither of which need be there.
    pub(crate) fn new(folder: &Path, name: &str, key: String) -> CacheFile {
        let path = folder.join(name);
        CacheFile { path, key }
    }

    /// The contents; `None` where they are absent, damaged or of another key.
    pub(crate) fn read(&self) -> Option<Vec<u8>> {
        let mut bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                log::debug!("`{}` is not used: {error}", self.path.display());
                return None;
            }
        };
        let contents = bytes.split_off(CHECKSUM_BYTES.min(bytes.len()));
        if bytes != self.checksum(&contents) {
            log::debug!("`{}` is damaged or of another version", self.path.display());
            return None;
        }
        Some(contents)
    }

    /// Replaces the contents as a whole: whoever reads sees the old or the new ones.
    pub(crate) fn write(&self, contents: &[u8]) {
        if let Err(error) = self.try_write(contents) {
            log::debug!("`{}` is not written: {error}", self.path.display());
        }
    }

    fn try_write(&self, contents: &[u8]) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        // Threads of this process may write the same file, as other processes may.
        static N_WRITTEN: AtomicU64 = AtomicU64::new(0);
        let number = N_WRITTEN.fetch_add(1, Ordering::Relaxed);
        let extension = format!("{}.{number}.part", process::id());
        let unfinished = self.path.with_extension(extension);
        let bytes = [&self.checksum(contents), contents].concat();
        fs::write(&unfinished, bytes)
            .and_then(|()| fs::rename(&unfinished, &self.path))
            .inspect_err(|_| drop(fs::remove_file(&unfinished)))
    }

    /// Of the contents, for this key. Another version of Rust may compute another one.
    fn checksum(&self, contents: &[u8]) -> [u8; CHECKSUM_BYTES] {
        let mut hasher = DefaultHasher::new();
        self.key.hash(&mut hasher);
        contents.hash(&mut hasher);
        hasher.finish().to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is not there yet, and goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            Folder(env::temp_dir().join(format!("trueshot-{name}-{}", process::id())))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn contents_come_back_for_their_key_alone() {
        let folder = Folder::new("key");
        let file = |key: &str| CacheFile::new(&folder.0, "test.bin", key.to_owned());
        assert_eq!(file("a").read(), None);
        for contents in [b"".as_slice(), b"some", b"more than some"] {
            file("a").write(contents);
            assert_eq!(file("a").read().as_deref(), Some(contents));
            assert_eq!(file("b").read(), None);
        }
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }

    #[test]
    fn damaged_files_are_as_good_as_absent() {
        let folder = Folder::new("damage");
        let file = CacheFile::new(&folder.0, "test.bin", "key".to_owned());
        file.write(b"contents");
        let good = fs::read(&file.path).unwrap();
        for cut in 0..good.len() {
            fs::write(&file.path, &good[..cut]).unwrap();
            assert_eq!(file.read(), None, "{cut} bytes");
            let mut bad = good.clone();
            bad[cut] ^= 1;
            fs::write(&file.path, &bad).unwrap();
            assert_eq!(file.read(), None, "byte {cut}");
        }
    }

    #[test]
    fn contents_are_whole_while_two_threads_write() {
        let folder = Folder::new("threads");
        let file = CacheFile::new(&folder.0, "test.bin", "key".to_owned());
        let contents = [vec![1; 1 << 18], vec![2; 1 << 17]];
        std::thread::scope(|scope| {
            for mine in &contents {
                scope.spawn(|| {
                    for round in 0..100 {
                        file.write(mine);
                        let found = file.read();
                        let is_whole = found.is_some_and(|found| contents.contains(&found));
                        assert!(is_whole, "round {round}");
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_is_no_error() {
        let folder = Folder::new("no-folder");
        fs::write(&folder.0, b"a file").unwrap();
        let file = CacheFile::new(&folder.0, "test.bin", String::new());
        file.write(b"contents");
        assert_eq!(file.read(), None);
        fs::remove_file(&folder.0).unwrap();
    }
}
