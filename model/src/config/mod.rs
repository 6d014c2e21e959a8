//! `config.json` and its companions, parsed into types that cannot be wrong.
//!
//! Every number is checked against a range when it is read, so that model code may multiply sizes and divide by heads
//! without a thought. Text keys may be flat or under `text_config`; the spellings of transformers 4 and 5 are both read.
//! `auto_map` is noted, never followed.

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

mod body;
mod crest;
mod fields;
mod generation;
pub(crate) mod json;
mod kv;
mod limits;
mod nano;
mod quantization;
mod rope;
mod rope_scaling;

use std::collections::BTreeMap;
use std::path::Path;

use emberlm_quant::host::FloatType;
use serde_json::Value;

pub use body::Notes;
pub use crest::{CrestConfig, CrestFound, CrestOptions, CrestOverrides, GateInput, HaltMode, HaltWeights, StepInput};
use fields::{Fields, spelled};
pub use generation::GenerationConfig;
pub use kv::{KStage, KvActivation, KvCodec, KvCompression, KvCompressionConfig, KvCompressionFound, KvTarget};
use limits::{MixerSizes, check_mixers};
pub use nano::{NanoKind, NanoModule};
pub use quantization::{QuantType, QuantizationConfig};
pub use rope::RopeConfig;
use rope_scaling::RopeContext;
pub use rope_scaling::{DynamicScaling, Llama3Scaling, LongRopeScaling, RopeScaling, YarnScaling};

use crate::checkpoint::ModelDir;
use crate::checkpoint::names::shown;
use crate::{Error, Result};

/// Largest `config.json`, in bytes: two hundred times the largest known one.
pub(crate) const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Largest hidden or intermediate size.
const MAX_WIDTH: usize = 1 << 22;
const MAX_LAYERS: usize = 1024;
const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 4096;
const MAX_VOCABULARY: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 28;

spelled! {
    /// A model family.
    Family("family") {
        /// Sky v2.0: adaptive depth on the Qwen3.5 body.
        Crest = "crest",
        /// Nano compact: Qwen2 with integer rows.
        NanoCompact = "nano-compact",
        /// LeanLlama: Llama with a compressed cache.
        LeanLlama = "leanllama",
        /// Qwen3.5, text part.
        Qwen3_5 = "qwen3_5",
        /// Qwen2 and Qwen2.5.
        Qwen2 = "qwen2",
        /// Llama.
        Llama = "llama",
    }
}

impl Family {
    /// Whether layers mix linear and full attention (the Qwen3.5 body).
    pub fn is_hybrid(self) -> bool {
        matches!(self, Self::Crest | Self::Qwen3_5)
    }

    /// Whether the query, key and value projections have biases whatever the config says (the Qwen2 body).
    pub fn has_qkv_bias(self) -> bool {
        matches!(self, Self::NanoCompact | Self::Qwen2)
    }
}

spelled! {
    /// The mixer of a layer.
    LayerType("layer_types") {
        /// Gated DeltaNet.
        LinearAttention = "linear_attention",
        /// Softmax attention.
        FullAttention = "full_attention",
    }
}

/// Sizes of the Gated DeltaNet layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearAttentionConfig {
    /// Query and key heads; divides `num_value_heads`.
    pub num_key_heads: usize,
    /// Value heads.
    pub num_value_heads: usize,
    /// Size of a query or key head.
    pub key_head_dim: usize,
    /// Size of a value head.
    pub value_head_dim: usize,
    /// Taps of the causal convolution.
    pub conv_kernel_dim: usize,
}

impl LinearAttentionConfig {
    /// Numbers of all query heads, or of all key heads.
    pub fn key_width(&self) -> usize {
        self.num_key_heads.saturating_mul(self.key_head_dim)
    }

    /// Numbers of all value heads.
    pub fn value_width(&self) -> usize {
        self.num_value_heads.saturating_mul(self.value_head_dim)
    }
}

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
}

impl ModelConfig {
    /// File name in a model directory.
    pub const FILE: &str = "config.json";

