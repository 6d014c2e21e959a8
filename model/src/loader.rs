//! From a source of weights to modules, tensor by tensor.
//!
//! The [list of the model's tensors](Architecture::tensors) is held against the source first: a checkpoint that does not fit is
//! refused with every difference at once, and the memory needed is known before the first large allocation. Then modules are built by
//! name; shapes and what is quantised are the list's.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use burn::module::{Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use emberlm_quant::CompactBackend;
use emberlm_quant::format::{self, BufferLimit};
use emberlm_quant::host::{FloatType, HostStorage, HostWeight};
use emberlm_quant::modules::{Embedding, Linear, SwiGlu};
use emberlm_quant::packed::PackedWeight;

use crate::architecture::Architecture;
use crate::checkpoint::{CheckpointError, MismatchedTensor, MissingTensor, StorageKind, TensorDifferences};
use crate::error::{Error, Result};
use crate::nn::RmsNorm;
use crate::plan::{LoadPlan, PlannedTensor, Progress, QuantizeOnLoad};
use crate::tensors::{TensorRole, TensorSpec};

/// Where weights come from: a checkpoint, or a generator of random ones.
pub trait WeightSource {
    /// Shape and storage of a tensor that a model needs in the shape `expected`.
    fn entry(&self, name: &str, expected: &[usize]) -> Option<SourceEntry>;
    /// Shape of a tensor that a model may have. Without a body of its own there are none.
    fn optional(&self, _name: &str) -> Option<Vec<usize>> {
        None
    }
    /// A matrix `[n, k]`.
    ///
    /// # Errors
    /// When the stored data is damaged.
    fn matrix(&self, name: &str, n: usize, k: usize) -> Result<HostWeight>;
    /// A tensor that is not packed, as f32.
    ///
    /// # Errors
    /// When the stored data is damaged.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>>;
    /// The file that holds a tensor, for messages.
    fn file(&self, _name: &str) -> Option<PathBuf> {
        None
    }
    /// Whether [`matrix`](Self::matrix) gives only weights that [`format::check`] finds no fault with. Without a body of its own loading
    /// checks them.
    fn is_checked(&self) -> bool {
        false
    }
    /// Hint that the stored bytes of a tensor will not be read again.
    fn release(&self, _name: &str) {}
    /// Every tensor that a model should use.
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a source holds under a name.
#[derive(Clone, Debug)]
pub struct SourceEntry {
    /// True shape, whatever the packed one is.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub storage: StorageKind,
    /// Stored bytes, side tensors included.
    pub bytes: usize,
}

/// How weights change on their way from the source to the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct WeightOptions {
    /// Quantise the dense linears of the layers (not the head, embeddings, gates or compressors).
    pub quantize: Option<QuantizeOnLoad>,
    /// Quantise a dense head that is not the embedding.
    pub quantize_head: Option<QuantizeOnLoad>,
    /// Quantise a dense embedding, which may be the head too.
    pub quantize_embedding: Option<QuantizeOnLoad>,
    /// Load every matrix as plain F32, to be trained: no other storage has gradients. Nothing is quantised then.
    pub trainable: bool,
    /// Dequantise and round to the stored type, as the original runtimes do.
    pub round_to_stored: bool,
    /// Copy matrices into memory, onto large pages where the system has them, instead of reading them where a file is mapped: loading takes as
    /// long as reading the file, and what happens to the file afterwards changes nothing. A device with memory of its own has copies anyway.
    pub in_memory: bool,
    /// Bytes of the largest buffer, where it is to be less than the device's own; a weight beyond it is held in parts.
    pub max_buffer: Option<usize>,
}

/// Builds modules at one place of the tensor names.
pub(crate) struct Loader<'a, B: Backend> {
    shared: &'a Shared<'a, B>,
    path: String,
}

struct Shared<'a, B: Backend> {
    source: &'a dyn WeightSource,
    /// The tensors of the model by name.
    tensors: BTreeMap<String, TensorSpec>,
    options: WeightOptions,
    device: B::Device,
    progress: Option<&'a dyn Fn(Progress)>,
    loaded: RefCell<Progress>,
}

