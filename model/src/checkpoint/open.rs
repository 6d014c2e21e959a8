//! The tensors of a checkpoint, as views of mapped files.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

use super::dir::{EmbeddedFile, FoundFile, ModelDir};
use super::foreign;
use super::header::{self, TensorInfo};
use super::index::{self, Shards};
use super::names::{list, shown};
use crate::config::{GenerationConfig, ModelConfig};
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Weight formats that are recognised in order to say that they are not read.
const UNSUPPORTED: [&str; 9] = ["bin", "pt", "pth", "gguf", "ggml", "ckpt", "h5", "msgpack", "onnx"];

/// An open checkpoint. Cloning is cheap; the files stay mapped while a clone or a view of a tensor lives.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: ModelDir,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
}

#[derive(Debug)]
struct Shard {
    /// Absent when the file is part of the program.
    map: Option<Arc<Mmap>>,
    /// The whole file; views of tensors are slices of it.
    bytes: Bytes,
}

/// Keeps the map alive for the views of [`Bytes`].
struct MapOwner(Arc<Mmap>);

impl AsRef<[u8]> for MapOwner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Checkpoint {
    /// Opens a model directory, a `.safetensors` file (configs are then read from its directory) or an index.
    ///
    /// A directory that holds neither a config nor weights, but exactly one subfolder that does, stands for that subfolder.
    ///
    /// # Errors
    /// [`Error::Source`] when there are no weights in a supported format, [`Error::Container`] when a file is damaged: every
    /// header is checked completely, nothing else is read.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let dir = ModelDir::open(path)?;
            return Self::open_dir(only_subfolder(&dir)?.unwrap_or(dir));
        }
        let source = |message: String| Error::Source { path: path.into(), message };
        path.symlink_metadata().map_err(|source| Error::Io { path: path.into(), source })?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if name.ends_with(".safetensors.index.json") {
            let dir = ModelDir::open(parent)?;
            return Self::open_index(dir, name);
        }
        if !name.ends_with(".safetensors") {
            return Err(source(unsupported(name)));
        }
        let dir = ModelDir::open(parent)?;
        Self::open_shards(dir, Shards::from([(name.to_owned(), Vec::new())]))
    }

    /// Opens a model directory that is part of the program; `name` is for messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_embedded(name: &str, files: &'static [EmbeddedFile]) -> Result<Self> {
        Self::open_dir(ModelDir::embedded(name, files))
    }

    /// Opens a subfolder of a model directory.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::Source`] when the name leads out of the directory.
    pub fn open_subfolder(path: &Path, subfolder: &str) -> Result<Self> {
        Self::open_dir(ModelDir::open(path)?.subfolder(subfolder)?)
    }

    fn open_dir(dir: ModelDir) -> Result<Self> {
        if dir.contains(SINGLE) {
            return Self::open_shards(dir, Shards::from([(SINGLE.to_owned(), Vec::new())]));
        }
        if dir.contains(INDEX) {
            return Self::open_index(dir, INDEX);
        }
        let entries = dir.entries()?;
        let has = |ext: &[&str]| -> Vec<&String> {
            let matches =
                |name: &&String| Path::new(name).extension().and_then(|e| e.to_str()).is_some_and(|e| ext.contains(&e));
            entries.iter().filter(matches).collect()
        };
        let mut message = format!("no {SINGLE} or {INDEX} in this directory");
        let (other, foreign) = (has(&["safetensors"]), has(&UNSUPPORTED));
        if !other.is_empty() {
            message = format!("{message}; to load one of {}, give the path of the file", list(&other));
        } else if !foreign.is_empty() {
            message = format!("{message}; {} cannot be read: convert the model to safetensors", list(&foreign));
        }
        Err(Error::Source { path: dir.path().into(), message })
    }

    fn open_index(dir: ModelDir, name: &str) -> Result<Self> {
        let path = dir.path().join(name);
        let bytes = dir.read(name, index::MAX_INDEX_BYTES)?;
        let bytes = bytes.ok_or_else(|| Error::Source { path: path.clone(), message: "does not exist".into() })?;
        let shards = index::parse(&path, &bytes)?;
        Self::open_shards(dir, shards)
    }

    fn open_shards(dir: ModelDir, shards: Shards) -> Result<Self> {
        let mut files = Vec::new();
        let mut missing = Vec::new();
        for name in shards.keys() {
            match dir.file(name)? {
                Some(file) => files.push((name, file)),
                None => missing.push(name),
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "{} of {} files are missing: {}. Download them again",
                missing.len(),
                shards.len(),
                list(&missing)
            );
            return Err(Error::Source { path: dir.path().into(), message });
        }

        let mut tensors: BTreeMap<String, TensorInfo> = BTreeMap::new();
        let mut maps = Vec::new();
        for (shard, (name, file)) in files.into_iter().enumerate() {
            let path: Arc<Path> = dir.path().join(name).into();
            let opened = Shard::open(&path, file)?;
            if let Some(advice) = foreign::recognise(&opened.bytes) {
                return Err(Error::Source { path: path.as_ref().into(), message: advice.into() });
            }
            for (tensor, info) in header::parse(&opened.bytes, &path, shard)? {
                match tensors.entry(tensor) {
                    Entry::Vacant(free) => {
                        free.insert(info);
                    }
                    Entry::Occupied(other) => {
                        let (name, file) = (shown(other.key()), other.get().file.display());
                        let message = format!("tensor {name} is also in {file}");
                        return Err(Error::Container { path: path.as_ref().into(), message });
                    }
                }
            }
            if tensors.len() > header::MAX_TENSORS {
                let message = format!("holds more than {} tensors", header::MAX_TENSORS);
                return Err(Error::Source { path: dir.path().into(), message });
            }
            maps.push(opened);
        }

        // What the index promises must be where it promises.
        for (shard, promised) in shards.values().enumerate() {
            let absent: Vec<&String> =
                promised.iter().filter(|name| tensors.get(*name).is_none_or(|info| info.shard != shard)).collect();
            if !absent.is_empty() {
                let name = shards.keys().nth(shard).map_or("", String::as_str);
                let message = format!("the index promises tensors that are not in it: {}", list(&absent));
                return Err(Error::Container { path: dir.path().join(name), message });
            }
        }
        Ok(Self { inner: Arc::new(Inner { dir, shards: maps, tensors }) })
    }

    /// The directory of the model's configs and tokenizer.
    pub fn dir(&self) -> &ModelDir {
        &self.inner.dir
    }

    /// Reads the model's config.
    ///
    /// # Errors
    /// As [`ModelConfig::from_dir`].
    pub fn config(&self) -> Result<ModelConfig> {
        ModelConfig::from_dir(&self.inner.dir)
    }

    /// Reads the author's generation defaults.
    ///
    /// # Errors
    /// As [`GenerationConfig::from_dir`].
    pub fn generation_config(&self) -> Result<GenerationConfig> {
        GenerationConfig::from_dir(&self.inner.dir)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.inner.tensors.keys().map(String::as_str)
    }

    /// Type, shape and place of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.inner.tensors.get(name)
    }

    /// The data of a tensor: a view of the mapped file, at no particular alignment. Pages are read when they are touched.
    ///
    /// # Errors
    /// [`Error::Tensors`] when there is no such tensor.
    pub fn data(&self, name: &str) -> Result<Bytes> {
        let found = self.info(name).and_then(|info| {
            let shard = self.inner.shards.get(info.shard)?;
            let end = info.offset.checked_add(info.bytes)?;
            (end <= shard.bytes.len()).then(|| shard.bytes.slice(info.offset..end))
        });
        found.ok_or_else(|| Error::Tensors(format!("no tensor {} in {}", shown(name), self.inner.dir.path().display())))
    }

    /// Tells the system that the pages of a tensor are not needed for now, so that a copied tensor does not occupy memory
    /// twice. Existing views stay valid: their pages are read again when touched. Does nothing where unsupported.
    pub fn release(&self, name: &str) {
        let Some(info) = self.info(name) else { return };
        let Some(shard) = self.inner.shards.get(info.shard) else {
            return;
        };
        if let Some(map) = &shard.map {
            release_range(map, info.offset, info.bytes);
        }
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> usize {
        self.inner.tensors.values().map(|info| info.bytes).sum()
    }
}

