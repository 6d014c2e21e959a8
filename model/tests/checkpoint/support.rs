//! Checkpoints made and broken by the tests.
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

#[path = "../../../tests/support/tensors.rs"]
mod tensors;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use emberlm_model::checkpoint::{Checkpoint, Weights};
use emberlm_model::{Error, Result};
use serde_json::Value;
pub use tensors::{Tensor, Tensors, change_state, container, resize, safetensors, set_f32};

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

pub fn f32s(shape: &[usize], numbers: &[f32]) -> Tensor {
    Tensor("F32".into(), shape.into(), numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// A tensor of zeros.
pub fn zeros(shape: &[usize]) -> Tensor {
    f32s(shape, &vec![0.0; shape.iter().product()])
}

pub fn write_tensors(path: &Path, tensors: &Tensors) {
    fs::write(path, safetensors(tensors)).expect("write");
}

pub fn read_tensors(path: &Path) -> Tensors {
    let checkpoint = Checkpoint::open(path).expect("open");
    let read = |name: &str| {
        let info = checkpoint.info(name).expect("info");
        let dtype = format!("{:?}", info.dtype).to_uppercase();
        (name.to_owned(), Tensor(dtype, info.shape.clone(), checkpoint.data(name).expect("data").to_vec()))
    };
    checkpoint.names().map(read).collect()
}

/// A copy of a fixture's config and weights in a temporary directory, to be broken.
pub struct Copy {
    pub dir: tempfile::TempDir,
}

impl Copy {
    pub fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        for entry in fs::read_dir(fixture(name)).expect("fixture") {
            let path = entry.expect("entry").path();
            let file = path.file_name().and_then(|f| f.to_str()).unwrap_or_default();
            if file.starts_with("model") || file.ends_with("config.json") || file.starts_with("nano") {
                fs::copy(&path, dir.path().join(file)).expect("copy");
            }
        }
        Self { dir }
    }

    /// A copy of all files of a fixture that belong to the model.
    pub fn whole(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        for entry in fs::read_dir(fixture(name)).expect("fixture") {
            let path = entry.expect("entry").path();
            let file = path.file_name().and_then(|f| f.to_str()).unwrap_or_default();
            if !file.contains("golden") {
                fs::copy(&path, dir.path().join(file)).expect("copy");
            }
        }
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn weights(&self) -> PathBuf {
        self.path().join("model.safetensors")
    }

    pub fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path().join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("config")).expect("json");
        change(&mut json);
        fs::write(path, json.to_string()).expect("write");
    }

    pub fn change_tensors(&self, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = read_tensors(&self.weights());
        change(&mut tensors);
        write_tensors(&self.weights(), &tensors);
    }

    /// Opens, resolves and reads everything, as loading a model does.
    pub fn load(&self) -> Result<Weights> {
        load(self.path())
    }
}

/// Opens, resolves and reads everything, as loading a model does.
pub fn load(path: &Path) -> Result<Weights> {
    let checkpoint = Checkpoint::open(path)?;
    let config = checkpoint.config()?;
    checkpoint.generation_config()?;
    let weights = Weights::resolve(&checkpoint, &config)?;
    for name in weights.canonical_names() {
        match weights.entry(name).map(|entry| entry.shape.len()) {
            Some(2) => drop(weights.matrix(name)?),
            _ => drop(weights.vector(name)?),
        }
    }
    Ok(weights)
}

/// Time that this thread has computed, so that a busy machine does not fail a test; elsewhere, time that has passed.
fn busy() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let schedule = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = schedule.and_then(|text| text.split(' ').next()?.parse().ok());
    nanoseconds.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// Runs a case that must fail: in time, with a printable message of bounded length that contains `word`.
pub fn fails<T>(case: &str, word: &str, run: impl FnOnce() -> Result<T>) -> Error {
    let start = busy();
    let Err(error) = run() else { panic!("{case}: accepted") };
    let took = busy().saturating_sub(start);
    assert!(took < Duration::from_secs(2), "{case}: took {took:?}");
    let message = error.to_string();
    assert!(message.contains(word), "{case}: {message}");
    assert!(message.len() < 6000, "{case}: {} bytes of message", message.len());
    assert!(!message.chars().any(char::is_control), "{case}: {message:?}");
    error
}