/// Checks a source against the tensors of a model and adds up the bytes, loading nothing.
///
/// # Errors
/// [`Error::Differences`] with every missing, unused and mismatched tensor.
pub(crate) fn plan(architecture: &Architecture, source: &dyn WeightSource, options: WeightOptions) -> Result<LoadPlan> {
    let (mut tensors, mut differences) = (Vec::new(), TensorDifferences::default());
    let list = architecture.tensors();
    let names: BTreeSet<&str> = list.iter().map(|tensor| tensor.name.as_str()).collect();
    let has_use = |name: &String| names.contains(name.as_str()) || architecture.leaves_out(name);
    differences.unused = source.names().into_iter().filter(|name| !has_use(name)).collect();
    for tensor in &list {
        let TensorSpec { name, shape, role, part, optional } = tensor;
        elements(tensor)?;
        if *optional && source.optional(name).is_none() {
            continue;
        }
        match source.entry(name, shape) {
            None => {
                differences.missing.push(MissingTensor { tensor: name.clone(), expected: Some(shape.clone()) });
            }
            Some(entry) if entry.shape != *shape => {
                let (file, tensor, expected) = (source.file(name), name.clone(), shape.clone());
                differences.mismatched.push(MismatchedTensor { file, tensor, expected, found: entry.shape });
            }
            Some(entry) => {
                let (storage, bytes) = options.held(tensor, &entry);
                tensors.push(PlannedTensor {
                    name: name.clone(),
                    shape: shape.clone(),
                    role: *role,
                    part: *part,
                    stored: entry.storage,
                    stored_bytes: entry.bytes,
                    storage,
                    bytes,
                });
            }
        }
    }
    Error::unless_same(differences)?;
    Ok(LoadPlan { tensors })
}