    /// Reads and validates `config.json`, `crest.json` (CREST) and `nano_compact_spec.json` (where the config lacks the list).
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
            let side = CrestConfig::read_side_file(&Fields::root(&path, &value)?)?;
            config.crest = Some(side.or(config.crest.unwrap_or_default()));
        }
        if config.family == Family::NanoCompact && config.nanollm_modules.is_empty() {
            const SPEC: &str = "nano_compact_spec.json";
            let path = dir.path().join(SPEC);
            let missing = || Error::Config {
                path: dir.path().join(Self::FILE),
                field: "nanollm_modules".into(),
                message: format!("is missing, in {SPEC} as well"),
            };
            let value = read_json(dir, SPEC)?.ok_or_else(missing)?;
            let modules = Fields::root(&path, &value)?.object("nanollm_modules")?.ok_or_else(missing)?;
            config.nanollm_modules = nano::read_modules(&modules)?;
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

    fn read(root: &Fields) -> Result<Self> {
        let nested = root.object("text_config")?;
        // Keys of rotary embedding count where the text config is, as in transformers.
        let own = nested.as_ref().unwrap_or(root).clone();
        let text = nested.map_or_else(|| root.clone(), |text| text.or_else(root));
        let mut notes = Notes::default();
        if nested_rope(root, &own) {
            notes.unused.push("rope parameters beside text_config are not used: those inside count".into());
        }
        let (family, model_type, architecture) = family(root, &text, &mut notes)?;
        let hybrid = family.is_hybrid();

        let size = |key, max| text.required(key, |f, key| f.size(key, max));
        let hidden_size = size("hidden_size", MAX_WIDTH)?;
        let num_hidden_layers = size("num_hidden_layers", MAX_LAYERS)?;
        let num_attention_heads = size("num_attention_heads", MAX_HEADS)?;
        let num_key_value_heads = body::key_value_heads(&text, family, num_attention_heads, &mut notes)?;
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let message =
                format!("is {num_key_value_heads}, which does not divide num_attention_heads {num_attention_heads}");
            return Err(text.error("num_key_value_heads", message));
        }
        let head_dim = match text.size("head_dim", MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if hybrid => body::size_or(&text, "head_dim", MAX_HEAD_DIM, 256, &mut notes)?,
            None => match hidden_size.checked_div(num_attention_heads) {
                Some(head_dim) if hidden_size.is_multiple_of(num_attention_heads) => head_dim,
                _ => {
                    let message = format!("is {num_attention_heads}, which does not divide hidden_size {hidden_size}");
                    return Err(text.error("num_attention_heads", message));
                }
            },
        };
        if head_dim > MAX_HEAD_DIM {
            return Err(text.error(
                "num_attention_heads",
                format!("makes heads of {head_dim}, at most {MAX_HEAD_DIM} are supported"),
            ));
        }
        let positions = body::default_positions(family);
        let positions = body::size_or(&text, "max_position_embeddings", MAX_POSITIONS, positions, &mut notes)?;
        let rope = RopeContext { hybrid, head_dim, max_position_embeddings: positions };
        let rope = RopeConfig::read(&own, &rope, &mut notes)?;
        let max_position_embeddings = rope.context(positions);
        body::check_activation(&text)?;
        body::note_foreign(&text, &model_type, &mut notes);
        let biases = body::Biases::read(&text, family)?;
        let layer_types = body::layer_types(&text, family, num_hidden_layers, max_position_embeddings)?;
        let linear_attention = hybrid.then(|| linear_attention(&text, &mut notes)).transpose()?;
        let mixers = MixerSizes {
            layer_types: &layer_types,
            linear: linear_attention.as_ref(),
            heads: num_attention_heads,
            kv_heads: num_key_value_heads,
            head_dim,
        };
        check_mixers(&text, &mixers)?;
        let crest = match (family, text.object("crest")?) {
            (Family::Crest, Some(object)) => Some(CrestConfig::read(&object)?),
            (Family::Crest, None) => Some(CrestConfig::default()),
            _ => None,
        };
        let kv_compression = match (family, text.object("kv_compression")?) {
            (Family::LeanLlama, Some(object)) => {
                let kv_dim = num_key_value_heads.saturating_mul(head_dim);
                Some(KvCompressionConfig::read(&object, num_hidden_layers, kv_dim)?)
            }
            _ => None,
        };
        let nanollm_modules = match text.object("nanollm_modules")? {
            Some(modules) => nano::read_modules(&modules)?,
            None => BTreeMap::new(),
        };
        let dtype = float_type(&text, "dtype")?;
        Ok(Self {
            family,
            model_type,
            architecture,
            hidden_size,
            intermediate_size: size("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: size("vocab_size", MAX_VOCABULARY)?,
            max_position_embeddings,
            rms_norm_eps: rms_norm_eps(&text, &mut notes)?,
            rope,
            qkv_bias: biases.qkv,
            o_bias: biases.o,
            mlp_bias: biases.mlp,
            tie_word_embeddings: text.boolean("tie_word_embeddings")?.unwrap_or(false),
            layer_types,
            linear_attention,
            attn_output_gate: text.boolean("attn_output_gate")?.unwrap_or(true) && hybrid,
            crest,
            kv_compression,
            nanollm_modules,
            quantization: text.object("quantization_config")?.map(|q| QuantizationConfig::read(&q)).transpose()?,
            dtype: if dtype.is_some() { dtype } else { float_type(&text, "torch_dtype")? },
            eos_token_ids: text.token_ids("eos_token_id")?,
            bos_token_id: text.token_id("bos_token_id")?,
            // Nothing is padded by id, so a value that is no id (-1, a list) is as good as none.
            pad_token_id: text.token_id("pad_token_id").ok().flatten(),
            sliding_window: text.size("sliding_window", MAX_POSITIONS).ok().flatten(),
            auto_map: root.get("auto_map").is_some(),
            notes,
        })
    }
}

