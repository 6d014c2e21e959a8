//! Two configs: every key that differs, and whether both mean the same model.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::checkpoint::ModelDir;
use crate::config::{Family, KvCompression, ModelConfig, Notes, is_harmless, json};
use crate::error::{Error, Result};
use crate::pretrained::Pretrained;

/// Largest config that is read, in bytes: that of the reader.
const LIMIT: u64 = 4 << 20;
/// Keys about how numbers are stored, and which of them.
const STORAGE: [&str; 5] = ["dtype", "torch_dtype", "quantization_config", "nanollm_modules", "tie_word_embeddings"];

/// How two configs differ.
#[derive(Clone, Debug, Default)]
pub struct ConfigComparison {
    /// Both mean the same model: what is read is the same, and so is every key that is not.
    pub same: bool,
    /// Keys whose values differ.
    pub keys: Vec<KeyDifference>,
}

/// A key whose values differ.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyDifference {
    /// With its parents.
    pub key: String,
    /// In the first config; none where it is not there.
    pub first: Option<Value>,
    /// In the second.
    pub second: Option<Value>,
    /// It can change the numbers: it is about neither storage nor who wrote the file.
    pub counts: bool,
}

pub(super) fn compare(first: &Pretrained, second: &Pretrained) -> Result<ConfigComparison> {
    let (a, b) = (Stated::read(first)?, Stated::read(second)?);
    let places: BTreeSet<&String> = a.values.keys().chain(b.values.keys()).collect();
    let differing = places.into_iter().filter(|place| a.values.get(*place) != b.values.get(*place));
    let keys: Vec<KeyDifference> = differing
        .map(|place| KeyDifference {
            key: place.clone(),
            first: a.values.get(place).cloned(),
            second: b.values.get(place).cloned(),
            counts: !is_harmless(place) && !is_storage(place),
        })
        .collect();
    let unread = |key: &KeyDifference| a.is_unread(&key.key) || b.is_unread(&key.key);
    let meant = |model: &Pretrained| {
        let architecture = model.architecture();
        // What is cached is a choice of the caller.
        let compression =
            architecture.kv_compression.clone().map(|codes| KvCompression { cache_hidden: false, ..codes });
        (meaning(&architecture.config), architecture.crest.clone(), compression)
    };
    Ok(ConfigComparison { same: meant(first) == meant(second) && !keys.iter().any(unread), keys })
}

/// Whether a key is about how numbers are stored.
fn is_storage(place: &str) -> bool {
    STORAGE.iter().any(|key| place.split('.').next() == Some(key) || place.strip_prefix("text_config.") == Some(key))
}

/// The family whose body a model has. What else it has, or how it is stored, is compared apart.
fn body(family: Family) -> Family {
    match family {
        Family::NanoCompact | Family::Qwen2 => Family::Qwen2,
        Family::LeanLlama | Family::Llama => Family::Llama,
        Family::Crest | Family::Qwen3_5 => Family::Qwen3_5,
    }
}

/// A config without what does not change the numbers.
fn meaning(config: &ModelConfig) -> ModelConfig {
    ModelConfig {
        family: body(config.family),
        model_type: String::new(),
        architecture: None,
        crest: None,
        kv_compression: None,
        nanollm_modules: BTreeMap::new(),
        quantization: None,
        dtype: None,
        pad_token_id: None,
        auto_map: false,
        notes: Notes::default(),
        // Which tensors there are says it.
        tie_word_embeddings: false,
        ..config.clone()
    }
}

/// The keys of a config.
struct Stated {
    values: BTreeMap<String, Value>,
    unread: BTreeSet<String>,
}

impl Stated {
    fn read(model: &Pretrained) -> Result<Self> {
        let dir: &ModelDir = model.weights().checkpoint().dir();
        let path = dir.path().join(ModelConfig::FILE);
        let bytes = dir.read(ModelConfig::FILE, LIMIT)?.unwrap_or_default();
        let value = json::parse(&bytes).map_err(|message| Error::config(&path, "", message))?;
        let mut values = BTreeMap::new();
        flatten("", &value, &mut values);
        let unread = ModelConfig::unread_keys(&path, &bytes)?.into_iter().map(|(key, _)| key).collect();
        Ok(Self { values, unread })
    }

    fn is_unread(&self, place: &str) -> bool {
        let parents = place.match_indices('.').filter_map(|(dot, _)| place.get(..dot));
        parents.chain([place]).any(|key| self.unread.contains(key))
    }
}

/// The leaves of an object; lists are leaves.
fn flatten(at: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let place = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                flatten(&place, value, out);
            }
        }
        leaf => {
            out.insert(at.to_owned(), leaf.clone());
        }
    }
}