/// Runs `build` with the tensors of a source.
///
/// # Errors
/// When the stored data of a tensor is damaged.
pub(crate) fn load<B: CompactBackend, T>(
    architecture: &Architecture,
    source: &dyn WeightSource,
    options: WeightOptions,
    plan: &LoadPlan,
    device: &B::Device,
    progress: Option<&dyn Fn(Progress)>,
    build: impl FnOnce(&Loader<'_, B>) -> Result<T>,
) -> Result<T> {
    let total = plan.tensors.iter().map(|tensor| tensor.stored_bytes).sum();
    let loaded = RefCell::new(Progress { done: 0, total });
    let tensors = architecture.tensors().into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let shared = Shared { source, tensors, options, device: device.clone(), progress, loaded };
    build(&Loader { shared: &shared, path: String::new() })
}

impl WeightOptions {
    /// The format in which a dense matrix of this role is held; none: as it is stored.
    fn quantize(&self, role: TensorRole) -> Option<QuantizeOnLoad> {
        match role {
            _ if self.trainable => None,
            TensorRole::Projection => self.quantize,
            TensorRole::Head => self.quantize_head,
            TensorRole::Embedding => self.quantize_embedding,
            _ => None,
        }
    }

    /// How the device will hold a tensor, in how many bytes.
    fn held(&self, tensor: &TensorSpec, entry: &SourceEntry) -> (StorageKind, usize) {
        let count = tensor.shape.iter().copied().fold(1usize, usize::saturating_mul);
        let (true, &[n, k]) = (tensor.role.is_matrix(), tensor.shape.as_slice()) else {
            return (StorageKind::F32, count.saturating_mul(4));
        };
        match (self.quantize(tensor.role), entry.storage) {
            (Some(quantize), storage) if storage.is_dense() => (quantize.storage(), quantize.bytes(n, k)),
            _ if self.trainable => (StorageKind::F32, count.saturating_mul(4)),
            (_, storage) if self.round_to_stored && !storage.is_dense() => (StorageKind::Bf16, count.saturating_mul(2)),
            (_, storage) => (storage, entry.bytes),
        }
    }
}

impl<B: CompactBackend> Loader<'_, B> {
    /// The place `name` below this one.
    pub fn at(&self, name: &str) -> Self {
        Self { shared: self.shared, path: self.name(name) }
    }

    /// Whether the model has the tensor.
    pub fn has(&self, name: &str) -> bool {
        let name = self.name(name);
        let optional = |tensor: &TensorSpec| tensor.optional;
        self.shared.tensors.get(&name).is_some_and(|t| !optional(t) || self.shared.source.optional(&name).is_some())
    }

    /// A linear layer, with its bias where it has one.
    pub fn linear(&self, name: &str) -> Result<Linear<B>> {
        let place = self.at(name);
        let bias = place.has("bias").then(|| place.tensor("bias")).transpose()?;
        Ok(Linear { weight: place.weight()?, bias })
    }

    /// The table of the tokens.
    pub fn embedding(&self, name: &str) -> Result<Embedding<B>> {
        Ok(Embedding { weight: self.at(name).weight()? })
    }

    /// `gate_proj`, `up_proj` and `down_proj`.
    pub fn swiglu(&self) -> Result<SwiGlu<B>> {
        Ok(SwiGlu {
            gate_proj: self.linear("gate_proj")?,
            up_proj: self.linear("up_proj")?,
            down_proj: self.linear("down_proj")?,
        })
    }

    /// A norm.
    pub fn rms_norm(&self, name: &str, eps: f64) -> Result<RmsNorm<B>> {
        let place = self.at(name);
        let unit_offset = place.spec("weight")?.role == TensorRole::Norm { unit_offset: true };
        Ok(RmsNorm { weight: place.tensor("weight")?, eps, unit_offset })
    }

    /// A tensor that stays a plain f32 one.
    pub fn tensor<const D: usize>(&self, name: &str) -> Result<Param<Tensor<B, D>>> {
        let tensor = self.spec(name)?;
        let Ok(shape) = <[usize; D]>::try_from(tensor.shape.as_slice()) else {
            return Err(self.error(&tensor.name, format!("{:?} has not {D} dimensions", tensor.shape)));
        };
        let count = elements(tensor)?;
        let values = self.shared.source.vector(&tensor.name, count)?;
        if values.len() != count {
            return Err(self.error(&tensor.name, format!("has {} numbers, expected {count}", values.len())));
        }
        self.loaded(tensor, true);
        let tensor = Tensor::from_data(TensorData::new(values, shape), (&self.shared.device, DType::F32));
        Ok(Param::initialized(ParamId::new(), tensor.require_grad()))
    }

    fn weight(&self) -> Result<PackedWeight<B>> {
        let (tensor, options) = (self.spec("weight")?, self.shared.options);
        let name = &tensor.name;
        let fail = |message: String| self.error(name, message);
        let &[n, k] = tensor.shape.as_slice() else { return Err(fail(format!("{:?} is no matrix", tensor.shape))) };
        let source = self.shared.source.matrix(name, n, k)?;
        if [source.n, source.k] != [n, k] {
            return Err(fail(format!("has shape {:?}, expected {:?}", [source.n, source.k], [n, k])));
        }
        if !self.shared.source.is_checked() {
            format::check(&source).map_err(|e| fail(e.to_string()))?;
        }
        let dense = matches!(source.storage, HostStorage::Dense(..));
        // Whether the device goes on reading the source's bytes.
        let mut shared = PackedWeight::<B>::shares(&source);
        let weight = match options.quantize(tensor.role) {
            Some(quantize) if dense => {
                shared = false;
                quantize.apply(&source).map_err(|e| fail(e.to_string()))?
            }
            _ if options.trainable => {
                shared = false;
                format::dequantize_to(&source, FloatType::F32).map_err(|e| fail(e.to_string()))?
            }
            _ if options.round_to_stored && !dense => {
                shared = false;
                format::dequantize_rounded(&source)
            }
            _ if options.in_memory && shared => {
                shared = false;
                source.copied()
            }
            _ => source,
        };
        let device = &self.shared.device;
        let bytes = [options.max_buffer, B::max_buffer(device)].into_iter().flatten().min().unwrap_or(usize::MAX);
        let limit = BufferLimit { bytes, elements: B::max_elements(device).unwrap_or(usize::MAX) };
        let packed = PackedWeight::from_host_within(weight, limit, device).map_err(|e| fail(e.to_string()))?;
        self.loaded(tensor, !shared);
        Ok(packed)
    }

    /// The tensor of that name at this place.
    fn spec(&self, name: &str) -> Result<&TensorSpec> {
        let name = self.name(name);
        let found = self.shared.tensors.get(&name);
        found.ok_or_else(|| self.error(&name, "is none of this architecture".into()))
    }

    fn error(&self, name: &str, message: String) -> Error {
        CheckpointError::of_tensor(name, message).in_file(self.shared.source.file(name).as_deref()).into()
    }

    fn name(&self, leaf: &str) -> String {
        match (self.path.as_str(), leaf) {
            ("", leaf) => leaf.to_string(),
            (path, "") => path.to_string(),
            (path, leaf) => format!("{path}.{leaf}"),
        }
    }

    /// Reports progress and gives the source's pages back when they were copied.
    fn loaded(&self, tensor: &TensorSpec, copied: bool) {
        let shared = self.shared;
        if copied {
            shared.source.release(&tensor.name);
        }
        let bytes = shared.source.entry(&tensor.name, &tensor.shape).map_or(0, |entry| entry.bytes);
        let mut loaded = shared.loaded.borrow_mut();
        loaded.done = loaded.done.saturating_add(bytes);
        if let Some(progress) = shared.progress {
            progress(*loaded);
        }
    }
}

/// Elements of a tensor that a model needs.
fn elements(TensorSpec { name, shape, .. }: &TensorSpec) -> Result<usize> {
    let count = shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
    count.ok_or_else(|| CheckpointError::of_tensor(name, format!("{shape:?} would be too large")).into())
}
