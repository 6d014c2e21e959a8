//! A checkpoint as far as it can be read: every flaw of its files, and the tensors that are whole all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::container;
use super::dir::{INDEX, ModelDir, RECORD, SINGLE};
use super::header::{Flaw, TensorInfo};
use super::index::{self, Shards};
use super::open::{Checkpoint, OpenOptions, Shard, only_subfolder};
use super::problem::CheckpointError;
use super::{advice, foreign};
use crate::config::json;
use crate::{Error, Result};

/// What a model directory holds of weights.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The tensors that are whole.
    pub checkpoint: Checkpoint,
    /// The files of the index, or the one there is.
    pub files: Vec<SurveyedFile>,
    /// The index, where one is in use and can be read.
    pub index: Option<SurveyedIndex>,
    /// What is wrong with the directory or the index as a whole.
    pub failures: Vec<Error>,
}

/// A file of tensors.
#[derive(Debug)]
pub(crate) struct SurveyedFile {
    /// Relative to the directory.
    pub name: String,
    /// Why it cannot be opened.
    pub failure: Option<Error>,
    /// What is wrong with its contents.
    pub flaws: Vec<Flaw>,
    /// Names of the tensors that are whole.
    pub tensors: Vec<String>,
}

/// `model.safetensors.index.json`.
#[derive(Debug)]
pub(crate) struct SurveyedIndex {
    /// The file that each tensor is said to be in.
    pub weight_map: BTreeMap<String, String>,
    /// `metadata.total_size`, in bytes.
    pub total_size: Option<u64>,
}

/// The directory of a model, or of the only subfolder that holds one.
///
/// # Errors
/// As [`ModelDir::open`]; when several subfolders hold a model.
pub(crate) fn directory(path: &Path, options: OpenOptions) -> Result<ModelDir> {
    let dir = ModelDir::open(path)?;
    let dir = if options.allow_links { dir.allow_links() } else { dir };
    Ok(only_subfolder(&dir)?.unwrap_or(dir))
}

/// Looks at all files of weights of a directory.
pub(crate) fn survey(dir: &ModelDir) -> Survey {
    let mut failures = Vec::new();
    let (mut shards, mut index) = (Shards::new(), None);
    if dir.contains(SINGLE) {
        shards.insert(SINGLE.to_owned(), Vec::new());
    } else if dir.contains(INDEX) {
        match read_index(dir) {
            Ok((found, total_size)) => {
                let named =
                    found.iter().flat_map(|(file, names)| names.iter().map(|name| (name.clone(), file.clone())));
                index = Some(SurveyedIndex { weight_map: named.collect(), total_size });
                shards = found;
            }
            Err(error) => {
                failures.push(error);
                shards = files_by_name(dir);
            }
        }
    } else if dir.contains(RECORD) {
        shards.insert(RECORD.to_owned(), Vec::new());
    } else {
        let error = advice::of_directory(dir).map(|message| Error::Source { path: dir.path().into(), message });
        failures.push(error.unwrap_or_else(|error| error));
    }
    let (mut files, mut opened, mut tensors) = (Vec::new(), Vec::new(), BTreeMap::<String, TensorInfo>::new());
    for name in shards.into_keys() {
        let path: Arc<Path> = dir.path().join(&name).into();
        let mut file = SurveyedFile { name, failure: None, flaws: Vec::new(), tensors: Vec::new() };
        match open(dir, &file.name, &path) {
            Err(error) => file.failure = Some(error),
            Ok(shard) => {
                let (found, flaws) = container::survey(&shard.bytes, &path, opened.len());
                file.flaws = flaws;
                file.tensors = found.keys().cloned().collect();
                let named = |tensor: &str| index.as_ref().and_then(|index| index.weight_map.get(tensor));
                // Of a tensor in two files, that of the file that the index names, as when a model is loaded.
                tensors.extend(found.into_iter().filter(|(name, _)| named(name).is_none_or(|it| *it == file.name)));
                opened.push(shard);
            }
        }
        files.push(file);
    }
    // A tensor in another file than the index says is found all the same, unless the named file has it too.
    for (shard, file) in files.iter().filter(|file| file.failure.is_none()).enumerate() {
        let Some(bytes) = opened.get(shard).map(|shard| &shard.bytes) else { continue };
        let absent: BTreeSet<&String> = file.tensors.iter().filter(|name| !tensors.contains_key(*name)).collect();
        if !absent.is_empty() {
            let (found, _) = container::survey(bytes, &dir.path().join(&file.name).into(), shard);
            let absent: BTreeSet<String> = absent.into_iter().cloned().collect();
            tensors.extend(found.into_iter().filter(|(name, _)| absent.contains(name)));
        }
    }
    Survey { checkpoint: Checkpoint::new(dir.clone(), opened, tensors), files, index, failures }
}

fn read_index(dir: &ModelDir) -> Result<(Shards, Option<u64>)> {
    let path = dir.path().join(INDEX);
    let bytes = dir.read(INDEX, index::MAX_INDEX_BYTES)?.unwrap_or_default();
    let shards = index::parse(&path, &bytes)?;
    let whole = json::parse(&bytes).map_err(|message| Error::container(CheckpointError::of_file(&path, message)))?;
    let total = whole.get("metadata").and_then(|metadata| metadata.get("total_size"));
    // Some writers state it as a float.
    let total = total.and_then(|total| total.as_u64().or_else(|| total.as_f64().map(|bytes| bytes as u64)));
    Ok((shards, total))
}

/// The files of a directory whose index cannot be read.
fn files_by_name(dir: &ModelDir) -> Shards {
    let names = dir.entries().unwrap_or_default();
    names.into_iter().filter(|name| name.ends_with(".safetensors")).map(|name| (name, Vec::new())).collect()
}

fn open(dir: &ModelDir, name: &str, path: &Arc<Path>) -> Result<Shard> {
    let missing = || Error::Source { path: path.as_ref().into(), message: "is missing: download it again".into() };
    let shard = Shard::open(path, dir.file(name)?.ok_or_else(missing)?)?;
    match foreign::recognise(&shard.bytes) {
        Some(advice) => Err(Error::Source { path: path.as_ref().into(), message: advice.into() }),
        None => Ok(shard),
    }
}
