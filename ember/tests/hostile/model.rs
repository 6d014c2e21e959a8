//! A copy of a fixture, to be broken.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::project;
use super::tensors::{Tensor, Tensors, safetensors};

pub fn read_safetensors(file: &[u8]) -> Tensors {
    let (length, rest) = file.split_first_chunk::<8>().expect("a length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).expect("a header");
    let size = |value: &Value| value.as_u64().expect("a size") as usize;
    let sizes = |value: &Value| value.as_array().expect("a list").iter().map(size).collect::<Vec<_>>();
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    tensors
        .map(|(name, info)| {
            let range = sizes(&info["data_offsets"]);
            let dtype = info["dtype"].as_str().expect("a type").to_owned();
            (name, Tensor(dtype, sizes(&info["shape"]), data[range[0]..range[1]].to_vec()))
        })
        .collect()
}

/// Directories of one case, removed at the end: `model` beside `outside`, which nobody may read.
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// A copy of a fixture's checkpoint; `outside` holds another.
    pub fn with(fixture: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("hostile-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let place = Self { root: Path::new(env!("CARGO_TARGET_TMPDIR")).join(name) };
        for directory in ["model", "outside", "logs"] {
            fs::create_dir_all(place.root.join(directory)).expect("a directory");
        }
        copy(fixture, &place.model());
        copy("leanllama", &place.outside());
        place
    }

    pub fn model(&self) -> PathBuf {
        self.root.join("model")
    }

    pub fn outside(&self) -> PathBuf {
        self.root.join("outside")
    }

    /// The directory of both.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.model().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("read")
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("written");
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("removed");
    }

    /// A file of this many zeros that takes no room.
    pub fn write_sparse(&self, name: &str, bytes: u64) {
        fs::File::create(self.path(name)).and_then(|file| file.set_len(bytes)).expect("a sparse file");
    }

    /// Changes a JSON file, which is made when there is none.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json = fs::read(self.path(name)).map_or(json!({}), |b| serde_json::from_slice(&b).expect("JSON"));
        change(&mut json);
        self.write(name, json.to_string());
    }

    /// Replaces what a pointer leads to; the last part may be a new key.
    pub fn set(&self, file: &str, pointer: &str, value: Value) {
        self.edit(file, |json| {
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            let parent = json.pointer_mut(parent).expect("the parent");
            match parent {
                Value::Array(list) => list[key.parse::<usize>().expect("an index")] = value,
                other => other[key] = value,
            }
        });
    }

    /// Changes the tensors of `model.safetensors`.
    pub fn tensors(&self, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = read_safetensors(&self.read("model.safetensors"));
        change(&mut tensors);
        self.write("model.safetensors", safetensors(&tensors));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn copy(fixture: &str, to: &Path) {
    for entry in fs::read_dir(project::fixture(fixture)).expect("the fixture") {
        let file = entry.expect("an entry").path();
        let name = file.file_name().expect("a name");
        if !name.to_string_lossy().contains("golden") {
            fs::copy(&file, to.join(name)).expect("a copy");
        }
    }
}
