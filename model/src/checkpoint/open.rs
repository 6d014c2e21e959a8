//! The tensors of a checkpoint, as views of mapped files.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

use super::advice;
use super::container;
use super::dir::{EmbeddedFile, FoundFile, INDEX, ModelDir, RECORD, SINGLE};
use super::foreign;
use super::header::{MAX_TENSORS, TensorInfo};
use super::index::{self, Shards};
use super::names::{is_ignored, list, shown};
use super::problem::{CheckpointError, TensorProperty};
use crate::config::{GenerationConfig, ModelConfig};
use crate::{Error, Result};

/// How a model directory is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Follow links that lead out of the directory; see [`ModelDir::allow_links`].
    pub allow_links: bool,
}

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

/// A file of tensors.
#[derive(Clone)]
pub(super) struct Shard {
    /// Absent when the file is part of the program.
    map: Option<Arc<Mmap>>,
    /// The whole file; views of tensors are slices of it.
    pub(super) bytes: Bytes,
}

/// Without the bytes of the file.
impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("mapped", &self.map.is_some()).field("bytes", &self.bytes.len()).finish()
    }
}

/// Keeps the map alive for the views of [`Bytes`].
struct MapOwner(Arc<Mmap>);

impl AsRef<[u8]> for MapOwner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Checkpoint {
    /// Opens a model directory, a `.safetensors` file (configs are then read from its directory), an index, or a record of burn-store
    /// (`.bpk`) of plain numbers. Of several in a directory the first of `model.safetensors`, the index and `model.bpk` counts.
    ///
    /// A directory that holds neither a config nor weights, but exactly one subfolder that does, stands for that subfolder.
    ///
    /// # Errors
    /// [`Error::Source`] when there are no weights in a supported format, [`Error::Container`] when a file is damaged: every
    /// header is checked completely, nothing else is read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, OpenOptions::default())
    }

    /// As [`Self::open`], with options.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: &Path, options: OpenOptions) -> Result<Self> {
        let open =
            |path: &Path| ModelDir::open(path).map(|dir| if options.allow_links { dir.allow_links() } else { dir });
        // Of an empty path that says what is wrong.
        if path.is_dir() || path.as_os_str().is_empty() {
            let dir = open(path)?;
            return Self::open_dir(only_subfolder(&dir)?.unwrap_or(dir));
        }
        let source = |message: String| Error::Source { path: path.into(), message };
        path.symlink_metadata().map_err(|error| Error::Io { path: path.into(), error })?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if name.ends_with(".safetensors.index.json") {
            return Self::open_index(open(parent)?, name);
        }
        if !name.ends_with(".safetensors") && !name.ends_with(".bpk") {
            return Err(source(unsupported(name)));
        }
        let dir = open(parent)?;
        if name.starts_with("adapter") && advice::has_adapter(&dir) {
            return Err(source(advice::of_adapter(&dir)));
        }
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
        if dir.contains(RECORD) {
            return Self::open_shards(dir, Shards::from([(RECORD.to_owned(), Vec::new())]));
        }
        Err(Error::Source { path: dir.path().into(), message: advice::of_directory(&dir)? })
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

        let shard_of: BTreeMap<&str, usize> = shards
            .values()
            .enumerate()
            .flat_map(|(i, promised)| promised.iter().map(move |name| (name.as_str(), i)))
            .collect();
        let mut tensors: BTreeMap<String, TensorInfo> = BTreeMap::new();
        let mut maps = Vec::new();
        let mut overlaid = Vec::new();
        for (shard, (name, file)) in files.into_iter().enumerate() {
            let path: Arc<Path> = dir.path().join(name).into();
            let opened = Shard::open(&path, file)?;
            if let Some(advice) = foreign::recognise(&opened.bytes) {
                return Err(Error::Source { path: path.as_ref().into(), message: advice.into() });
            }
            for (tensor, info) in container::parse(&opened.bytes, &path, shard)? {
                match tensors.entry(tensor) {
                    Entry::Vacant(free) => {
                        free.insert(info);
                    }
                    Entry::Occupied(mut other) => {
                        // The shard that the index names; else the last by name, as in transformers.
                        let named = shard_of.get(other.key().as_str());
                        overlaid.push(other.key().clone());
                        if named != Some(&other.get().shard) {
                            other.insert(info);
                        }
                    }
                }
            }
            if tensors.len() > MAX_TENSORS {
                let message = format!("holds more than {} tensors", MAX_TENSORS);
                return Err(Error::Source { path: dir.path().into(), message });
            }
            maps.push(opened);
        }
        if !overlaid.is_empty() {
            tracing::warn!(
                "{} tensors are in several files: {}. That of the file that the index names is used, else that of the last file by name",
                overlaid.len(),
                list(&overlaid)
            );
        }
        if let Some(lora) = tensors.keys().find(|name| advice::is_adapter_tensor(name)) {
            let message = format!("{} (it holds {})", advice::of_adapter(&dir), shown(lora));
            return Err(Error::Source { path: dir.path().into(), message });
        }
        // A tensor that is in another shard than the index says is found all the same. One that is in none may be a part that is
        // not run; where the model needs it, the plan names it as missing.
        let absent = shard_of.keys().filter(|name| !tensors.contains_key(**name) && !is_ignored(name));
        let absent: Vec<&&str> = absent.collect();
        if !absent.is_empty() {
            let count = absent.len();
            tracing::warn!("the index lists {count} tensors that are in none of its files: {}", list(&absent));
        }
        Ok(Self::new(dir, maps, tensors))
    }

    /// Tensors whose places in `shards` have been checked.
    pub(super) fn new(dir: ModelDir, shards: Vec<Shard>, tensors: BTreeMap<String, TensorInfo>) -> Self {
        Self { inner: Arc::new(Inner { dir, shards, tensors }) }
    }

    /// The same checkpoint without some of its tensors.
    pub(crate) fn without(&self, left_out: &BTreeSet<String>) -> Self {
        let Inner { dir, shards, tensors } = &*self.inner;
        let kept = tensors.iter().filter(|(name, _)| !left_out.contains(*name));
        Self::new(dir.clone(), shards.clone(), kept.map(|(name, info)| (name.clone(), info.clone())).collect())
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

    /// Whether the directory holds an adapter beside the model (LoRA), which is not applied.
    pub fn has_adapter(&self) -> bool {
        advice::has_adapter(&self.inner.dir)
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
    /// [`Error::Tensor`] when there is no such tensor.
    pub fn data(&self, name: &str) -> Result<Bytes> {
        let found = self.info(name).and_then(|info| {
            let shard = self.inner.shards.get(info.shard)?;
            let end = info.offset.checked_add(info.bytes)?;
            (end <= shard.bytes.len()).then(|| shard.bytes.slice(info.offset..end))
        });
        let absent = || format!("is in no file of {}", self.inner.dir.path().display());
        found.ok_or_else(|| CheckpointError::of_tensor(name, absent()).found(TensorProperty::Absent).into())
    }

    /// An error about a tensor of this name.
    pub(super) fn tensor_error(&self, name: &str, message: impl Into<String>) -> CheckpointError {
        CheckpointError::of_tensor(name, message).in_file(self.file(name))
    }

    /// An error about a tensor that is one thing instead of another.
    pub(super) fn mismatch(&self, name: &str, expected: TensorProperty, found: TensorProperty) -> CheckpointError {
        CheckpointError::mismatch(name, expected, found).in_file(self.file(name))
    }

    /// The file that a tensor is in.
    pub fn file(&self, name: &str) -> Option<&Path> {
        self.info(name).map(|info| info.file.as_ref())
    }

    /// Advises the system that the pages of a tensor are not needed for now, so that a copied tensor does not occupy memory
    /// twice. Existing views stay valid: their pages are read again when touched. Does nothing where unsupported.
    pub fn release(&self, name: &str) {
        self.release_part(name, 0, usize::MAX);
    }

    /// As [`Self::release`], of the bytes of a tensor from `start` on.
    pub(crate) fn release_part(&self, name: &str, start: usize, length: usize) {
        let Some(info) = self.info(name) else { return };
        let map = self.inner.shards.get(info.shard).and_then(|shard| shard.map.as_ref());
        let (start, rest) = (info.offset.saturating_add(start), info.bytes.saturating_sub(start));
        if let Some(map) = map {
            release_range(map, start, length.min(rest));
        }
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> usize {
        self.inner.tensors.values().map(|info| info.bytes).sum()
    }
}

impl Shard {
    pub(super) fn open(path: &Path, file: FoundFile) -> Result<Self> {
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
    let io = |error| Error::Io { path: path.into(), error };
    let file = File::open(real).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    if bytes < 8 {
        let message = "is shorter than 8 bytes: not a safetensors file, or cut off";
        return Err(Error::container(CheckpointError::of_file(path, message)));
    }
    // SAFETY: the map is read-only and private to this process's view; the one thing it cannot defend against is another
    // process that changes or truncates the file meanwhile, which every program that maps weights has to assume away.
    let map = unsafe { Mmap::map(&file) }.map_err(|error| match error.kind() {
        ErrorKind::OutOfMemory => {
            let message = format!(
                "its {bytes} bytes cannot be mapped, as the system refuses so much address space: a limit (ulimit -v) can be the reason"
            );
            Error::Source { path: path.into(), message }
        }
        _ => io(error),
    })?;
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
pub(super) fn only_subfolder(dir: &ModelDir) -> Result<Option<ModelDir>> {
    let is_model = |dir: &ModelDir| [ModelConfig::FILE, SINGLE, INDEX, RECORD].iter().any(|name| dir.contains(name));
    if is_model(dir) || advice::has_adapter(dir) {
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
    let advice = advice::of_extension(name).map_or_else(String::new, |advice| format!(" ({advice})"));
    format!(
        "is not supported{advice}. Supported: a model directory, a .safetensors file, a .safetensors.index.json, a .bpk record of burn-store"
    )
}
