//! What is to be written, held against the source before anything is read.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use super::config::Facts;
use super::item::{Item, Work};
use super::matrix::{ExportedMatrix, MatrixFormat};
use super::options::{ExportContainer, ExportOptions};
use super::{config, files};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::writer::{header_bytes, record_header_bytes};
use crate::checkpoint::{StorageKind, Weights};
use crate::error::{Error, Result};
use crate::loader::{self, WeightOptions};
use crate::plan::PlannedTensor;
use crate::pretrained::Pretrained;
use emberlm_quant::host::FloatType;

/// What is to be written, checked against its source.
#[derive(Debug)]
pub struct ExportPlan<'a> {
    pub(super) pretrained: &'a Pretrained,
    pub(super) items: Vec<Item>,
    /// Items by file.
    pub(super) shards: Vec<Range<usize>>,
    /// Names and contents of the files beside the weights, the config last.
    pub(super) files: Vec<(String, Vec<u8>)>,
    pub(super) container: ExportContainer,
    matrices: Vec<ExportedMatrix>,
    left_out: Vec<String>,
    fingerprint: String,
}

impl Pretrained {
    /// Plans a directory with this model in other number formats: `format` says for each matrix how it is written. Steps beyond the
    /// [depth](Self::depth) that was asked for are left out.
    ///
    /// # Errors
    /// [`Error::Differences`](crate::Error::Differences) when the checkpoint is not that of its config; [`Error::Tensor`](crate::Error::Tensor)
    /// and [`Error::Option`](crate::Error::Option) when a tensor cannot be written so; [`Error::Weight`](crate::Error::Weight) for rows of so many bits; [`Error::Source`](crate::Error::Source) and
    /// [`Error::Io`](crate::Error::Io) when the files beside it cannot be read.
    pub fn export(
        &self,
        options: &ExportOptions,
        format: impl Fn(&PlannedTensor) -> MatrixFormat,
    ) -> Result<ExportPlan<'_>> {
        let weights = self.weights();
        let plan = loader::plan(self.architecture(), weights, WeightOptions::default())?;
        let (mut items, mut matrices): (Vec<Item>, Vec<ExportedMatrix>) = (Vec::new(), Vec::new());
        let mut stacked: BTreeMap<String, usize> = BTreeMap::new();
        for tensor in &plan.tensors {
            let name = &tensor.name;
            let missing = || CheckpointError::of_tensor(name, "is not in the checkpoint");
            if options.container == ExportContainer::Burnpack {
                let float = options.dense.ok_or_else(only_dense)?;
                let item = Item::of_record(tensor, float);
                if tensor.role.is_matrix() {
                    let file_name = weights.file_name(name).ok_or_else(missing)?;
                    let written = MatrixFormat::Dense(float).storage(tensor.stored);
                    matrices.push(ExportedMatrix::new(tensor, file_name, written, item.bytes()));
                }
                items.push(item);
                continue;
            }
            let file_name = weights.file_name(name).ok_or_else(missing)?;
            let tensors = weights.entry(name).ok_or_else(missing)?.tensors.clone();
            if weights.rows_of(name).is_some() {
                // The rows of one tensor are several parameters: it is copied once.
                let at = *stacked.entry(file_name.clone()).or_insert(items.len());
                if at == items.len() {
                    items.push(self.stacked(tensor, &file_name, tensors, options.dense)?);
                }
                if tensor.role.is_matrix() {
                    let wanted = options.dense.map_or(MatrixFormat::AsStored, MatrixFormat::Dense);
                    let written = wanted.storage(tensor.stored);
                    matrices.push(ExportedMatrix::new(tensor, file_name, written, tensor.stored_bytes as u64));
                }
                continue;
            }
            let wanted = if tensor.role.is_matrix() { format(tensor) } else { MatrixFormat::AsStored };
            let written = wanted.storage(tensor.stored);
            let widen = options.dense == Some(FloatType::F32) && tensor.stored != StorageKind::F32;
            let item = if !tensor.role.is_matrix() && widen {
                Item::widen(name, weights, &file_name)?
            } else if written == tensor.stored {
                Item::copy(name, weights, tensors.into_iter().map(|tensor| (tensor, None)).collect())?
            } else {
                Item::matrix(tensor, &file_name, wanted)?
            };
            if tensor.role.is_matrix() {
                matrices.push(ExportedMatrix::new(tensor, file_name, written, item.bytes()));
            }
            items.push(item);
        }
        let limit = match options.container {
            ExportContainer::Safetensors => options.shard_bytes,
            ExportContainer::Burnpack => u64::MAX,
        };
        let shards = shards(&items, limit);
        let dir = weights.checkpoint().dir();
        let facts = Facts { pretrained: self, matrices: &matrices, items: &items, dense: options.dense };
        let mut files = files::read(dir)?;
        files.extend(config::files(&facts)?);
        let container = options.container;
        let fingerprint = fingerprint(weights, &items, &shards, &files, container);
        let left_out = left_out(weights, &items);
        Ok(ExportPlan { pretrained: self, items, shards, files, container, matrices, left_out, fingerprint })
    }

    /// A tensor whose rows are gates of halting.
    fn stacked(
        &self,
        tensor: &PlannedTensor,
        file_name: &str,
        tensors: Vec<String>,
        dense: Option<FloatType>,
    ) -> Result<Item> {
        let steps = |count: usize| self.architecture().crest.as_ref().map_or(count, |crest| crest.num_steps);
        let stored = self.weights().discovered_crest().map_or(0, |crest| crest.num_steps);
        let rows = match steps(stored) {
            kept if kept < stored => Some(0..kept.saturating_sub(1)),
            _ => None,
        };
        let changes = dense.is_some_and(|float| MatrixFormat::Dense(float).storage(tensor.stored) != tensor.stored);
        if tensor.role.is_matrix() && (changes || (rows.is_some() && tensor.stored.is_quantized())) {
            let all = self.weights().whole_matrix(&tensor.name)?;
            let rows = rows.map_or(all.n, |rows| rows.end);
            return Item::first_rows(&tensor.name, file_name, &all, (rows, dense), tensors);
        }
        Item::copy(&tensor.name, self.weights(), tensors.into_iter().map(|tensor| (tensor, rows.clone())).collect())
    }
}

