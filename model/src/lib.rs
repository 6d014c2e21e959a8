//! The model families of emberlm: configs, modules, loading, text and generation.

// What is read comes from strangers. Rooms that compute with tensors whose shapes were checked say that they are excepted; those that read files
// refuse unchecked arithmetic too.
#![cfg_attr(not(test), deny(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used))]

mod architecture;
pub mod cache;
mod cancel;
mod causal_lm;
pub mod checkpoint;
pub mod compare;
pub mod config;
mod diagnose;
pub mod engine;
mod error;
pub mod evaluate;
pub mod export;
mod file_hash;
pub mod generate;
#[cfg(feature = "grammar")]
pub mod grammar;
#[cfg(feature = "hub")]
pub mod hub;
mod limits;
mod loader;
mod nn;
mod plan;
mod pretrained;
pub mod probe;
mod read;
mod references;
pub mod sampling;
mod tensors;
pub mod text;
mod token_depth;
pub mod verify;

pub use architecture::Architecture;
pub use causal_lm::{CausalLm, DEFAULT_CHUNK, ForwardOptions, ForwardOutput, LogitsFor};
pub use error::{Error, Result};
pub use loader::{SourceEntry, WeightOptions, WeightSource};
pub use nn::{
    Attention, AttentionConfig, CausalConv1d, CrestFfn, CrestFfnConfig, Decoder, DecoderLayer, DepthOptions, DepthRun,
    DepthTrace, FeedForward, GatedDeltaNet, GatedDeltaNetConfig, HaltGate, KvCompressor, RmsNorm, RmsNormConfig,
    RotaryEmbedding, Span,
};
pub use plan::{LoadPlan, PlannedTensor, Progress, QuantizeOnLoad};
pub use pretrained::Pretrained;
pub use tensors::{ModelPart, TensorRole, TensorSpec};
