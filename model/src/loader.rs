//! Building modules from a source of weights, tensor by tensor.
//!
//! The code that builds a module is also its declaration. It runs twice: a planning pass checks every tensor against the source
//! and adds up bytes without loading anything, then the loading pass fills the modules. So a checkpoint that does not fit is
//! refused with every difference at once, and the memory needed is known before the first large allocation.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

use std::cell::RefCell;
use std::collections::BTreeSet;

use burn::module::{Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use bytes::Bytes;
use emberlm_quant::CompactBackend;
use emberlm_quant::format::{self, BufferLimit};
use emberlm_quant::host::{FloatType, HostStorage, HostWeight};
use emberlm_quant::modules::{Embedding, Linear, SwiGlu};
use emberlm_quant::packed::PackedWeight;

use crate::checkpoint::{StorageKind, report};
use crate::config::{Family, ModelConfig};
use crate::error::{Error, Result};
use crate::nn::RmsNorm;
use crate::plan::{LoadPlan, PlannedTensor, Progress, QuantizeOnLoad};

/// Where weights come from: a checkpoint, or a generator of random ones.
pub trait WeightSource {
    /// Shape and storage of a tensor that a model needs in the shape `expected`.
    fn entry(&self, name: &str, expected: &[usize]) -> Option<SourceEntry>;
    /// Shape of a tensor that a model may have.
    fn optional(&self, name: &str) -> Option<Vec<usize>>;
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

/// Whether a linear has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    None,
    Required,
    IfPresent,
}

impl Bias {
    /// Required or absent, as a config says.
    pub fn when(stated: bool) -> Self {
        if stated { Self::Required } else { Self::None }
    }
}

/// How weights change on their way from the source to the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct WeightOptions {
    /// Quantise the dense linears of the layers (not the head, embeddings, gates or compressors).
    pub quantize: Option<QuantizeOnLoad>,
    /// Quantise a dense embedding and head.
    pub quantize_head: Option<QuantizeOnLoad>,
    /// Dequantise and round to the stored type, as the original runtimes do.
    pub round_to_stored: bool,
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
    options: WeightOptions,
    device: B::Device,
    /// The planning pass's notes; `None` while loading.
    notes: Option<RefCell<Notes>>,
    progress: Option<&'a dyn Fn(Progress)>,
    loaded: RefCell<Progress>,
}

#[derive(Default)]
struct Notes {
    tensors: Vec<PlannedTensor>,
    missing: Vec<String>,
    mismatched: Vec<String>,
    used: BTreeSet<String>,
}