/// The family of a config: additions that are present win over the name of the body they are added to, but the body must be
/// that of the additions.
fn family(root: &Fields, text: &Fields, notes: &mut Notes) -> Result<(Family, String, Option<String>)> {
    const CREST: [&str; 4] = ["sky-crest", "sky_crest", "qwen3_5", "qwen3_5_text"];
    let model_type = root.text("model_type")?.unwrap_or_default();
    let architectures = root.strings("architectures")?.unwrap_or_default();
    let is = |name: &str| architectures.contains(&name);
    let (family, bodies): (_, &[&str]) = if is("NanoQwenForCausalLM") || text.get("nanollm_modules").is_some() {
        (Family::NanoCompact, &["qwen2"])
    } else if is("SkyCRESTForCausalLM") {
        (Family::Crest, &CREST)
    } else if is("LeanLlamaForCausalLM") {
        (Family::LeanLlama, &["llama"])
    } else {
        match model_type {
            "sky-crest" | "sky_crest" => (Family::Crest, &CREST),
            "qwen3_5" | "qwen3_5_text" if text.get("crest").is_some() => (Family::Crest, &CREST),
            "qwen3_5" | "qwen3_5_text" => (Family::Qwen3_5, &["qwen3_5", "qwen3_5_text"]),
            "qwen2" => (Family::Qwen2, &["qwen2"]),
            "llama" if text.get("kv_compression").is_some() => (Family::LeanLlama, &["llama"]),
            "llama" => (Family::Llama, &["llama"]),
            other => {
                let message = format!(
                    "\"{}\" is not supported. Supported: sky-crest, qwen3_5, qwen3_5_text, qwen2, llama; and the architectures \
                     SkyCRESTForCausalLM, NanoQwenForCausalLM, LeanLlamaForCausalLM",
                    shown(other)
                );
                return Err(root.error("model_type", message));
            }
        }
    };
    if model_type.is_empty() {
        notes.assumed.push(format!("model_type is not stated: that of {family} is assumed"));
    } else if !bodies.contains(&model_type) {
        let message = format!(
            "\"{}\" is not the body of {family}, which has model type {}",
            shown(model_type),
            bodies.join(" or ")
        );
        return Err(root.error("model_type", message));
    }
    Ok((family, model_type.to_owned(), architectures.first().map(|s| s.to_string())))
}

/// Whether rope parameters stand beside a text config that has none of the same name.
fn nested_rope(root: &Fields, own: &Fields) -> bool {
    const KEYS: [&str; 4] = ["rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor"];
    KEYS.iter().any(|key| root.get(key).is_some() && own.get(key).is_none())
}

/// Below the smallest normal f32 it would vanish in the norms.
fn rms_norm_eps(text: &Fields, notes: &mut Notes) -> Result<f64> {
    const DEFAULT: f64 = 1e-6;
    let allowed = |x| x >= f64::from(f32::MIN_POSITIVE) && x <= 1.0;
    if let Some(stated) = text.number("rms_norm_eps", "a number above 0, at most 1", allowed)? {
        return Ok(stated);
    }
    if text.is_null("rms_norm_eps") {
        return Err(text.error("rms_norm_eps", "is missing or null"));
    }
    notes.assumed.push(format!("rms_norm_eps is not stated: {DEFAULT:e} is assumed, as in transformers"));
    Ok(DEFAULT)
}

fn linear_attention(text: &Fields, notes: &mut Notes) -> Result<LinearAttentionConfig> {
    let mut size = |key, max, default| body::size_or(text, key, max, default, notes);
    let out = LinearAttentionConfig {
        num_key_heads: size("linear_num_key_heads", MAX_HEADS, 16)?,
        num_value_heads: size("linear_num_value_heads", MAX_HEADS, 32)?,
        key_head_dim: size("linear_key_head_dim", MAX_HEAD_DIM, 128)?,
        value_head_dim: size("linear_value_head_dim", MAX_HEAD_DIM, 128)?,
        conv_kernel_dim: size("linear_conv_kernel_dim", 64, 4)?,
    };
    if !out.num_value_heads.is_multiple_of(out.num_key_heads) {
        let message =
            format!("is {}, which does not divide linear_num_value_heads {}", out.num_key_heads, out.num_value_heads);
        return Err(text.error("linear_num_key_heads", message));
    }
    Ok(out)
}

/// A float type as configs spell it; `auto` and null count as absent.
fn float_type(fields: &Fields, key: &str) -> Result<Option<FloatType>> {
    match fields.text(key)?.map(|text| text.trim_start_matches("torch.")) {
        None | Some("auto") => Ok(None),
        Some("float32" | "float") => Ok(Some(FloatType::F32)),
        Some("float16" | "half") => Ok(Some(FloatType::F16)),
        Some("bfloat16") => Ok(Some(FloatType::Bf16)),
        Some(other) => {
            Err(fields
                .error(key, format!("\"{}\" is not supported: expected float32, float16 or bfloat16", shown(other))))
        }
    }
}

fn read_json(dir: &ModelDir, name: &str) -> Result<Option<Value>> {
    let Some(bytes) = dir.read(name, MAX_CONFIG_BYTES)? else {
        return Ok(None);
    };
    json::parse(&bytes).map(Some).map_err(|message| not_json(&dir.path().join(name), message))
}

fn not_json(path: &Path, message: String) -> Error {
    Error::Config { path: path.into(), field: "(file)".into(), message }
}
