//! How much memory a model will take, before it is loaded.

use emberlm::model::config::LayerType;
use emberlm::model::{Architecture, DEFAULT_CHUNK, LoadPlan};
use emberlm::quant::kv::KvFormat;
use serde::Serialize;

use super::output::bytes;

/// In words, what [`Estimate`] computes.
pub const FORMULA: &str = "weights + sequence state + tokens * cache bytes per token + scratch, where scratch = \
     4 bytes * (tokens per pass * (6 * hidden + widest block) + vocabulary) and widest block = the larger of 4 * intermediate \
     and 2 * (rows of the query, key and value projections)";

/// Bytes for one sequence of some length.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Estimate {
    /// Tokens of the sequence.
    pub context: usize,
    /// Tokens per pass over a prompt.
    pub chunk: usize,
    /// Weights on the device.
    pub weights: usize,
    /// Cache of the sequence: what grows with it and what does not.
    pub cache: usize,
    /// Intermediate results of one pass.
    pub scratch: usize,
    /// All of it.
    pub total: usize,
}

impl Estimate {
    /// For a sequence of `context` tokens, fed in passes of `chunk`.
    pub fn new(architecture: &Architecture, plan: &LoadPlan, format: KvFormat, context: usize, chunk: usize) -> Self {
        let config = &architecture.config;
        let chunk = chunk.min(context);
        let (per_token, fixed) = cache_bytes(architecture, format);
        let cache = context.saturating_mul(per_token).saturating_add(fixed);
        let gate = if config.attn_output_gate { 2 } else { 1 };
        let attention = config.num_attention_heads * config.head_dim * gate + 2 * config.kv_dim();
        let linear = config.linear_attention.as_ref().map_or(0, |dims| 2 * dims.key_width() + 2 * dims.value_width());
        let mixer = config.layer_types.iter().map(|kind| match kind {
            LayerType::FullAttention => attention,
            LayerType::LinearAttention => linear,
        });
        let widest = (4 * config.intermediate_size).max(2 * mixer.max().unwrap_or(0));
        let scratch = 4 * (chunk.saturating_mul(6 * config.hidden_size + widest) + config.vocab_size);
        let weights = plan.weight_bytes();
        let total = weights.saturating_add(cache).saturating_add(scratch);
        Self { context, chunk, weights, cache, scratch, total }
    }

    /// What a line about loading says of it.
    pub fn note(&self) -> String {
        let Self { context, cache, scratch, total, .. } = *self;
        format!(
            " + {} of cache for {context} tokens + {} of scratch = about {}",
            bytes(cache),
            bytes(scratch),
            bytes(total)
        )
    }
}

/// Bytes of the cache per token, and per sequence whatever its length.
pub fn cache_bytes(architecture: &Architecture, format: KvFormat) -> (usize, usize) {
    let shapes = architecture.cache_shapes();
    let per_token = shapes.iter().map(|shape| shape.bytes_per_token(format)).sum();
    (per_token, shapes.iter().map(|shape| shape.fixed_bytes()).sum())
}

/// A context to estimate for when none is given.
pub fn usual_context(architecture: &Architecture) -> usize {
    architecture.config.max_position_embeddings.min(8 * DEFAULT_CHUNK)
}
