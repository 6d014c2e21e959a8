//! Flags that several commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use emberlm::model::config::CrestOverrides;
use emberlm::model::{DEFAULT_CHUNK, QuantizeOnLoad};
use emberlm::quant::kv::KvFormat;

/// Where the model is.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Model directory: config.json, safetensors files, tokenizer.json [default: a small model that is part of the program]
    #[arg(short, long, value_name = "DIR")]
    pub model: Option<PathBuf>,

    /// Follow links in the model directory that lead out of it; for links that you made, not for a directory from a stranger
    #[arg(long)]
    pub allow_links: bool,

    /// Quantise the dense linear layers while loading
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub quant: Quant,

    /// Storage of a dense embedding and head
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub quant_head: QuantHead,
}

/// Storages of embedding and head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum QuantHead {
    /// int8 beside quantised layers, else none (eval and dump: none)
    #[default]
    Auto,
    /// Keep them as they are stored
    None,
    /// 8 bits in blocks of 64, 8.25 bits per weight
    Int8,
    /// 8 bits with one scale per row, 8 bits per weight
    Int8Rows,
    /// 4-bit NormalFloat in blocks of 64
    Nf4,
    /// NF4 with quantised block scales
    Nf4Dq,
}

impl QuantHead {
    /// As the loader takes it, for layers that are quantised or not.
    pub fn option(self, quantized_layers: bool) -> Option<QuantizeOnLoad> {
        match self {
            Self::Auto => quantized_layers.then_some(QuantizeOnLoad::Int8),
            Self::None => None,
            Self::Int8 => Some(QuantizeOnLoad::Int8),
            Self::Int8Rows => Some(QuantizeOnLoad::Int8Rows),
            Self::Nf4 => Some(QuantizeOnLoad::Nf4),
            Self::Nf4Dq => Some(QuantizeOnLoad::Nf4Double),
        }
    }
}

/// Formats of quantisation at load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Quant {
    /// Keep every tensor as it is stored
    #[default]
    None,
    /// 4-bit NormalFloat in blocks of 64, 4.5 bits per weight
    Nf4,
    /// NF4 with quantised block scales, 4.13 bits per weight
    Nf4Dq,
    /// 8 bits in blocks of 64, 8.25 bits per weight
    Int8,
    /// 8 bits with one scale per row, 8 bits per weight: for comparisons
    Int8Rows,
}

impl Quant {
    /// As the loader takes it.
    pub fn option(self) -> Option<QuantizeOnLoad> {
        match self {
            Self::None => None,
            Self::Nf4 => Some(QuantizeOnLoad::Nf4),
            Self::Nf4Dq => Some(QuantizeOnLoad::Nf4Double),
            Self::Int8 => Some(QuantizeOnLoad::Int8),
            Self::Int8Rows => Some(QuantizeOnLoad::Int8Rows),
        }
    }
}

/// Adaptive depth (CREST models).
#[derive(Debug, Args)]
#[command(next_help_heading = "Adaptive depth (CREST)")]
pub struct DepthArgs {
    /// Steps to run at most, from 1 to those of the checkpoint
    #[arg(long, value_name = "K")]
    pub steps: Option<usize>,

    /// Threshold at which a token halts, from 0 to 1
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub threshold: Option<f32>,

    /// Run every step for every token
    #[arg(long)]
    pub no_halt: bool,
}

impl DepthArgs {
    /// What was given, for messages: empty, or ` with --steps 2`.
    pub fn given(&self) -> String {
        let steps = self.steps.map(|steps| format!("--steps {steps}"));
        let threshold = self.threshold.map(|threshold| format!("--threshold {threshold}"));
        let given: Vec<String> =
            steps.into_iter().chain(threshold).chain(self.no_halt.then(|| "--no-halt".into())).collect();
        if given.is_empty() { String::new() } else { format!(" with {}", given.join(" ")) }
    }

    /// As a model takes it.
    pub fn overrides(&self) -> CrestOverrides {
        CrestOverrides {
            num_steps: self.steps,
            halt_threshold: self.threshold,
            halt_enabled: self.no_halt.then_some(false),
            ..CrestOverrides::default()
        }
    }
}

/// How sequences are fed and kept.
#[derive(Clone, Copy, Debug, Args)]
pub struct PassArgs {
    /// Tokens per pass over a prompt; beside quantised weights another N can change a text slightly, unless --activations f32
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CHUNK as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk: u32,

    /// Number format of cached keys and values
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub cache_type: CacheType,
}

/// Number formats of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    /// Half precision
    #[default]
    F16,
    /// Exact
    F32,
}

impl CacheType {
    /// As the flag has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

impl From<CacheType> for KvFormat {
    fn from(cache: CacheType) -> Self {
        match cache {
            CacheType::F16 => Self::F16,
            CacheType::F32 => Self::F32,
        }
    }
}
