//! The validated config of a model.

use std::collections::BTreeMap;
use std::path::Path;

use emberlm_quant::host::FloatType;
use serde_json::{Map, Value};

use super::crest::CrestConfig;
use super::family::Family;
use super::fields::Fields;
use super::json;
use super::kv::KvCompressionConfig;
use super::layers::{LayerType, LinearAttentionConfig};
use super::limits::MAX_CONFIG_BYTES;
use super::nano::{self, NanoModule};
use super::notes::Notes;
use super::options::{ModelOptions, StatedElsewhere};
use super::quantization::QuantizationConfig;
use super::rope::RopeConfig;
use crate::checkpoint::ModelDir;
use crate::{Error, Result};

/// A validated `config.json` with its side files.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which computation the model is.
    pub family: Family,
    /// `model_type` as written.
    pub model_type: String,
    /// First of `architectures`, as written.
    pub architecture: Option<String>,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads of full attention.
    pub num_attention_heads: usize,
    /// Key and value heads of full attention; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Size of a head of full attention.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Context length, in tokens: the key of this name, longer where the rope scaling stretches it (`linear`, `dynamic`, `yarn`).
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMS norms.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// The query, key and value projections have biases.
    pub qkv_bias: bool,
    /// The output projection of attention has a bias.
    pub o_bias: bool,
    /// The projections of the feed-forward block have biases.
    pub mlp_bias: bool,
    /// The head is the embedding. Files may contradict this: the tensors decide.
    pub tie_word_embeddings: bool,
    /// Mixer of each layer.
    pub layer_types: Vec<LayerType>,
    /// Sizes of linear attention (hybrid families).
    pub linear_attention: Option<LinearAttentionConfig>,
    /// Query projections also yield a gate for the output (hybrid families).
    pub attn_output_gate: bool,
    /// Stated options of adaptive depth (CREST; empty when nothing is stated).
    pub crest: Option<CrestConfig>,
    /// Stated options of cache compression.
    pub kv_compression: Option<KvCompressionConfig>,
    /// Options that the side file `ember.json` states and no other file does.
    pub side_file: ModelOptions,
    /// Storage of the integer modules (Nano compact), by module path as written.
    pub nanollm_modules: BTreeMap<String, NanoModule>,
    /// How bitsandbytes quantised the weights.
    pub quantization: Option<QuantizationConfig>,
    /// The type that unquantised weights are said to be stored in.
    pub dtype: Option<FloatType>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// First token of a text.
    pub bos_token_id: Option<u32>,
    /// Token for padding.
    pub pad_token_id: Option<u32>,
    /// Window of sliding attention, noted: it is not in use, or as long as the context.
    pub sliding_window: Option<usize>,
    /// The config asks for Python code of its own (`auto_map`), which is never run.
    pub auto_map: bool,
    /// What is assumed, and what is stated but not used.
    pub notes: Notes,
    /// The config as it was read, for writing it again.
    pub(crate) stated: Stated,
    /// The side file `crest.json` as it was read; empty where there is none.
    pub(crate) crest_file: Stated,
}

/// A config as it is spelled. Two configs that say the same are equal, however they spell it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stated(pub(crate) Map<String, Value>);

impl PartialEq for Stated {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl ModelConfig {
    /// File name in a model directory.
    pub const FILE: &str = "config.json";

    /// The object in it that some models keep the keys of their text part in.
    pub(super) const NESTED: &str = "text_config";

    /// Reads and validates `config.json`, `crest.json` (CREST), `nano_compact_spec.json` (where the config lacks the list) and
    /// `ember.json` ([`ModelOptions`]).
    ///
    /// # Errors
    /// [`Error::Source`] without a `config.json`; [`Error::Config`] naming the key when a value is missing, of a wrong type, out
    /// of range, or asks for something that is not supported.
    pub fn from_dir(dir: &ModelDir) -> Result<Self> {
        let path = dir.path().join(Self::FILE);
        let value = read_json(dir, Self::FILE)?.ok_or_else(|| Error::Source {
            path: dir.path().into(),
            message: "no config.json in this directory".into(),
        })?;
        let mut config = Self::read(&Fields::root(&path, &value)?)?;
        if config.family == Family::Crest
            && let Some(value) = read_json(dir, CrestConfig::FILE)?
        {
            let path = dir.path().join(CrestConfig::FILE);
            let root = Fields::root(&path, &value)?;
            let side = CrestConfig::read_side_file(&root)?;
            config.crest_file = Stated(root.map().clone());
            config.crest = Some(side.or(config.crest.unwrap_or_default()));
        }
        if config.family == Family::NanoCompact && config.nanollm_modules.is_empty() {
            const SPEC: &str = "nano_compact_spec.json";
            let path = dir.path().join(SPEC);
            let missing = || {
                let message = format!("is missing, in {SPEC} as well");
                Error::config(dir.path().join(Self::FILE), "nanollm_modules", message)
            };
            let value = read_json(dir, SPEC)?.ok_or_else(missing)?;
            let modules = Fields::root(&path, &value)?.object("nanollm_modules")?.ok_or_else(missing)?;
            config.nanollm_modules = nano::read_modules(&modules)?;
        }
        if let Some(value) = read_json(dir, ModelOptions::FILE)? {
            let path = dir.path().join(ModelOptions::FILE);
            let elsewhere = StatedElsewhere {
                family: config.family,
                crest: config.crest.as_ref(),
                kv_compression: config.kv_compression.as_ref(),
                layers: config.num_hidden_layers,
                kv_dim: config.kv_dim(),
            };
            config.side_file = ModelOptions::read(&Fields::root(&path, &value)?, &elsewhere)?;
        }
        Ok(config)
    }

    /// Validates the text of a `config.json`, without side files. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Config`], as for [`Self::from_dir`].
    pub fn from_json(path: &Path, json: &[u8]) -> Result<Self> {
        let value = json::parse(json).map_err(|message| not_json(path, message))?;
        Self::read(&Fields::root(path, &value)?)
    }

    /// Width of the keys (or values) of one token, all heads together.
    pub fn kv_dim(&self) -> usize {
        self.num_key_value_heads.saturating_mul(self.head_dim)
    }
}

fn read_json(dir: &ModelDir, name: &str) -> Result<Option<Value>> {
    let Some(bytes) = dir.read(name, MAX_CONFIG_BYTES)? else {
        return Ok(None);
    };
    json::parse(&bytes).map(Some).map_err(|message| not_json(&dir.path().join(name), message))
}

pub(super) fn not_json(path: &Path, message: String) -> Error {
    Error::config(path, "", message)
}
