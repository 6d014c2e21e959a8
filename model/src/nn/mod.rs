//! The layers of all families: each reads like its equations, and has the names that checkpoints have.

#![allow(clippy::indexing_slicing, reason = "of lists as long as the config that a layer was made from says")]

mod attention;
mod crest;
mod decoder;
mod delta_net;
mod depth;
mod forward_context;
mod kv_compressor;
mod norm;
mod rope;

pub use attention::{Attention, AttentionConfig};
pub use crest::{CrestFfn, CrestFfnConfig, DepthTrace, HaltGate};
pub use decoder::{Decoder, DecoderLayer, FeedForward};
pub use delta_net::{CausalConv1d, GatedDeltaNet, GatedDeltaNetConfig};
pub(crate) use depth::PassDepth;
pub use depth::{DepthOptions, DepthRun};
pub use forward_context::Span;
pub(crate) use forward_context::{ForwardContext, SpanPosition};
pub use kv_compressor::KvCompressor;
pub use norm::{RmsNorm, RmsNormConfig};
pub use rope::RotaryEmbedding;
