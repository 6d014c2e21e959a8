//! The parameters of a model under canonical names, whichever names and storages the checkpoint uses.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use emberlm_quant::host::{FloatType, HostStorage, HostWeight};

use super::convert::{dequantise, first_non_finite, floats};
use super::header::Dtype;
use super::names::{canonical, is_ignored, layer_of, list, shown};
use super::open::Checkpoint;
use super::{bnb, crest, kv, nano};
use crate::config::{CrestFound, Family, KvCompressionFound, ModelConfig, QuantType};
use crate::{Error, Result};

/// Largest dense matrix that is checked for NaN and infinity when it is read, in bytes: gates and compressors are below,
/// and a full pass over the large ones would cost as much as loading them.
const CHECKED: usize = 1 << 20;

/// Most tensors of one layer among which discovery searches: pairs are compared.
const MAX_PER_LAYER: usize = 2048;

/// How a parameter is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StorageKind {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 4-bit NormalFloat blocks.
    Nf4 {
        /// The block scales are quantised themselves.
        double: bool,
    },
    /// 4-bit floating point blocks.
    Fp4 {
        /// The block scales are quantised themselves.
        double: bool,
    },
    /// Signed bytes with block scales.
    Int8,
    /// 8-bit rows.
    Int8Rows,
    /// 8-bit rows and narrower rows.
    MixedRows {
        /// Bits of the narrow rows, 2 or 4.
        bits: u32,
    },
}

impl StorageKind {
    /// Plain floating point numbers.
    pub fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Codes with scales.
    pub fn is_quantized(self) -> bool {
        !self.is_dense()
    }
}

impl std::fmt::Display for StorageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::F32 => f.pad("f32"),
            Self::F16 => f.pad("f16"),
            Self::Bf16 => f.pad("bf16"),
            Self::Nf4 { double: false } => f.pad("nf4"),
            Self::Nf4 { double: true } => f.pad("nf4-dq"),
            Self::Fp4 { double: false } => f.pad("fp4"),
            Self::Fp4 { double: true } => f.pad("fp4-dq"),
            Self::Int8 => f.pad("int8"),
            Self::Int8Rows => f.pad("int8-rows"),
            Self::MixedRows { bits } => f.pad(&format!("int8+int{bits}")),
        }
    }
}

/// A parameter of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The true shape, not that of packed bytes.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub storage: StorageKind,
    /// Bytes in the file, side tensors included.
    pub bytes: usize,
    /// Names of its tensors in the file.
    pub source: Vec<String>,
}

/// The parameters of a checkpoint under canonical names (`model.layers.{i}....`), to be read one by one.
#[derive(Clone, Debug)]
pub struct Weights {
    checkpoint: Checkpoint,
    pub(super) slots: BTreeMap<String, Slot>,
    ignored: Vec<String>,
    crest: Option<CrestFound>,
    kv: Option<KvCompressionFound>,
}

#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) entry: Entry,
    pub(super) backing: Backing,
    /// Rows of the stored tensor that this parameter is.
    pub(super) rows: Option<Range<usize>>,
}

#[derive(Clone, Debug)]
pub(super) enum Backing {
    Dense { name: String, dtype: FloatType },
    CodeBook(bnb::Source),
    Rows(nano::Source),
}

/// Tensors by layer: the name within the layer, and the true shape.
pub(super) type Layers = BTreeMap<usize, BTreeMap<String, Vec<usize>>>;

/// A tensor that discovery recognised.
pub(super) struct Move {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) shape: Vec<usize>,
    pub(super) rows: Option<Range<usize>>,
}

/// What discovery found.
pub(super) struct Found<T> {
    pub(super) moves: Vec<Move>,
    /// Tensors that are recognised and not needed.
    pub(super) spare: Vec<String>,
    pub(super) found: Option<T>,
}

