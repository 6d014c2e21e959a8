//! How much memory a model will take, before it is loaded.

use emberlm::model::config::LayerType;
use emberlm::model::engine::DraftOptions;
use emberlm::model::{Architecture, DEFAULT_CHUNK, LoadPlan};
use emberlm::quant::kv::KvFormat;
use serde::Serialize;

use super::memory::{PARSER_PER_TOKEN, PROGRAM, STARTED, TOKENIZER_PER_TOKEN, TokenizerMemory};
use super::output::{bytes, counted};

/// In words, what [`Estimate`] computes.
pub fn formula() -> String {
    format!(
        "weights + cache + scratch + tokenizer + program, where cache = sequence state + tokens * cache bytes per token, scratch = 4 bytes * \
         (tokens per pass * (6 * hidden + widest block) + vocabulary) + decoded keys and values (of one layer, where a kernel cannot take \
         codes), widest block = the larger of 4 * intermediate and 2 * (rows of the \
         query, key and value projections), tokenizer = {TOKENIZER_PER_TOKEN} bytes * tokens of its vocabulary, program = {}; at least \
         what loading takes, where the tensor that is read is there as it is stored too, and what parsing tokenizer.json takes for a moment, {} + \
         {PARSER_PER_TOKEN} bytes * tokens",
        bytes(PROGRAM),
        bytes(STARTED)
    )
}

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
    /// The tokenizer.
    pub tokenizer: usize,
    /// Code, threads and small things.
    pub program: usize,
    /// While the weights are loaded: those, and the one that is read as it is stored.
    pub loading: usize,
    /// The most at any time: what running takes together, or the program while it loads weights or parses the tokenizer.
    pub total: usize,
    /// The number format of the cache.
    #[serde(skip)]
    format: KvFormat,
    /// Whether hidden values are cached in place of codes.
    #[serde(skip)]
    cache_hidden: bool,
}

impl Estimate {
    /// For a sequence of `context` tokens, fed in passes of `chunk`.
    pub fn new(architecture: &Architecture, plan: &LoadPlan, format: KvFormat, context: usize, chunk: usize) -> Self {
        let config = &architecture.config;
        let chunk = chunk.min(context);
        let cache = architecture.cache_bytes(context, format);
        let gate = if config.attn_output_gate { 2 } else { 1 };
        let attention = config.num_attention_heads * config.head_dim * gate + 2 * config.kv_dim();
        let linear = config.linear_attention.as_ref().map_or(0, |dims| 2 * dims.key_width() + 2 * dims.value_width());
        let mixer = config.layer_types.iter().map(|kind| match kind {
            LayerType::FullAttention => attention,
            LayerType::LinearAttention => linear,
        });
        let widest = (4 * config.intermediate_size).max(2 * mixer.max().unwrap_or(0));
        let scratch = 4 * (chunk.saturating_mul(6 * config.hidden_size + widest) + config.vocab_size);
        let scratch = scratch.saturating_add(architecture.decoded_bytes(context));
        let weights = plan.weight_bytes();
        Self {
            context,
            chunk,
            weights,
            cache,
            scratch,
            tokenizer: 0,
            program: PROGRAM,
            loading: plan.peak_bytes(),
            total: 0,
            format,
            cache_hidden: caches_hidden(architecture),
        }
        .with_tokenizer(TokenizerMemory::default())
    }

    /// With logits of every token of a pass, as evaluating takes: on the device, and read back.
    pub fn with_logits(mut self, vocab_size: usize) -> Self {
        let logits = self.chunk.saturating_sub(1).saturating_mul(vocab_size).saturating_mul(2 * size_of::<f32>());
        self.scratch = self.scratch.saturating_add(logits);
        self.with_tokenizer(TokenizerMemory::default())
    }

