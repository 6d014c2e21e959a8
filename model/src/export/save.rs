//! Writing a model that is in memory, trained or quantised at load, as a directory that loads again.

use std::collections::BTreeSet;
use std::path::Path;

use emberlm_quant::CompactBackend;
use emberlm_quant::host::{FloatType, HostStorage, HostWeight};
use serde_json::{Map, Value, json};

use super::files;
use super::modules::{Held, tensors};
use crate::causal_lm::CausalLm;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::writer::{
    CodeBookLayout, Job, OutputDir, RowLayout, ShardFile, Slot, StoredTensor, check_space, check_target,
    code_book_slots, dense_slots, encode, int8_slots,
};
use crate::config::{CrestOptions, Family, ModelConfig};
use crate::error::{Error, Result};
use crate::nn::FeedForward;
use crate::pretrained::Pretrained;

const FILE: &str = "model.safetensors";
const EMBEDDING: &str = "model.embed_tokens.weight";

impl<B: CompactBackend> CausalLm<B> {
    /// Writes `config.json` and `model.safetensors` to a directory that does not exist or is empty, and that [`Pretrained::open`] loads
    /// again. Every matrix is written as the device holds it: packed codes as codes, numbers that were trained as F32. What is no matrix
    /// is F32. Tokenizer, chat template and generation defaults are not part of a model: [`Pretrained::save`] writes those of a checkpoint beside it.
    ///
    /// One tensor is read back at a time. The directory appears when it is complete; after an error nothing is left.
    ///
    /// [`Pretrained::open`]: crate::Pretrained::open
    /// [`Pretrained::save`]: crate::Pretrained::save
    ///
    /// # Errors
    /// [`Error::Source`] when there is something at `dir`, [`Error::Space`] when the disk has too little room, [`Error::Device`] when the
    /// device fails, [`Error::Tensor`] for a matrix that it holds in parts and for numbers that are not finite, which would not load again,
    /// [`Error::Io`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.save_beside(dir.as_ref(), &[])
    }

    /// As [`save`](Self::save), with files of these names and contents.
    fn save_beside(&self, dir: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
        check_target(dir)?;
        let list = tensors(self);
        let names: BTreeSet<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
        let stored = self.architecture().config.dtype.unwrap_or(FloatType::Bf16);
        let mut modules = Map::new();
        let mut slots = Vec::new();
        for (name, held) in &list {
            slots.extend(slots_of(name, held, stored, &names, &mut modules)?);
        }
        check_space(dir, slots.iter().map(|slot| slot.bytes() as u64).sum())?;
        let config = self.written_config(&slots, modules);

        // What is in memory has no name: a run that was cut off cannot go on.
        let fingerprint =
            format!("{:x}-{:x}", std::process::id(), std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos()));
        let output = OutputDir::open(dir, &Job { about: "a model that was in memory".into(), fingerprint })?;
        let write = || {
            let mut file = ShardFile::create(&output.part(FILE), slots.iter())?;
            for (name, held) in &list {
                for tensor in encoded(name, held, stored)? {
                    file.push(tensor, &mut |_, _, _| ())?;
                }
            }
            file.finish(&mut |_, _, _| ())?;
            output.complete(FILE)?;
            for (name, bytes) in files {
                output.write(name, bytes)?;
            }
            output.write(ModelConfig::FILE, format!("{:#}\n", Value::Object(config)).as_bytes())
        };
        match write() {
            Ok(()) => output.commit(),
            Err(error) => {
                let files = files.iter().map(|(name, _)| name.as_str());
                output.discard([FILE, ModelConfig::FILE].into_iter().chain(files));
                Err(error)
            }
        }
    }

    /// The config that was read, with what is different now.
    fn written_config(&self, slots: &[Slot], modules: Map<String, Value>) -> Map<String, Value> {
        let architecture = self.architecture();
        let mut config = architecture.config.stated.0.clone();
        let mut text = match config.shift_remove("text_config") {
            Some(Value::Object(text)) => Some(text),
            _ => None,
        };
        for part in [Some(&mut config), text.as_mut()].into_iter().flatten() {
            part.shift_remove("quantization_config");
            part.shift_remove("nanollm_modules");
            part.shift_remove("tie_word_embeddings");
        }
        config.insert("tie_word_embeddings".into(), architecture.tied_head.into());
        let options = self.model.layers.iter().find_map(|layer| match &layer.mlp {
            FeedForward::Crest(mlp) => Some((mlp.options(), mlp.steps.len())),
            FeedForward::Dense(_) => None,
        });
        if let Some((options, steps)) = options {
            text.as_mut().unwrap_or(&mut config).insert("crest".into(), crest(options, steps));
        }
        // Of Nano compact on the Qwen2 body the integer rows are a part.
        let nano = architecture.config.family == Family::NanoCompact;
        if nano && modules.is_empty() {
            config.insert("architectures".into(), json!(["Qwen2ForCausalLM"]));
        }
        let quantized =
            slots.iter().any(|slot| slot.name.contains(".quant_state.") || slot.name.ends_with(".weight_scale"));
        if quantized || (!modules.is_empty() && !nano) {
            config.insert("quantization_config".into(), json!({ "quant_method": "emberlm" }));
        }
        if !modules.is_empty() {
            config.insert("nanollm_modules".into(), modules.into());
        }
        if let Some(text) = text {
            config.insert("text_config".into(), text.into());
        }
        config
    }
}