impl Weights {
    /// Maps the tensors of a checkpoint to canonical names. Reads side data of quantised tensors, but no weights.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a quantised tensor is incomplete or its sizes disagree, [`Error::Tensors`] when two tensors have
    /// the same canonical name or listed modules are missing, [`Error::Discovery`] when CREST steps or cache compressors
    /// cannot be recognised.
    pub fn resolve(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Self> {
        let (ignored, used): (Vec<String>, Vec<String>) =
            checkpoint.names().map(String::from).partition(|name| is_ignored(name));
        let mut names: BTreeSet<String> = used.into_iter().collect();
        let mut out = Self { checkpoint: checkpoint.clone(), slots: BTreeMap::new(), ignored, crest: None, kv: None };
        for source in bnb::group(checkpoint, &mut names)? {
            let double = source.double();
            let storage = match source.kind {
                QuantType::Nf4 => StorageKind::Nf4 { double },
                QuantType::Fp4 => StorageKind::Fp4 { double },
            };
            let (name, shape) = (canonical(&source.weight), vec![source.n, source.k]);
            out.insert(name, shape, storage, source.tensors(), Backing::CodeBook(source))?;
        }
        for source in nano::group(checkpoint, &config.nanollm_modules, &mut names)? {
            let storage = match source.bits() {
                8 => StorageKind::Int8Rows,
                bits => StorageKind::MixedRows { bits },
            };
            let (name, shape) = (source.weight.clone(), vec![source.n, source.k]);
            out.insert(name, shape, storage, source.tensors(), Backing::Rows(source))?;
        }
        for name in names {
            let Some(info) = checkpoint.info(&name) else {
                continue;
            };
            let (dtype, storage) = match info.dtype {
                Dtype::F32 => (FloatType::F32, StorageKind::F32),
                Dtype::F16 => (FloatType::F16, StorageKind::F16),
                Dtype::Bf16 => (FloatType::Bf16, StorageKind::Bf16),
                other => {
                    let message = format!(
                        "is stored as {other:?}, which is not a supported float type, and belongs to no quantised tensor that is \
                         complete (bitsandbytes 4-bit, nanollm_modules)"
                    );
                    return Err(Error::Tensor { tensor: shown(&name), message });
                }
            };
            let shape = info.shape.clone();
            out.insert(canonical(&name), shape, storage, vec![name.clone()], Backing::Dense { name, dtype })?;
        }
        match config.family {
            Family::Crest => {
                let found = crest::discover(
                    &out.layers(config.num_hidden_layers)?,
                    config.hidden_size,
                    config.intermediate_size,
                )?;
                out.crest = out.apply(found)?;
            }
            Family::LeanLlama => {
                let found = kv::discover(&out.layers(config.num_hidden_layers)?, config.kv_dim(), config.head_dim)?;
                out.kv = out.apply(found)?;
            }
            _ => {}
        }
        Ok(out)
    }

    fn insert(
        &mut self,
        name: String,
        shape: Vec<usize>,
        storage: StorageKind,
        source: Vec<String>,
        backing: Backing,
    ) -> Result<()> {
        if let Some(other) = self.slots.get(&name) {
            let both: Vec<&String> = other.entry.source.iter().chain(&source).collect();
            return Err(Error::Tensors(format!("{} is stored twice, as {}", shown(&name), list(&both))));
        }
        let bytes = source.iter().filter_map(|name| self.checkpoint.info(name)).map(|info| info.bytes).sum();
        let entry = Entry { shape, storage, bytes, source };
        self.slots.insert(name, Slot { entry, backing, rows: None });
        Ok(())
    }

    /// The tensors of the first `count` layers. Those of further layers stay as they are, and are unused.
    fn layers(&self, count: usize) -> Result<Layers> {
        let mut layers = Layers::new();
        for (name, slot) in &self.slots {
            let Some((layer, rest)) = layer_of(name).filter(|(layer, _)| *layer < count) else {
                continue;
            };
            let tensors = layers.entry(layer).or_default();
            if tensors.len() == MAX_PER_LAYER {
                return Err(Error::Discovery(format!("layer {layer} holds more than {MAX_PER_LAYER} tensors")));
            }
            tensors.insert(rest.to_owned(), slot.entry.shape.clone());
        }
        Ok(layers)
    }

    /// Renames what discovery found.
    fn apply<T>(&mut self, found: Found<T>) -> Result<Option<T>> {
        let mut placed = Vec::new();
        for Move { from, to, shape, rows } in &found.moves {
            let Some(slot) = self.slots.get(from) else {
                continue;
            };
            let mut slot = slot.clone();
            if let (Some(rows), Some(&all)) = (rows, slot.entry.shape.first()) {
                slot.entry.bytes = slot.entry.bytes.checked_div(all).unwrap_or(0).saturating_mul(rows.len());
            }
            slot.entry.shape.clone_from(shape);
            slot.rows.clone_from(rows);
            placed.push((to.clone(), slot));
        }
        for Move { from, .. } in &found.moves {
            self.slots.remove(from);
        }
        for name in &found.spare {
            if let Some(slot) = self.slots.remove(name) {
                self.ignored.extend(slot.entry.source);
            }
        }
        for (name, slot) in placed {
            if let Some(other) = self.slots.insert(name.clone(), slot) {
                return Err(Error::Tensors(format!(
                    "{} is stored twice, once as {}",
                    shown(&name),
                    list(&other.entry.source)
                )));
            }
        }
        Ok(found.found)
    }

    /// Shape and storage of a parameter.
    pub fn entry(&self, canonical: &str) -> Option<&Entry> {
        self.slots.get(canonical).map(|slot| &slot.entry)
    }

    /// Leaves a parameter out; false if there is none of this name.
    pub(crate) fn ignore(&mut self, canonical: &str) -> bool {
        let slot = self.slots.remove(canonical);
        let found = slot.is_some();
        self.ignored.extend(slot.into_iter().flat_map(|slot| slot.entry.source));
        found
    }

    /// Gives a parameter another canonical name that is free.
    pub(crate) fn rename(&mut self, canonical: &str, to: &str) {
        if let (Some(slot), false) = (self.slots.get(canonical).cloned(), self.slots.contains_key(to)) {
            self.slots.remove(canonical);
            self.slots.insert(to.to_owned(), slot);
        }
    }

    /// Canonical names of all parameters, sorted.
    pub fn canonical_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.slots.keys().map(String::as_str)
    }