impl Shard {
    fn open(path: &Path, file: FoundFile) -> Result<Self> {
        Ok(match file {
            FoundFile::OnDisk(real) => {
                let map = Arc::new(map_file(path, &real)?);
                Self { bytes: Bytes::from_owner(MapOwner(map.clone())), map: Some(map) }
            }
            FoundFile::Embedded(bytes) => Self { bytes: Bytes::from_static(bytes), map: None },
        })
    }
}

fn map_file(path: &Path, real: &Path) -> Result<Mmap> {
    let io = |source| Error::Io { path: path.into(), source };
    let file = File::open(real).map_err(io)?;
    if file.metadata().map_err(io)?.len() < 8 {
        return Err(Error::Container {
            path: path.into(),
            message: "is shorter than 8 bytes: not a safetensors file, or cut off".into(),
        });
    }
    // SAFETY: the map is read-only and private to this process's view; the one thing it cannot defend against is another
    // process that changes or truncates the file meanwhile, which every program that maps weights has to assume away.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    // Weights that are read from the file for every token are read up to a third faster through large pages. The file system
    // decides; what the system already holds of the file stays as it is. An error means small pages.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

#[cfg(unix)]
fn release_range(map: &Mmap, offset: usize, length: usize) {
    if length == 0 {
        return;
    }
    // SAFETY: the map is read-only and backed by a file, so dropped pages are read again with the same contents; the
    // range lies inside the map because the header was checked. An error means that the pages stay, which is harmless.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, length) };
}

#[cfg(not(unix))]
fn release_range(_: &Mmap, _: usize, _: usize) {}

/// The subfolder that a directory without config and weights stands for.
fn only_subfolder(dir: &ModelDir) -> Result<Option<ModelDir>> {
    let is_model = |dir: &ModelDir| [ModelConfig::FILE, SINGLE, INDEX].iter().any(|name| dir.contains(name));
    if is_model(dir) {
        return Ok(None);
    }
    let mut models = Vec::new();
    for name in dir.entries()? {
        if dir.path().join(&name).is_dir()
            && let Ok(sub) = dir.subfolder(&name)
            && sub.contains(ModelConfig::FILE)
        {
            models.push((name, sub));
        }
    }
    if models.len() > 1 {
        let names: Vec<String> = models.into_iter().map(|(name, _)| name).collect();
        let message = format!("no config.json here, but in the subfolders {}: name one of them", list(&names));
        return Err(Error::Source { path: dir.path().into(), message });
    }
    Ok(models.pop().map(|(_, sub)| sub))
}

fn unsupported(name: &str) -> String {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    let advice = if UNSUPPORTED.contains(&extension) { ": convert the model to safetensors" } else { "" };
    format!("is not supported{advice}. Supported: a model directory, a .safetensors file, a .safetensors.index.json")
}