impl Pretrained {
    /// Writes a model that was loaded from this checkpoint, and then trained or changed, with the checkpoint's tokenizer, chat template,
    /// generation defaults and license beside it; see [`CausalLm::save`].
    ///
    /// # Errors
    /// As [`CausalLm::save`], and when one of these files cannot be read.
    pub fn save<B: CompactBackend>(&self, model: &CausalLm<B>, dir: impl AsRef<Path>) -> Result<()> {
        model.save_beside(dir.as_ref(), &files::read(self.weights().checkpoint().dir())?)
    }
}

/// The tensors of the file that a tensor of the model becomes; rows are entered in `modules`. `names` are those of all tensors.
fn slots_of<B: CompactBackend>(
    name: &str,
    held: &Held<'_, B>,
    stored: FloatType,
    names: &BTreeSet<&str>,
    modules: &mut Map<String, Value>,
) -> Result<Vec<Slot>> {
    let Held::Weight(_) = held else {
        let shape = held.numbers()?.map(|data| data.shape.iter().copied().collect::<Vec<usize>>());
        return Ok(dense_slots(name, FloatType::F32, &shape.unwrap_or_default()));
    };
    let weight = to_host(name, held, stored)?;
    let path = name.strip_suffix(".weight").unwrap_or(name);
    if let Some(layout) = row_layout(name, &weight) {
        let has_bias = names.contains(format!("{path}.bias").as_str());
        modules.insert(path.into(), layout.spec([weight.n, weight.k], has_bias));
    }
    Ok(weight_slots(name, &weight))
}

fn encoded<B: CompactBackend>(name: &str, held: &Held<'_, B>, stored: FloatType) -> Result<Vec<StoredTensor>> {
    let Some(data) = held.numbers()? else {
        let weight = to_host(name, held, stored)?;
        if let HostStorage::Dense(float, data) = &weight.storage {
            finite(name, float.first_non_finite(data))?;
        }
        let slots = weight_slots(name, &weight);
        return match row_layout(name, &weight) {
            Some(layout) => layout.encode(&slots, &weight),
            None => encode(&slots, &weight),
        };
    };
    finite(name, data.iter::<f32>().position(|number| !number.is_finite()))?;
    let shape: Vec<usize> = data.shape.iter().copied().collect();
    let numbers: Vec<u8> = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
    dense_slots(name, FloatType::F32, &shape).into_iter().map(|slot| slot.fill(numbers.clone().into())).collect()
}

/// Refuses a tensor whose element at this place is no finite number.
fn finite(name: &str, bad: Option<usize>) -> Result<()> {
    let told = |i| format!("element {i} is not a finite number: the model would not load again");
    bad.map_or(Ok(()), |i| Err(CheckpointError::of_tensor(name, told(i)).into()))
}

fn to_host<B: CompactBackend>(name: &str, held: &Held<'_, B>, stored: FloatType) -> Result<HostWeight> {
    let fail = |message: String| Error::from(CheckpointError::of_tensor(name, message));
    let Held::Weight(weight) = held else { return Err(fail("is no matrix".into())) };
    weight.to_host(stored).map_err(|error| fail(error.to_string()))
}

fn weight_slots(name: &str, weight: &HostWeight) -> Vec<Slot> {
    let shape = [weight.n, weight.k];
    match &weight.storage {
        HostStorage::Dense(float, _) => dense_slots(name, *float, &shape),
        HostStorage::CodeBook4(w) => code_book_slots(name, shape, CodeBookLayout::of(w)),
        HostStorage::Int8(_) => int8_slots(name, shape),
        HostStorage::Rows(rows) => {
            RowLayout::of(rows, weight.n, name == EMBEDDING).slots(name.strip_suffix(".weight").unwrap_or(name), shape)
        }
    }
}

fn row_layout(name: &str, weight: &HostWeight) -> Option<RowLayout> {
    match &weight.storage {
        HostStorage::Rows(rows) => Some(RowLayout::of(rows, weight.n, name == EMBEDDING)),
        _ => None,
    }
}

/// Every option that is in force, of a model with so many MLPs.
fn crest(options: &CrestOptions, steps: usize) -> Value {
    let mut out = json!({
        "num_steps": options.num_steps, "step_input": options.step_input.as_str(), "gate_input": options.gate_input.as_str(),
        "halt_mode": options.halt_mode.as_str(), "halt_threshold": options.halt_threshold,
        "halt_weights": options.halt_weights.as_str(), "halt_enabled": options.halt_enabled,
    });
    if let (true, Some(out)) = (steps > 1, out.as_object_mut()) {
        out.insert("gate_hidden".into(), options.gate_hidden.into());
        out.insert("gate_bias".into(), options.gate_bias.into());
        if steps > 2 {
            out.insert("gate_shared".into(), options.gate_shared.into());
        }
    }
    out
}