    /// Names in the file of tensors that the model does not need.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// What the tensors show about adaptive depth (CREST).
    pub fn crest_found(&self) -> Option<&CrestFound> {
        self.crest.as_ref()
    }

    /// The cache compressors that the tensors hold (LeanLlama).
    pub fn kv_found(&self) -> Option<&KvCompressionFound> {
        self.kv.as_ref()
    }

    /// The checkpoint that the parameters are read from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// A matrix in its storage. Buffers are views of the file, except rows that must be brought into order.
    ///
    /// # Errors
    /// [`Error::Tensors`] when there is no such parameter; [`Error::Tensor`] when it is not a matrix, its scales (or, for
    /// small ones, its numbers) are not finite, or its rows are not a partition.
    pub fn matrix(&self, canonical: &str) -> Result<HostWeight> {
        let slot = self.slot(canonical)?;
        let &[n, k] = slot.entry.shape.as_slice() else {
            return Err(slot.error(format!("has shape {:?}, expected a matrix", slot.entry.shape)));
        };
        if n == 0 || k == 0 {
            return Err(slot.error(format!("has shape {:?}, expected sizes above 0", slot.entry.shape)));
        }
        let weight = match &slot.backing {
            Backing::Dense { name, dtype } => {
                let data = slot.slice(self.checkpoint.data(name)?, dtype.size())?;
                if data.len() <= CHECKED {
                    slot.check_finite(*dtype, &data)?;
                }
                return Ok(HostWeight { n, k, storage: HostStorage::Dense(*dtype, data) });
            }
            Backing::CodeBook(source) => source.read(&self.checkpoint)?,
            Backing::Rows(source) => source.read(&self.checkpoint)?,
        };
        if slot.rows.is_none() && (weight.n, weight.k) == (n, k) {
            return Ok(weight);
        }
        // Rows of a quantised matrix need not start at a block: these are a few gates, read in full.
        let numbers = dequantise(&weight).ok_or_else(|| slot.error("has fewer numbers than its shape".into()))?;
        let numbers: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
        let data = slot.slice(numbers.into(), FloatType::F32.size())?;
        Ok(HostWeight { n, k, storage: HostStorage::Dense(FloatType::F32, data) })
    }

    /// All numbers of a parameter of any shape and storage, as f32 in row-major order.
    ///
    /// # Errors
    /// As [`Self::matrix`], and [`Error::Tensor`] when any number is NaN or infinite.
    pub fn vector(&self, canonical: &str) -> Result<Vec<f32>> {
        let slot = self.slot(canonical)?;
        match &slot.backing {
            Backing::Dense { name, dtype } => {
                let data = slot.slice(self.checkpoint.data(name)?, dtype.size())?;
                slot.check_finite(*dtype, &data)?;
                Ok(floats(*dtype, &data))
            }
            _ => dequantise(&self.matrix(canonical)?)
                .ok_or_else(|| slot.error("has fewer numbers than its shape".into())),
        }
    }

    /// Tells the system that the pages of a parameter are not needed for now; see [`Checkpoint::release`].
    pub fn release(&self, canonical: &str) {
        if let Some(slot) = self.slots.get(canonical) {
            slot.entry.source.iter().for_each(|name| self.checkpoint.release(name));
        }
    }

    fn slot(&self, canonical: &str) -> Result<&Slot> {
        let missing = || Error::Tensors(format!("the checkpoint has no {}", shown(canonical)));
        self.slots.get(canonical).ok_or_else(missing)
    }
}

impl Slot {
    /// The rows of this parameter out of the data of the stored tensor.
    fn slice(&self, data: Bytes, size: usize) -> Result<Bytes> {
        let Some(rows) = &self.rows else {
            return Ok(data);
        };
        let width = self.entry.shape.iter().skip(1).try_fold(size, |width, &dim| width.checked_mul(dim));
        let range = width.and_then(|width| Some(rows.start.checked_mul(width)?..rows.end.checked_mul(width)?));
        match range.filter(|range| range.end <= data.len()) {
            Some(range) => Ok(data.slice(range)),
            None => Err(self.error(format!("has no row {}", rows.end))),
        }
    }

    fn check_finite(&self, dtype: FloatType, data: &[u8]) -> Result<()> {
        match first_non_finite(dtype, data) {
            Some(at) => Err(self.error(format!("element {at} is not a finite number"))),
            None => Ok(()),
        }
    }

    fn error(&self, message: String) -> Error {
        let tensor = self.entry.source.first().map_or_else(String::new, |name| shown(name));
        Error::Tensor { tensor, message }
    }
}
