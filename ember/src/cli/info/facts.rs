//! The facts that `ember info` tells, in the form of its JSON.

use emberlm::model::config::GenerationDefaults;
use serde::Serialize;

use crate::cli::estimate::Estimate;

/// Everything that the command tells.
#[derive(Debug, Serialize)]
pub struct Info {
    /// Directory of the files.
    pub path: String,
    /// Which computation the model is.
    pub family: &'static str,
    /// As config.json has it.
    pub model_type: String,
    /// As config.json has it.
    pub architecture: Option<String>,
    /// config.json asks for Python code of its own, which is never run.
    pub auto_map: bool,
    /// Sizes of the model.
    pub sizes: Sizes,
    /// Base and scaling of the rotary embedding.
    pub rope: String,
    /// Weights, counted.
    pub parameters: usize,
    /// Bytes of the weights.
    pub weights: WeightsInfo,
    /// To what this processor rounds activations unless told otherwise, or `exact`.
    pub activations: String,
    /// The head is the embedding.
    pub tied_head: bool,
    /// Tensors of the file that the model does not need.
    pub ignored_tensors: usize,
    /// What was assumed because the files do not state it, and what they state but is not used.
    pub notes: Vec<String>,
    /// Adaptive depth.
    pub crest: Option<CrestInfo>,
    /// Compressed caches.
    pub kv_compression: Option<KvInfo>,
    /// Bytes of the cache.
    pub cache: CacheInfo,
    /// Memory for a sequence.
    pub estimate: Estimates,
    /// The author's defaults; null where they state none.
    pub generation: GenerationDefaults,
    /// Tokens that end a text.
    pub stop_tokens: Vec<StopToken>,
    /// Whether there is a chat template; null when the tokenizer cannot be read.
    pub chat_template: Option<bool>,
    /// Why the tokenizer cannot be read.
    pub tokenizer_error: Option<String>,
}

/// Sizes of a model.
#[derive(Debug, Serialize)]
pub struct Sizes {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub full_attention_layers: usize,
    pub linear_attention_layers: usize,
    pub attention_heads: usize,
    pub key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    /// Tokens.
    pub context: usize,
}

/// Bytes of the weights.
#[derive(Debug, Serialize)]
pub struct WeightsInfo {
    /// In the files.
    pub stored_bytes: usize,
    /// On the device.
    pub bytes: usize,
    /// On the device and in flight while loading.
    pub peak_load_bytes: usize,
    /// By the way they are held on the device.
    pub by_storage: Vec<WeightGroup>,
    /// By part of the model.
    pub by_part: Vec<WeightGroup>,
}

/// Some of the weights.
#[derive(Debug, Default, Serialize)]
pub struct WeightGroup {
    pub name: String,
    pub tensors: usize,
    pub parameters: usize,
    pub stored_bytes: usize,
    pub bytes: usize,
}

/// Adaptive depth.
#[derive(Debug, Serialize)]
pub struct CrestInfo {
    /// MLPs per layer in the files.
    pub steps_in_checkpoint: usize,
    /// What the model runs with.
    pub options: Vec<CrestOption>,
    /// Keys of the `crest` object that mean nothing.
    pub ignored_keys: Vec<String>,
}

/// An option and where it comes from.
#[derive(Debug, Serialize)]
pub struct CrestOption {
    pub name: &'static str,
    pub value: serde_json::Value,
    pub source: OptionSource,
}

/// Where an option comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OptionSource {
    /// A flag of this command.
    Overridden,
    /// config.json or crest.json.
    Stated,
    /// The side file of `ember probe --write`.
    #[serde(rename = "ember.json")]
    SideFile,
    /// Shown by the tensors.
    Found,
    /// Neither.
    Default,
}

/// Compressed caches.
#[derive(Debug, Serialize)]
pub struct KvInfo {
    pub activation: &'static str,
    pub activation_source: OptionSource,
    pub k_stage: &'static str,
    pub k_stage_source: OptionSource,
    pub compressors: Vec<Compressor>,
}

/// What compresses the keys or the values of a layer.
#[derive(Debug, Serialize)]
pub struct Compressor {
    pub layer: usize,
    /// `k` or `v`.
    pub target: &'static str,
    /// Numbers per token in the cache, for each of `width` numbers, unless hidden values are.
    pub code_dim: usize,
    pub width: usize,
    pub hidden_dim: Option<usize>,
    /// Whether its hidden values are cached in place of codes.
    pub cache_hidden: bool,
    pub encoder_bias: bool,
    pub decoder_bias: bool,
}

/// Bytes of the cache.
#[derive(Debug, Serialize)]
pub struct CacheInfo {
    pub bytes_per_token: ByFormat<usize>,
    /// Whatever its length.
    pub bytes_per_sequence: usize,
}

/// By number format of the cache.
#[derive(Debug, Serialize)]
pub struct ByFormat<T> {
    pub q8: T,
    pub f16: T,
    pub f32: T,
}

/// Memory for a sequence.
#[derive(Debug, Serialize)]
pub struct Estimates {
    #[serde(flatten)]
    pub by_format: ByFormat<Estimate>,
    pub formula: String,
}

/// A token that ends a text.
#[derive(Debug, Serialize)]
pub struct StopToken {
    pub id: u32,
    /// Null when the tokenizer does not have it.
    pub text: Option<String>,
}
