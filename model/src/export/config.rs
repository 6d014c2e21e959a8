//! `config.json` and the side files that say how weights are stored.

use std::collections::BTreeSet;

use emberlm_quant::host::FloatType;
use serde_json::{Map, Value, json};

use super::item::{Item, Work};
use super::matrix::ExportedMatrix;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::{ModelDir, StorageKind};
use crate::config::{CrestConfig, Family, ModelConfig, json as strict_json};
use crate::error::{Error, Result};
use crate::pretrained::Pretrained;
use crate::tensors::TensorRole;

const NANO_SPEC: &str = "nano_compact_spec.json";
const MODULES: &str = "nanollm_modules";
const QUANTIZATION: &str = "quantization_config";
/// Longest of these files, in bytes: they were read before.
const LIMIT: u64 = 64 << 20;

/// What the config has to tell.
pub(super) struct Facts<'a> {
    pub(super) pretrained: &'a Pretrained,
    pub(super) matrices: &'a [ExportedMatrix],
    pub(super) items: &'a [Item],
    pub(super) dense: Option<FloatType>,
}

/// Names and contents of the side files and of `config.json`, which comes last.
pub(super) fn files(facts: &Facts) -> Result<Vec<(String, Vec<u8>)>> {
    let dir = facts.pretrained.weights().checkpoint().dir();
    let mut out = Vec::new();
    let mut config = read(dir, ModelConfig::FILE)?.unwrap_or_default();
    let steps = facts.fewer_steps();
    if let Some(mut side) = read(dir, CrestConfig::FILE)? {
        if let (Some(steps), Some(stated)) = (steps, side.get_mut("num_steps")) {
            *stated = steps.into();
        }
        out.push((CrestConfig::FILE.to_owned(), text(&Value::Object(side))));
    }
    if let Some(steps) = steps {
        in_text(&mut config, |text| {
            if let Some(stated) = text.get_mut("crest").and_then(|crest| crest.get_mut("num_steps")) {
                *stated = steps.into();
            }
        });
    }
    if let Some(float) = facts.dense {
        state_type(&mut config, float);
    }
    let changed = facts.matrices.iter().any(|matrix| matrix.stored != matrix.written);
    let modules = facts.modules(dir, &config)?;
    if changed {
        in_text(&mut config, |text| {
            text.shift_remove(QUANTIZATION);
            text.shift_remove(MODULES);
        });
        if !modules.is_empty() {
            config.insert(MODULES.into(), modules.clone().into());
        }
        if let Some(quantization) = facts.quantization(&config) {
            config.insert(QUANTIZATION.into(), quantization);
        }
        facts.state_nano(&mut config, !modules.is_empty())?;
    }
    if !modules.is_empty() && facts.pretrained.architecture().config.model_type == "qwen2" {
        let spec = match read(dir, NANO_SPEC)?.filter(|_| !changed) {
            Some(spec) => spec,
            None => facts.nano_spec(&modules),
        };
        out.push((NANO_SPEC.to_owned(), text(&Value::Object(spec))));
    }
    out.push((ModelConfig::FILE.to_owned(), text(&Value::Object(config))));
    Ok(out)
}

