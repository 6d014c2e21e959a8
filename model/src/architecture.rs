//! What is to be built: a config with everything decided that it left open.

use crate::config::{CrestOptions, KvCompression, ModelConfig};

/// A model's sizes and options, with those resolved that only the tensors tell.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// The validated config.
    pub config: ModelConfig,
    /// Adaptive depth (CREST).
    pub crest: Option<CrestOptions>,
    /// Cache compression (LeanLlama).
    pub kv_compression: Option<KvCompression>,
    /// The head is the embedding.
    pub tied_head: bool,
}