/// Runs `build` without loading anything.
///
/// # Errors
/// [`Error::Tensors`] with every missing, unused and mismatched tensor.
pub(crate) fn plan<B: CompactBackend, T>(
    source: &dyn WeightSource,
    options: WeightOptions,
    device: &B::Device,
    build: impl FnOnce(&Loader<'_, B>) -> Result<T>,
) -> Result<LoadPlan> {
    let notes = Some(RefCell::new(Notes::default()));
    let loaded = RefCell::default();
    let shared = Shared { source, options, device: device.clone(), notes, progress: None, loaded };
    build(&Loader { shared: &shared, path: String::new() })?;
    let notes = shared.notes.map(RefCell::into_inner).unwrap_or_default();
    let unused: Vec<String> = source.names().into_iter().filter(|name| !notes.used.contains(name)).collect();
    if !(notes.missing.is_empty() && notes.mismatched.is_empty() && unused.is_empty()) {
        return Err(report(&notes.missing, &unused, &notes.mismatched));
    }
    Ok(LoadPlan { tensors: notes.tensors })
}

/// Runs `build` for good.
///
/// # Errors
/// When the stored data of a tensor is damaged.
pub(crate) fn load<B: CompactBackend, T>(
    source: &dyn WeightSource,
    options: WeightOptions,
    plan: &LoadPlan,
    device: &B::Device,
    progress: Option<&dyn Fn(Progress)>,
    build: impl FnOnce(&Loader<'_, B>) -> Result<T>,
) -> Result<T> {
    let total = plan.tensors.iter().map(|tensor| tensor.stored_bytes).sum();
    let loaded = RefCell::new(Progress { done: 0, total });
    let shared = Shared { source, options, device: device.clone(), notes: None, progress, loaded };
    build(&Loader { shared: &shared, path: String::new() })
}

impl<B: CompactBackend> Loader<'_, B> {
    /// The place `name` below this one.
    pub fn at(&self, name: &str) -> Self {
        Self { shared: self.shared, path: self.name(name) }
    }

    /// Marks the tensors below this place as left out on purpose.
    pub fn ignore(&self, name: &str) {
        if let Some(notes) = &self.shared.notes {
            let prefix = self.name(name) + ".";
            let names = self.shared.source.names().into_iter().filter(|name| name.starts_with(&prefix));
            notes.borrow_mut().used.extend(names);
        }
    }

    /// A linear layer, quantised at load if that was asked for.
    pub fn linear(&self, name: &str, n: usize, k: usize, bias: Bias) -> Result<Linear<B>> {
        self.any_linear(name, n, k, bias, self.shared.options.quantize)
    }

    /// A linear layer that quantisation at load leaves alone.
    pub fn linear_as_stored(&self, name: &str, n: usize, k: usize, bias: Bias) -> Result<Linear<B>> {
        self.any_linear(name, n, k, bias, None)
    }

    /// The table of the tokens.
    pub fn embedding(&self, name: &str, n: usize, k: usize) -> Result<Embedding<B>> {
        Ok(Embedding { weight: self.at(name).weight(n, k, self.shared.options.quantize_head)? })
    }

    /// The head.
    pub fn head(&self, name: &str, n: usize, k: usize) -> Result<Linear<B>> {
        self.any_linear(name, n, k, Bias::None, self.shared.options.quantize_head)
    }

    /// `gate_proj`, `up_proj` and `down_proj`.
    pub fn swiglu(&self, config: &ModelConfig) -> Result<SwiGlu<B>> {
        let (h, inner) = (config.hidden_size, config.intermediate_size);
        // Which of the integer modules have biases is said module by module.
        let bias = if config.family == Family::NanoCompact { Bias::IfPresent } else { Bias::when(config.mlp_bias) };
        Ok(SwiGlu {
            gate_proj: self.linear("gate_proj", inner, h, bias)?,
            up_proj: self.linear("up_proj", inner, h, bias)?,
            down_proj: self.linear("down_proj", h, inner, bias)?,
        })
    }

    /// A norm of the family's kind.
    pub fn rms_norm(&self, width: usize, config: &ModelConfig) -> Result<RmsNorm<B>> {
        let weight = self.tensor("weight", [width])?;
        Ok(RmsNorm { weight, eps: config.rms_norm_eps, unit_offset: config.family.is_hybrid() })
    }

    /// A tensor that stays a plain f32 one.
    pub fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Param<Tensor<B, D>>> {
        let name = self.name(name);
        let len = elements(&name, &shape)?;
        let values = if self.planned(&name, &shape, |_| (StorageKind::F32, len.saturating_mul(4))) {
            vec![0.0; len]
        } else {
            let values = self.shared.source.vector(&name, len)?;
            self.loaded(&name, &shape, true);
            values
        };
        let tensor = Tensor::from_data(TensorData::new(values, shape), (&self.shared.device, DType::F32));
        Ok(Param::initialized(ParamId::new(), tensor.require_grad()))
    }

    fn any_linear(
        &self,
        name: &str,
        n: usize,
        k: usize,
        bias: Bias,
        quantize: Option<QuantizeOnLoad>,
    ) -> Result<Linear<B>> {
        let place = self.at(name);
        let has_bias = match bias {
            Bias::None => false,
            Bias::Required => true,
            Bias::IfPresent => self.shared.source.optional(&place.name("bias")).is_some(),
        };
        Ok(Linear {
            weight: place.weight(n, k, quantize)?,
            bias: has_bias.then(|| place.tensor("bias", [n])).transpose()?,
        })
    }

    fn weight(&self, n: usize, k: usize, quantize: Option<QuantizeOnLoad>) -> Result<PackedWeight<B>> {
        let name = self.name("weight");
        let options = self.shared.options;
        let held = |entry: &SourceEntry| match (quantize, entry.storage) {
            (Some(quantize), storage) if storage.is_dense() => (quantize.storage(), quantize.bytes(n, k)),
            (_, storage) if options.round_to_stored && !storage.is_dense() => {
                (StorageKind::Bf16, n.saturating_mul(k).saturating_mul(2))
            }
            (_, storage) => (storage, entry.bytes),
        };
        if self.planned(&name, &[n, k], held) {
            return Ok(placeholder(&self.shared.device));
        }
        let source = self.shared.source.matrix(&name, n, k)?;
        let dense = matches!(source.storage, HostStorage::Dense(..));
        // Whether the device goes on reading the source's bytes.
        let mut shared = B::SHARES_HOST_MEMORY && source.is_aligned();
        let weight = match quantize {
            Some(quantize) if dense => {
                shared = false;
                quantize.apply(&source).map_err(|e| Error::Tensor { tensor: name.clone(), message: e.to_string() })?
            }
            _ if options.round_to_stored && !dense => {
                shared = false;
                format::dequantize_rounded(&source)
            }
            _ => source,
        };
        let device = &self.shared.device;
        let bytes = [options.max_buffer, B::max_buffer(device)].into_iter().flatten().min().unwrap_or(usize::MAX);
        let limit = BufferLimit { bytes, elements: B::max_elements(device).unwrap_or(usize::MAX) };
        let packed = PackedWeight::from_host_within(weight, limit, device)
            .map_err(|e| Error::Tensor { tensor: name.clone(), message: e.to_string() })?;
        self.loaded(&name, &[n, k], !shared);
        Ok(packed)
    }

    fn name(&self, leaf: &str) -> String {
        match (self.path.as_str(), leaf) {
            ("", leaf) => leaf.to_string(),
            (path, "") => path.to_string(),
            (path, leaf) => format!("{path}.{leaf}"),
        }
    }

    /// In the planning pass: notes the tensor, and says that there is nothing to load.
    /// `held` says how the device will hold it, in how many bytes.
    fn planned(&self, name: &str, shape: &[usize], held: impl FnOnce(&SourceEntry) -> (StorageKind, usize)) -> bool {
        let Some(notes) = &self.shared.notes else { return false };
        let mut notes = notes.borrow_mut();
        notes.used.insert(name.to_string());
        match self.shared.source.entry(name, shape) {
            None => notes.missing.push(format!("{name} {shape:?}")),
            Some(entry) if entry.shape != shape => {
                notes.mismatched.push(format!("{name}: {:?} in the file, {shape:?} in the model", entry.shape));
            }
            Some(entry) => {
                let (storage, bytes) = held(&entry);
                notes.tensors.push(PlannedTensor {
                    name: name.to_string(),
                    shape: shape.to_vec(),
                    stored: entry.storage,
                    stored_bytes: entry.bytes,
                    storage,
                    bytes,
                });
            }
        }
        true
    }

    /// In the loading pass: reports progress and gives the source's pages back when they were copied.
    fn loaded(&self, name: &str, shape: &[usize], copied: bool) {
        let shared = self.shared;
        if copied {
            shared.source.release(name);
        }
        let bytes = shared.source.entry(name, shape).map_or(0, |entry| entry.bytes);
        let mut loaded = shared.loaded.borrow_mut();
        loaded.done = loaded.done.saturating_add(bytes);
        if let Some(progress) = shared.progress {
            progress(*loaded);
        }
    }
}

/// Elements of a tensor that a model needs.
fn elements(name: &str, shape: &[usize]) -> Result<usize> {
    let count = shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
    count.ok_or_else(|| Error::Tensor { tensor: name.into(), message: format!("{shape:?} would be too large") })
}

/// Stands in for a weight while planning.
fn placeholder<B: Backend>(device: &B::Device) -> PackedWeight<B> {
    let zero = HostStorage::Dense(FloatType::F16, Bytes::from_static(&[0; 4]));
    PackedWeight::from_host(HostWeight { n: 1, k: 2, storage: zero }, device)
}
