//! Known model sizes, to be filled with random weights: for benchmarks and estimates without a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use emberlm_model::config::{
    CrestConfig, CrestOptions, CrestOverrides, DiscoveredCrest, DiscoveredKvCompression, KvCodec, KvCompression,
    KvCompressionConfig, KvTarget, ModelConfig,
};
use emberlm_model::{Architecture, Error, Result};

/// Names and configs. `lean-8b` compresses the values of its upper half with codes of 4 (sizes of the published 70B
/// sibling; those of the 8B are not published).
const SHAPES: [(&str, &str); 6] = [
    ("bench-1b", include_str!("shapes/bench-1b.json")),
    ("crest-2b", include_str!("shapes/crest-2b.json")),
    ("crest-11b", include_str!("shapes/crest-11b.json")),
    ("sky-lite", include_str!("shapes/sky-lite.json")),
    ("lean-8b", include_str!("shapes/lean-8b.json")),
    ("nano-3b", include_str!("shapes/nano-3b.json")),
];

/// Names of the built-in shapes.
pub fn shape_names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|(name, _)| *name)
}

/// The architecture of a built-in shape, or of a `config.json` at a path ending in `.json`.
///
/// # Errors
/// [`Error::Option`] naming the built-in shapes when there is none of this name, or when something is asked of a depth that the shape has
/// not; [`Error::Config`] when a file's values cannot be
/// used.
pub fn shape(name: &str, depth: &CrestOverrides) -> Result<Architecture> {
    let config = ModelConfig::from_json(Path::new(name), shape_json(name)?.as_bytes())?;
    let crest = match &config.crest {
        Some(stated) => Some(CrestOptions::resolve(stated, &stated_steps(stated), depth)?),
        None => depth.refuse_beside(config.family).map(|()| None)?,
    };
    let found = config.kv_compression.as_ref().map(|stated| stated_compressors(stated, &config));
    let kv_compression = KvCompression::resolve(config.kv_compression.as_ref(), found.as_ref())?;
    let tied_head = config.tie_word_embeddings;
    Ok(Architecture { crest, kv_compression, tied_head, config })
}

/// The `config.json` of a shape, as [`shape`] takes it.
///
/// # Errors
/// As [`shape`], and [`Error::Io`] when a file cannot be read.
pub fn shape_json(name: &str) -> Result<String> {
    if let Some((_, json)) = SHAPES.iter().find(|(known, _)| *known == name) {
        return Ok((*json).to_string());
    }
    if name.ends_with(".json") {
        return std::fs::read_to_string(name).map_err(|error| Error::Io { path: name.into(), error });
    }
    let known: Vec<&str> = shape_names().collect();
    let message = format!("\"{name}\" is not known; use {} or the path of a config.json", known.join(", "));
    Err(Error::Option { option: "shape".into(), message })
}

/// What tensors would show, had they been made from the stated options.
fn stated_steps(stated: &CrestConfig) -> DiscoveredCrest {
    DiscoveredCrest {
        num_steps: stated.num_steps.unwrap_or(4),
        gate_shared: stated.gate_shared.unwrap_or(true),
        gate_hidden: stated.gate_hidden.flatten(),
        gate_bias: stated.gate_bias.unwrap_or(true),
    }
}

fn stated_compressors(stated: &KvCompressionConfig, config: &ModelConfig) -> DiscoveredKvCompression {
    let codec = KvCodec {
        code_dim: stated.code_dim.unwrap_or(4),
        width: config.kv_dim(),
        hidden_dim: stated.hidden_dim.unwrap_or(Some(128)),
        encoder_bias: stated.encoder_bias.unwrap_or(false),
        decoder_bias: stated.decoder_bias.unwrap_or(true),
    };
    let values_only = [KvTarget::Value].into();
    let targets = stated.targets.as_ref().unwrap_or(&values_only);
    let codecs: BTreeMap<KvTarget, KvCodec> = targets.iter().map(|&target| (target, codec)).collect();
    let layers = stated.layers.clone().unwrap_or_default();
    DiscoveredKvCompression { layers: layers.into_iter().map(|layer| (layer, codecs.clone())).collect() }
}