impl ExportPlan<'_> {
    /// The matrices, in the order in which they are written.
    pub fn matrices(&self) -> &[ExportedMatrix] {
        &self.matrices
    }

    /// Bytes of the directory, within a few per tensor.
    pub fn bytes(&self) -> u64 {
        let header = |shard: &Range<usize>| match self.container {
            ExportContainer::Safetensors => header_bytes(self.slots(shard)),
            // And what aligns the tensors.
            ExportContainer::Burnpack => {
                let padding =
                    self.slots(shard).map(|slot| slot.bytes().next_multiple_of(256).saturating_sub(slot.bytes()));
                padding.sum::<usize>().saturating_add(record_header_bytes(self.slots(shard)))
            }
        };
        let headers: usize = self.shards.iter().map(header).sum();
        let files: usize = self.files.iter().map(|(_, bytes)| bytes.len()).sum();
        self.data_bytes().saturating_add(headers as u64).saturating_add(files as u64)
    }

    /// Bytes of all tensors; those of the longest possible where they are not known yet.
    pub fn data_bytes(&self) -> u64 {
        self.items.iter().map(Item::bytes).sum()
    }

    /// Bytes that are read from the source.
    pub fn source_bytes(&self) -> usize {
        self.items.iter().map(|item| item.source_bytes).sum()
    }

    /// Files that hold the weights.
    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// Tensors of the source that are not written: the model has no use for them.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Bytes that are held at once at most: of two neighbours in the order of writing, what they read and what they become.
    pub fn memory_bytes(&self) -> u64 {
        let held: Vec<u64> = self
            .items
            .iter()
            .map(|item| match item.work {
                Work::Copy(_) => 0,
                _ => item.bytes().saturating_add(item.source_bytes as u64),
            })
            .collect();
        held.windows(2).map(|pair| pair.iter().sum()).max().or(held.first().copied()).unwrap_or(0)
    }

    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(super) fn slots(&self, shard: &Range<usize>) -> impl Iterator<Item = &crate::checkpoint::writer::Slot> {
        self.items.get(shard.clone()).into_iter().flatten().flat_map(|item| &item.slots)
    }
}

fn only_dense() -> Error {
    let message = "a record of burn-store holds plain numbers: say their type".into();
    Error::Option { option: "container".into(), message }
}

/// Items in order, in as few files as hold `limit` bytes each.
fn shards(items: &[Item], limit: u64) -> Vec<Range<usize>> {
    let (mut out, mut start, mut bytes) = (Vec::new(), 0, 0u64);
    for (at, item) in items.iter().enumerate() {
        let sum = bytes.saturating_add(item.bytes());
        if sum > limit && at > start {
            out.push(start..at);
            (start, bytes) = (at, item.bytes());
        } else {
            bytes = sum;
        }
    }
    out.push(start..items.len());
    out
}

/// Tensors of the source that no item holds or stands for.
fn left_out(weights: &Weights, items: &[Item]) -> Vec<String> {
    let mut used: std::collections::BTreeSet<&str> = std::collections::BTreeSet::new();
    for item in items {
        match &item.work {
            Work::Copy(tensors) => used.extend(tensors.iter().map(|(name, _)| name.as_str())),
            Work::FirstRows { tensors, .. } => used.extend(tensors.iter().map(String::as_str)),
            _ => {}
        }
        used.extend(
            weights.entry(&item.parameter).into_iter().flat_map(|entry| entry.tensors.iter().map(String::as_str)),
        );
    }
    weights.checkpoint().names().filter(|name| !used.contains(name)).map(str::to_owned).collect()
}

/// The same for the same source, formats and program. Files of the source count by name, length and time of change.
fn fingerprint(
    weights: &Weights,
    items: &[Item],
    shards: &[Range<usize>],
    files: &[(String, Vec<u8>)],
    container: ExportContainer,
) -> String {
    let checkpoint = weights.checkpoint();
    let mut paths = std::collections::BTreeSet::new();
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    for name in checkpoint.names() {
        if let Some(info) = checkpoint.info(name) {
            (name, info.dtype, &info.shape).hash(&mut hasher);
            paths.insert(info.file.clone());
        }
    }
    for path in paths {
        let found = std::fs::metadata(&path).ok();
        let changed = found.as_ref().and_then(|file| file.modified().ok());
        (path.file_name(), found.map(|file| file.len()), changed).hash(&mut hasher);
    }
    for item in items {
        (&item.parameter, format!("{:?}", item.work)).hash(&mut hasher);
    }
    (shards, files, format!("{container:?}")).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
