//! Running the program.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::project::{fixture, project};

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Panics with everything that was written unless the exit code is this one.
    #[track_caller]
    pub fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// One `error: ` line that contains these parts, and nothing on stdout.
    #[track_caller]
    pub fn fails_with(self, parts: &[&str]) {
        let ended = self.with_code(1);
        let errors: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!((errors.len(), ended.stdout.as_str()), (1, ""), "{}", ended.stderr);
        for part in parts {
            assert!(errors[0].contains(part), "{part:?} is not in: {}", errors[0]);
        }
    }
}

/// `ember` with these arguments and no input.
pub fn ember<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ended {
    ember_reading("", args)
}

/// `ember` with this text on stdin.
pub fn ember_reading<S: AsRef<OsStr>>(stdin: &str, args: impl IntoIterator<Item = S>) -> Ended {
    let mut child = command(args).stdin(Stdio::piped()).spawn().expect("the program starts");
    // A program that does not read its input closes the pipe.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("the program ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// `ember` with its outputs piped, in the root of the project.
pub fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ember"));
    // Help has the width of the terminal, and this where there is none.
    command.env("COLUMNS", "100");
    command.args(args).current_dir(project("")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A checkpoint of the fixtures.
pub fn model(name: &str) -> PathBuf {
    fixture(name)
}

/// Changes the config of a copy.
pub fn edit_config(model: &Path, edit: impl Fn(&mut Value)) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a config")).expect("JSON");
    edit(&mut config);
    std::fs::write(&path, config.to_string()).expect("written");
}

/// An empty directory that is removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("cli-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A copy of a fixture's checkpoint, to be damaged.
    pub fn copy_of(&self, fixture: &str) -> PathBuf {
        let to = self.path(fixture);
        std::fs::create_dir_all(&to).expect("a directory");
        for entry in std::fs::read_dir(model(fixture)).expect("the fixture") {
            let from = entry.expect("an entry").path();
            std::fs::copy(&from, to.join(from.file_name().expect("a name"))).expect("a copy");
        }
        to
    }

    /// Names of the files in it, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).expect("the directory");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
