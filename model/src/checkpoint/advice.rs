//! What to do about a directory or a file that holds no model in a format that is read.

use std::path::Path;

use super::dir::{INDEX, ModelDir, RECORD, SINGLE};
use super::names::{list, shown};
use crate::config::json;

/// Largest `adapter_config.json`, in bytes.
const MAX_ADAPTER_CONFIG: u64 = 1 << 20;
/// The file by which an adapter is recognised.
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Parts of tensor names that LoRA and its relatives add to a model.
const LORA: [&str; 5] = ["lora_A", "lora_B", "lora_embedding_", "lora_magnitude_vector", "lora_a"];

/// Weight formats that are recognised in order to say that they are not read, by extension.
const FOREIGN: [(&[&str], &str); 4] = [
    (
        &["bin", "pt", "pth", "ckpt"],
        "pickles are never opened, they can run code: convert the model to safetensors, for example with save_pretrained of transformers",
    ),
    (
        &["gguf", "ggml"],
        "llama.cpp's format is not read: get the model's safetensors files, or convert the model to safetensors",
    ),
    (
        &["onnx", "onnx_data"],
        "ONNX is not read: get the model's safetensors files, or convert the model to safetensors",
    ),
    (&["h5", "msgpack", "npz", "tflite", "mlmodel"], "this format is not read: convert the model to safetensors"),
];

/// What to do about a file by its name, when weights in its format are not read.
pub(super) fn of_extension(name: &str) -> Option<&'static str> {
    let extension = Path::new(name).extension()?.to_str()?.to_ascii_lowercase();
    FOREIGN.iter().find(|(extensions, _)| extensions.contains(&extension.as_str())).map(|(_, advice)| *advice)
}

/// Whether a tensor is a part of an adapter (unmerged LoRA), not of a model.
pub(super) fn is_adapter_tensor(name: &str) -> bool {
    name.split('.').any(|part| LORA.iter().any(|lora| part.starts_with(lora)))
}

/// Whether a directory holds an adapter.
pub(super) fn has_adapter(dir: &ModelDir) -> bool {
    dir.contains(ADAPTER_CONFIG) || dir.contains("adapter_model.safetensors") || dir.contains("adapter_model.bin")
}

/// What an adapter is and what to do with it, as a sentence without a path.
pub(super) fn of_adapter(dir: &ModelDir) -> String {
    let config = dir.read(ADAPTER_CONFIG, MAX_ADAPTER_CONFIG).ok().flatten().and_then(|bytes| json::parse(&bytes).ok());
    // peft's key, and that of mlx-lm.
    let base = config.as_ref().and_then(|config| {
        let text = |key: &str| config.get(key).and_then(|value| value.as_str()).filter(|text| !text.is_empty());
        text("base_model_name_or_path").or_else(|| text("model"))
    });
    let of = match base {
        Some(base) => format!("of {}", shown(base)),
        None => format!("of a base model that {ADAPTER_CONFIG} does not name"),
    };
    format!(
        "this is a LoRA adapter {of}, not a model: merge it into its base first (merge_and_unload of peft, then save_pretrained) \
         and give the directory of the merged model"
    )
}

/// Why a directory without weights that are read cannot be opened, and what to do.
pub(super) fn of_directory(dir: &ModelDir) -> crate::Result<String> {
    let entries = dir.entries()?;
    let none = format!("no {SINGLE} or {INDEX} in this directory");
    if entries.is_empty() {
        return Ok(format!("{none}: it is empty"));
    }
    if has_adapter(dir) {
        return Ok(of_adapter(dir));
    }
    let is_weights = |name: &&String| name.ends_with(".safetensors") || name.ends_with(".bpk");
    let weights: Vec<&String> = entries.iter().filter(is_weights).collect();
    if !weights.is_empty() {
        return Ok(format!("{none}; to load one of {}, give the path of the file", list(&weights)));
    }
    let foreign = entries.iter().filter_map(|name| Some((name, of_extension(name)?)));
    let foreign: Vec<(&String, &str)> = foreign.collect();
    if let Some((_, advice)) = foreign.first() {
        let names: Vec<&&String> = foreign.iter().filter(|(_, other)| other == advice).map(|(name, _)| name).collect();
        return Ok(format!("{none}, but {}: {advice}", list(&names)));
    }
    let folders: Vec<&String> = entries.iter().filter(|name| dir.path().join(name).is_dir()).collect();
    let models = models_below(dir, &folders);
    if !models.is_empty() {
        return Ok(format!("{none}; there are models in {}: give the path of one", list(&models)));
    }
    if folders.len() == entries.len() {
        return Ok(format!("{none}, only the subfolders {}: give the one that holds the model", list(&folders)));
    }
    Ok(format!("{none}: download the weights of the model as well"))
}

/// Subfolders, up to three deep (a hub cache has `models--ORG--NAME/snapshots/REVISION`), that have a config or weights.
fn models_below(dir: &ModelDir, folders: &[&String]) -> Vec<String> {
    const DEPTH: usize = 3;
    const MOST: usize = 100;
    let mut found = Vec::new();
    let mut level: Vec<String> = folders.iter().take(MOST).map(|name| (*name).clone()).collect();
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for name in &level {
            let Ok(sub) = dir.subfolder(name) else { continue };
            if ["config.json", SINGLE, INDEX, RECORD].iter().any(|file| sub.contains(file)) {
                found.push(name.clone());
                continue;
            }
            let inner = sub.entries().unwrap_or_default();
            let inner = inner.iter().take(10 * MOST).filter(|entry| sub.path().join(entry).is_dir());
            next.extend(inner.map(|entry| format!("{name}/{entry}")));
        }
        next.truncate(MOST);
        level = next;
    }
    found
}
