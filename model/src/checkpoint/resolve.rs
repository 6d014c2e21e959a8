//! From the tensors of a checkpoint to the parameters of a model: storages are grouped, prefixes made one, unpublished names found.

use std::collections::{BTreeMap, BTreeSet};

use emberlm_quant::host::FloatType;

use super::discovery::{Discovered, LayerTensors, Rename, crest, kv};
use super::dtype::Dtype;
use super::names::{canonical, is_ignored, layer_of, list, shown};
use super::open::Checkpoint;
use super::problem::{CheckpointError, TensorProperty};
use super::storage_kind::StorageKind;
use super::weights::{Parameter, ParameterInfo, StoredAs, Weights};
use super::{bnb, int8, nano};
use crate::config::{Family, ModelConfig, QuantType};
use crate::{Error, Result};

/// Most tensors of one layer among which discovery searches: pairs are compared.
const MAX_PER_LAYER: usize = 2048;

impl Weights {
    /// Maps the tensors of a checkpoint to canonical names. Reads side data of quantised tensors, but no weights.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a quantised tensor is incomplete, its sizes disagree, or two tensors have the same canonical name,
    /// [`Error::Differences`] when listed modules are missing, [`Error::Discovery`] when CREST steps or cache compressors
    /// cannot be recognised.
    pub fn resolve(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Self> {
        let (ignored, used): (Vec<String>, Vec<String>) =
            checkpoint.names().map(String::from).partition(|name| is_ignored(name));
        let mut names: BTreeSet<String> = used.into_iter().collect();
        let mut out =
            Self { checkpoint: checkpoint.clone(), parameters: BTreeMap::new(), ignored, crest: None, kv: None };
        for weight in bnb::group(checkpoint, &mut names)? {
            let double = weight.double();
            let storage = match weight.kind {
                QuantType::Nf4 => StorageKind::Nf4 { double },
                QuantType::Fp4 => StorageKind::Fp4 { double },
            };
            let (name, shape) = (canonical(&weight.name), vec![weight.n, weight.k]);
            out.insert(name, shape, storage, weight.tensors(), StoredAs::CodeBook(weight))?;
        }
        for module in nano::group(checkpoint, &config.nanollm_modules, &mut names)? {
            let storage = match module.bits() {
                8 => StorageKind::Int8Rows,
                bits => StorageKind::MixedRows { bits },
            };
            let (name, shape) = (module.weight.clone(), vec![module.n, module.k]);
            out.insert(name, shape, storage, module.tensors(), StoredAs::Rows(module))?;
        }
        for weight in int8::group(checkpoint, &mut names)? {
            let (name, shape) = (canonical(&weight.name), vec![weight.n, weight.k]);
            out.insert(name, shape, StorageKind::Int8, weight.tensors(), StoredAs::Int8(weight))?;
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
                         complete (bitsandbytes 4-bit, int8 with weight_scale, nanollm_modules)"
                    );
                    let error = checkpoint.tensor_error(&name, message);
                    let types = vec![Dtype::F32, Dtype::F16, Dtype::Bf16];
                    let expected = TensorProperty::Typed { types, shape: info.shape.clone() };
                    return Err(error.instead(expected, info.property()).into());
                }
            };
            let shape = info.shape.clone();
            out.insert(canonical(&name), shape, storage, vec![name.clone()], StoredAs::Dense { name, dtype })?;
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
        tensors: Vec<String>,
        stored: StoredAs,
    ) -> Result<()> {
        if let Some(other) = self.parameters.get(&name) {
            let both: Vec<String> = other.info.tensors.iter().chain(&tensors).cloned().collect();
            return Err(self.stored_twice(&name, "as", both));
        }
        let bytes = tensors.iter().filter_map(|name| self.checkpoint.info(name)).map(|info| info.bytes).sum();
        let info = ParameterInfo { shape, storage, bytes, tensors };
        self.parameters.insert(name, Parameter { info, stored, rows: None });
        Ok(())
    }

    /// The tensors of the first `count` layers. Those of further layers stay as they are, and are unused.
    fn layers(&self, count: usize) -> Result<LayerTensors> {
        let mut layers = LayerTensors::new();
        for (name, parameter) in &self.parameters {
            let Some((layer, rest)) = layer_of(name).filter(|(layer, _)| *layer < count) else {
                continue;
            };
            let tensors = layers.entry(layer).or_default();
            if tensors.len() == MAX_PER_LAYER {
                let message = format!("layer {layer} holds more than {MAX_PER_LAYER} tensors");
                return Err(Error::discovery(CheckpointError::of_layer(layer, message)));
            }
            tensors.insert(rest.to_owned(), parameter.info.shape.clone());
        }
        Ok(layers)
    }

    /// Renames what discovery found.
    fn apply<T>(&mut self, found: Discovered<T>) -> Result<Option<T>> {
        let mut placed = Vec::new();
        for Rename { from, to, shape, rows } in &found.renames {
            let Some(parameter) = self.parameters.get(from) else {
                continue;
            };
            let mut parameter = parameter.clone();
            if let (Some(rows), Some(&all)) = (rows, parameter.info.shape.first()) {
                parameter.info.bytes = parameter.info.bytes.checked_div(all).unwrap_or(0).saturating_mul(rows.len());
            }
            parameter.info.shape.clone_from(shape);
            parameter.rows.clone_from(rows);
            placed.push((to.clone(), parameter));
        }
        for Rename { from, .. } in &found.renames {
            self.parameters.remove(from);
        }
        for name in &found.spare {
            if let Some(parameter) = self.parameters.remove(name) {
                self.ignored.extend(parameter.info.tensors);
            }
        }
        for (name, parameter) in placed {
            if let Some(other) = self.parameters.insert(name.clone(), parameter) {
                return Err(self.stored_twice(&name, "once as", other.info.tensors));
            }
        }
        Ok(found.found)
    }

    fn stored_twice(&self, canonical: &str, how: &str, names: Vec<String>) -> Error {
        let file = names.first().and_then(|name| self.checkpoint.file(name));
        let message = format!("is stored twice, {how} {}", list(&names));
        let names = names.iter().map(|name| shown(name)).collect();
        CheckpointError::of_tensor(canonical, message).in_file(file).found(TensorProperty::Names(names)).into()
    }
}