impl Facts<'_> {
    /// The number of steps, where some are left out.
    fn fewer_steps(&self) -> Option<usize> {
        let stored = self.pretrained.weights().discovered_crest()?.num_steps;
        let kept = self.pretrained.architecture().crest.as_ref()?.num_steps;
        (kept < stored).then_some(kept)
    }

    /// `nanollm_modules` of what is written.
    fn modules(&self, dir: &ModelDir, config: &Map<String, Value>) -> Result<Map<String, Value>> {
        let nested = config.get("text_config").and_then(|text| text.get(MODULES));
        let mut stated = nested.or(config.get(MODULES)).and_then(Value::as_object).cloned();
        if stated.is_none() {
            stated = read(dir, NANO_SPEC)?.and_then(|spec| spec.get(MODULES)?.as_object().cloned());
        }
        let stated = stated.unwrap_or_default();
        let names: BTreeSet<&str> = self.pretrained.weights().checkpoint().names().collect();
        let mut out = Map::new();
        for item in self.items {
            let Some(file_name) = self.pretrained.weights().file_name(&item.parameter) else { continue };
            let Some(path) = file_name.strip_suffix(".weight") else { continue };
            match &item.work {
                Work::Rows(layout) => {
                    let Some(&[n, k]) =
                        self.pretrained.weights().entry(&item.parameter).map(|entry| entry.shape.as_slice())
                    else {
                        continue;
                    };
                    out.insert(path.into(), layout.spec([n, k], names.contains(format!("{path}.bias").as_str())));
                }
                Work::Copy(_) => {
                    // The list may spell prefixes in another way than the tensors.
                    let ends = |long: &str, end: &str| long.strip_suffix(end).is_some_and(|rest| rest.ends_with('.'));
                    let same = |key: &str| key == path || ends(path, key) || ends(key, path);
                    if let Some((key, spec)) = stated.iter().find(|(key, _)| same(key)) {
                        out.insert(key.clone(), spec.clone());
                    }
                }
                _ => {}
            }
        }
        Ok(out)
    }

    /// `quantization_config`, where one is needed. Only what another program reads as it is meant gets that program's name; what it
    /// would read wrongly has ours, so that it is refused there.
    fn quantization(&self, config: &Map<String, Value>) -> Option<Value> {
        let quantized = || self.matrices.iter().filter(|matrix| matrix.written.is_quantized());
        let first = quantized().next()?;
        let uniform = quantized().all(|matrix| matrix.written == first.written);
        let linears = quantized().all(|matrix| matrix.role != TensorRole::Embedding);
        let whole_blocks = quantized().all(|matrix| matrix.shape.last().is_some_and(|k| k.is_multiple_of(64)));
        let rows = |storage| matches!(storage, StorageKind::Int8Rows | StorageKind::MixedRows { .. });
        match first.written {
            StorageKind::Nf4 { double } if uniform && linears => {
                let float = config.get("dtype").or(config.get("torch_dtype")).and_then(Value::as_str);
                let skipped = self.skipped();
                // What transformers leaves out by itself.
                let skipped = if skipped == ["lm_head"] { Value::Null } else { skipped.into() };
                Some(json!({
                    "_load_in_4bit": true, "_load_in_8bit": false,
                    "bnb_4bit_compute_dtype": float.unwrap_or("bfloat16"), "bnb_4bit_quant_storage": "uint8",
                    "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double,
                    "llm_int8_enable_fp32_cpu_offload": false, "llm_int8_has_fp16_weight": false,
                    "llm_int8_skip_modules": skipped, "llm_int8_threshold": 6.0,
                    "load_in_4bit": true, "load_in_8bit": false, "quant_method": "bitsandbytes",
                }))
            }
            StorageKind::Int8 if uniform && linears && whole_blocks => {
                let weights = json!({
                    "num_bits": 8, "type": "int", "symmetric": true, "strategy": "group", "group_size": 64,
                    "dynamic": false, "observer": "minmax",
                });
                // Stated for the group, too: compressed-tensors takes weights alone for packed ones otherwise.
                let group = json!({ "targets": ["Linear"], "format": "int-quantized", "weights": weights, "input_activations": null, "output_activations": null });
                Some(json!({
                    "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
                    "config_groups": { "group_0": group }, "ignore": self.skipped(), "kv_cache_scheme": null,
                }))
            }
            _ if quantized().all(|matrix| rows(matrix.written)) && self.body() == "qwen2" => None,
            _ => {
                let formats: BTreeSet<String> = quantized().map(|matrix| matrix.written.to_string()).collect();
                Some(json!({ "quant_method": "emberlm", "formats": formats }))
            }
        }
    }

    fn body(&self) -> &str {
        &self.pretrained.architecture().config.model_type
    }

    /// Paths of the linears that stay dense.
    fn skipped(&self) -> Vec<String> {
        let dense = self.matrices.iter().filter(|m| m.role != TensorRole::Embedding && m.written.is_dense());
        let path = |name: &str| name.strip_suffix(".weight").unwrap_or(name).to_owned();
        let mut out: Vec<String> = dense.map(|matrix| path(&matrix.file_name)).collect();
        if self.pretrained.architecture().tied_head {
            out.push("lm_head".into());
        }
        out
    }

    /// Names of the architecture that go with integer rows (Nano compact on the Qwen2 body) or without.
    fn state_nano(&self, config: &mut Map<String, Value>, has_modules: bool) -> Result<()> {
        let architecture = self.pretrained.architecture();
        if self.body() == "qwen2" && has_modules {
            config.insert("architectures".into(), json!(["NanoQwenForCausalLM"]));
        }
        if architecture.config.family != Family::NanoCompact || has_modules {
            return Ok(());
        }
        let stray = self.items.iter().find(|item| {
            item.parameter.ends_with(".bias") && [".o_proj.", ".mlp."].iter().any(|part| item.parameter.contains(part))
        });
        if let Some(stray) = stray {
            let message = "is a bias that the Qwen2 body does not have: without integer rows there is no config for it";
            return Err(CheckpointError::of_tensor(&stray.parameter, message).into());
        }
        config.insert("architectures".into(), json!(["Qwen2ForCausalLM"]));
        config.insert("model_type".into(), "qwen2".into());
        config.insert("tie_word_embeddings".into(), architecture.tied_head.into());
        config.shift_remove("auto_map");
        Ok(())
    }

    /// `nano_compact_spec.json`, as the author's exporter has it where that is known.
    fn nano_spec(&self, modules: &Map<String, Value>) -> Map<String, Value> {
        let name = self.pretrained.directory().file_name().map(|name| name.to_string_lossy().into_owned());
        let spec = json!({
            "format": "nano-compact-canonical-v1",
            "base_model_id": name.unwrap_or_default(),
            "source_artifact_format": "safetensors",
            "promoted_fp16_modules": self.skipped().into_iter().filter(|path| path != "lm_head").collect::<Vec<_>>(),
            "quantized_modules": modules.keys().collect::<Vec<_>>(),
            MODULES: modules,
        });
        spec.as_object().cloned().unwrap_or_default()
    }
}

/// Changes the top level, and the part for text where there is one.
fn in_text(config: &mut Map<String, Value>, change: impl Fn(&mut Map<String, Value>)) {
    change(config);
    if let Some(Value::Object(text)) = config.get_mut("text_config") {
        change(text);
    }
}

/// The type of the weights, under the spelling that is there.
fn state_type(config: &mut Map<String, Value>, float: FloatType) {
    let name = match float {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
    };
    let keys = ["dtype", "torch_dtype"];
    in_text(config, |text| {
        for key in keys {
            if let Some(value) = text.get_mut(key) {
                *value = name.into();
            }
        }
    });
    let nested = config.get("text_config").and_then(Value::as_object);
    let is_stated =
        keys.iter().any(|key| config.contains_key(*key) || nested.is_some_and(|text| text.contains_key(*key)));
    if !is_stated {
        config.insert("dtype".into(), name.into());
    }
}

fn read(dir: &ModelDir, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = dir.read(name, LIMIT)? else { return Ok(None) };
    let error = |message: String| Error::config(dir.path().join(name), "", message);
    match strict_json::parse(&bytes).map_err(error)? {
        Value::Object(map) => Ok(Some(map)),
        _ => Err(error("is not an object".into())),
    }
}

fn text(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