    /// With the depth of every token of the sequence (CREST), as many times as it is held: in each layer a list of probabilities, one for every
    /// step but the last.
    pub fn with_depths(mut self, architecture: &Architecture, times: usize) -> Self {
        // Headers of lists in a list, and what the allocator takes beside and between small pieces.
        const LIST: usize = size_of::<Vec<f32>>();
        const PIECE: usize = 16;
        let halts = architecture.crest.as_ref().map_or(0, |crest| crest.num_steps.saturating_sub(1));
        let of_layer = size_of::<u32>() + LIST + (size_of::<f32>() * halts).next_multiple_of(PIECE) + PIECE;
        let of_token = 2 * (LIST + PIECE) + architecture.config.num_hidden_layers * of_layer;
        self.scratch = self.scratch.saturating_add(self.context.saturating_mul(times * of_token));
        self.with_tokenizer(TokenizerMemory::default())
    }

    /// With a tokenizer beside the model.
    pub fn with_tokenizer(mut self, tokenizer: TokenizerMemory) -> Self {
        let parts = [self.weights, self.cache, self.scratch, tokenizer.resident, self.program];
        let sum = |parts: &[usize]| parts.iter().copied().fold(0usize, usize::saturating_add);
        let loading = sum(&[self.loading, tokenizer.resident, self.program]);
        self.tokenizer = tokenizer.resident;
        self.total = sum(&parts).max(loading).max(tokenizer.peak);
        self
    }

    /// The most at any time where another model is there already, in the same program.
    pub fn beside(&self, other: &Self) -> usize {
        [other.weights, other.cache, other.scratch, other.tokenizer]
            .iter()
            .fold(self.total, |sum, &part| sum.saturating_add(part))
    }

    /// What a line about loading says of it, after the weights.
    pub fn note(&self) -> String {
        self.note_of_caches(&counted(self.context, "token"))
    }

    /// [`note`](Self::note) where the cache is more than that of one sequence; `whose` says what it is for.
    pub fn note_of_caches(&self, whose: &str) -> String {
        let Self { cache, scratch, tokenizer, program, total, .. } = *self;
        let kind = cache_in_words(self.format.as_str(), self.cache_hidden);
        format!(
            " + {} of {kind} for {whose} + {} of scratch + {} of tokenizer + {} of program = about {}",
            bytes(cache),
            bytes(scratch),
            bytes(tokenizer),
            bytes(program),
            bytes(total)
        )
    }
}

/// Whether a model is to cache hidden values in place of codes.
pub fn caches_hidden(architecture: &Architecture) -> bool {
    architecture.kv_compression.as_ref().is_some_and(|compression| compression.cache_hidden)
}

/// A cache of a number format, and whether hidden values are in it.
pub fn cache_in_words(format: &str, hidden: bool) -> String {
    let hidden = if hidden { " with hidden values" } else { "" };
    format!("{format} cache{hidden}")
}

/// Bytes of the cache per token, and per sequence whatever its length.
pub fn cache_bytes_per_token(architecture: &Architecture, format: KvFormat) -> (usize, usize) {
    let shapes = architecture.cache_shapes();
    let per_token = shapes.iter().map(|shape| shape.bytes_per_token(format)).sum();
    (per_token, shapes.iter().map(|shape| shape.fixed_bytes()).sum())
}

/// Tokens of one sequence that so many bytes of cache have room for, beside `fixed` bytes that it takes whatever its length.
#[cfg(feature = "serve")]
pub fn cache_tokens(bytes: usize, per_token: usize, fixed: usize) -> usize {
    use emberlm::model::cache::GROWTH;
    let slots = bytes.saturating_sub(fixed).checked_div(per_token).unwrap_or(usize::MAX);
    slots / GROWTH * GROWTH
}

/// Bytes per sequence that drafts take beside the cache.
pub fn draft_bytes(architecture: &Architecture, draft: Option<DraftOptions>) -> usize {
    let replay = |draft: DraftOptions| {
        let shapes = architecture.cache_shapes();
        shapes.iter().map(|shape| shape.replay_bytes(1 + draft.max_tokens)).sum()
    };
    draft.map_or(0, replay)
}

/// A context to estimate for when none is given.
pub fn usual_context(architecture: &Architecture) -> usize {
    architecture.config.max_position_embeddings.min(8 * DEFAULT_CHUNK)
}
