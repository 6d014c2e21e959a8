//! The model families of emberlm: configs, modules, loading, text and generation.

mod architecture;
mod attention;
pub mod cache;
mod causal_lm;
pub mod checkpoint;
pub mod config;
mod crest;
mod decoder;
mod delta_net;
mod error;
pub mod evaluate;
pub mod generate;
mod kv_compressor;
mod loader;
mod norm;
mod plan;
mod pretrained;
mod random_weights;
mod rope;
pub mod sampling;
pub mod shapes;
pub mod text;

pub use architecture::Architecture;
pub use attention::Attention;
pub use causal_lm::{CausalLm, DEFAULT_CHUNK, ForwardOptions, ForwardOutput, LogitsFor};
pub use crest::{CrestFfn, DepthTrace, HaltGate};
pub use decoder::{Decoder, DecoderLayer, FeedForward};
pub use delta_net::{CausalConv1d, GatedDeltaNet};
pub use error::{Error, Result};
pub use kv_compressor::KvCompressor;
pub use loader::{SourceEntry, WeightOptions, WeightSource};
pub use norm::RmsNorm;
pub use plan::{LoadPlan, Part, PlannedTensor, Progress, QuantizeOnLoad};
pub use pretrained::Pretrained;
pub use random_weights::RandomWeights;
pub use rope::RotaryEmbedding;
