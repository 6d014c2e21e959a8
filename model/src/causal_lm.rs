//! A causal language model of any family: token ids in, logits out, a cache in between.

use std::cell::OnceCell;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use emberlm_quant::CompactBackend;
use emberlm_quant::host::FloatType;
use emberlm_quant::kv::{KvFormat, Rotary};
use emberlm_quant::modules::Linear;

use crate::architecture::Architecture;
use crate::cache::Cache;
use crate::crest::DepthTrace;
use crate::decoder::{Decoder, FeedForward};
use crate::error::{Error, Result};
use crate::limits::{check_device, check_pass};
use crate::loader::{self, Loader, WeightOptions, WeightSource};
use crate::plan::{LoadPlan, Progress};
use crate::rope::RotaryEmbedding;

/// Tokens per pass when a long prompt is fed in.
pub const DEFAULT_CHUNK: usize = 512;

/// A language model whose weights are on the device of `B`.
#[derive(Module, Debug)]
pub struct CausalLm<B: Backend> {
    /// Everything but the head.
    pub model: Decoder<B>,
    /// Absent when the head is the embedding.
    pub lm_head: Option<Linear<B>>,
    #[module(skip)]
    architecture: Arc<Architecture>,
    #[module(skip)]
    rotary: RotaryEmbedding,
    #[module(skip)]
    activations: FloatType,
}

/// Which positions get logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogitsFor {
    /// None: the cache alone is wanted.
    Nothing,
    /// The last new position.
    #[default]
    Last,
    /// Every new position.
    All,
}

/// What a [`forward`](CausalLm::forward) pass should return.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardOptions {
    /// Positions that get logits.
    pub logits: LogitsFor,
    /// Keep the residual stream of every layer.
    pub hidden: bool,
}

/// The result of a [`forward`](CausalLm::forward) pass over `s` new tokens.
#[derive(Clone, Debug)]
pub struct ForwardOutput<B: Backend> {
    /// `[b, positions, vocabulary]` F32, for the positions asked for.
    pub logits: Option<Tensor<B, 3>>,
    /// The residual stream before each layer and after the last, `[b, s, hidden]` in the type of activations; empty unless
    /// asked for.
    pub hidden: Vec<Tensor<B, 3>>,
    /// After the last norm, `[b, s, hidden]` in the type of activations.
    pub final_hidden: Tensor<B, 3>,
    /// Per CREST layer, the depth of each of the `b * s` tokens.
    pub depth: Vec<DepthTrace<B>>,
}

/// What the layers need to know about the tokens of one pass.
pub(crate) struct Step<B: Backend> {
    /// Slots before the new ones.
    pub past: usize,
    /// Of the new positions.
    pub rotary: Rotary<B>,
    /// `[b]`, where rows are padded.
    pub left_pad: Option<Tensor<B, 1, Int>>,
    /// `[b, s, 1]`: 0 in the padding; absent when no new slot is padding.
    pub token_mask: Option<Tensor<B, 3>>,
    /// The type of the residual stream and of all that is made from it.
    pub activations: DType,
    new: usize,
    /// Tokens that the rotation counts on.
    length: usize,
    embedding: RotaryEmbedding,
    device: B::Device,
    from_start: OnceCell<Rotary<B>>,
}

impl<B: Backend> Step<B> {
    /// Of every position up to the last new one.
    pub fn rotary_from_start(&self) -> Rotary<B> {
        self.from_start.get_or_init(|| self.embedding.at(0, self.past + self.new, self.length, &self.device)).clone()
    }
}

impl<B: CompactBackend> CausalLm<B> {
    /// Checks a source of weights against an architecture and adds up the bytes, loading nothing.
    ///
    /// # Errors
    /// [`Error::Tensors`] with every missing, unused and mismatched tensor, [`Error::Limit`] when a size is beyond what the device
    /// takes.
    pub fn plan(
        architecture: &Architecture,
        source: &dyn WeightSource,
        options: WeightOptions,
        device: &B::Device,
    ) -> Result<LoadPlan> {
        check_device::<B>(architecture, device)?;
        loader::plan::<B, _>(source, options, device, |loader| Self::build(loader, architecture))
    }

    /// Loads a model tensor by tensor; memory never holds more than the model and one tensor.
    ///
    /// # Errors
    /// When the stored data of a tensor is damaged, or a size is beyond what the device takes.
    pub fn load(
        architecture: Architecture,
        source: &dyn WeightSource,
        options: WeightOptions,
        plan: &LoadPlan,
        device: &B::Device,
        progress: Option<&dyn Fn(Progress)>,
    ) -> Result<Self> {
        check_device::<B>(&architecture, device)?;
        loader::load(source, options, plan, device, progress, |loader| Self::build(loader, &architecture))
    }

    fn build(loader: &Loader<'_, B>, architecture: &Architecture) -> Result<Self> {
        let config = &architecture.config;
        let model = Decoder::load(&loader.at("model"), architecture)?;
        let lm_head = if architecture.tied_head {
            loader.ignore("lm_head");
            None
        } else {
            Some(loader.head("lm_head", config.vocab_size, config.hidden_size)?)
        };
        let rotary = RotaryEmbedding::new(&config.rope);
        let architecture = Arc::new(architecture.clone());
        Ok(Self { model, lm_head, architecture, rotary, activations: FloatType::F32 })
    }

    /// Sizes and options.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The device of the weights.
    pub fn device(&self) -> B::Device {
        self.model.norm.weight.val().device()
    }

    /// An empty cache for one sequence.
    pub fn new_cache(&self, format: KvFormat) -> Cache<B> {
        self.new_batch_cache(format, vec![0])
    }

    /// An empty cache for a batch whose row `i` starts after `left_pad[i]` empty slots.
    ///
    /// Rotary positions count slots, so a padded row is the row alone, moved. Attention does not mind, with one exception: keys
    /// that are compressed after rotation (LeanLlama's `k_stage` `post_rope`) depend on the slot, and so does such a row.
    pub fn new_batch_cache(&self, format: KvFormat, left_pad: Vec<usize>) -> Cache<B> {
        Cache::new(self.architecture.cache_shapes(), format, left_pad, &self.device())
    }

    /// Changes how deep CREST tokens go from now on; other families have no depth.
    pub fn set_depth(&mut self, num_steps: usize, halt_enabled: bool, halt_threshold: f32) {
        for layer in &mut self.model.layers {
            if let FeedForward::Crest(mlp) = &mut layer.mlp {
                mlp.set_depth(num_steps, halt_enabled, halt_threshold);
            }
        }
    }

    /// The type of activations.
    pub fn activations(&self) -> FloatType {
        self.activations
    }

    /// Changes the type of activations from now on: F32 after loading, which every backend has. Sums, norms, softmax, the
    /// states of halting and of linear attention, and logits are F32 in any case.
    ///
    /// F16 ends at 65504: a model whose residual stream grows beyond gives NaN. BF16 has the range of F32 and 8 bits of it.
    ///
    /// # Errors
    /// [`Error::Option`] when the device does not compute with this type.
    pub fn set_activations(&mut self, float: FloatType) -> Result<()> {
        let device = self.device();
        if !B::computes_with(&device, float) {
            let all = [FloatType::F32, FloatType::F16, FloatType::Bf16].into_iter();
            let known: Vec<_> = all.filter(|&f| B::computes_with(&device, f)).map(|f| f.to_string()).collect();
            let message = format!("{float} is not for {device:?}, which computes with {}", known.join(", "));
            return Err(Error::Option { option: "activations".into(), message });
        }
        self.activations = float;
        Ok(())
    }

    /// One pass over new tokens, which are appended to the cache.
    ///
    /// [`ids`](Self::ids) checks that every id is in the vocabulary. Of a tensor that was made in another way the host can tell only
    /// where it shares the memory of the device; elsewhere an unknown id makes the logits of its pass NaN.
    ///
    /// # Shapes
    /// `ids [b, s]`, ids below the vocabulary size
    ///
    /// # Errors
    /// [`Error::Prompt`] when there are no tokens, the rows are not those of the cache, or an id is outside the vocabulary;
    /// [`Error::Option`] when the cache is another model's; [`Error::Buffer`] or [`Error::Memory`] when there is no room. The cache
    /// is then as it was.
    pub fn forward(
        &self,
        ids: Tensor<B, 2, Int>,
        cache: &mut Cache<B>,
        options: ForwardOptions,
    ) -> Result<ForwardOutput<B>> {
        B::pass(|| self.forward_inside(ids, cache, options))
    }

    fn check_pass(&self, ids: &Tensor<B, 2, Int>, cache: &Cache<B>, logits: LogitsFor) -> Result<()> {
        let [b, s] = ids.dims();
        let fail = |message: String| Err(Error::Prompt(message));
        if b == 0 || s == 0 {
            return fail("it has no tokens".into());
        }
        if b != cache.batch() {
            return fail(format!("{b} rows for a cache of {}", cache.batch()));
        }
        if !cache.is_for(&self.architecture.cache_shapes()) {
            let message = "is not of this model; make one with `new_cache`".into();
            return Err(Error::Option { option: "cache".into(), message });
        }
        let vocabulary = self.architecture.config.vocab_size;
        if let Some(id) = B::first_unknown_id(ids, vocabulary) {
            return fail(format!("token {id} is outside the vocabulary of {vocabulary}"));
        }
        let logits = match logits {
            LogitsFor::Nothing => 0,
            LogitsFor::Last => 1,
            LogitsFor::All => s,
        };
        check_pass::<B>(&self.architecture, &ids.device(), (b, cache.len(), s), logits)
    }

    fn forward_inside(
        &self,
        ids: Tensor<B, 2, Int>,
        cache: &mut Cache<B>,
        options: ForwardOptions,
    ) -> Result<ForwardOutput<B>> {
        self.check_pass(&ids, cache, options.logits)?;
        let [_, s] = ids.dims();
        cache.make_room(s)?;
        let (past, device) = (cache.len(), ids.device());
        let length = (past + s).max(cache.expected());
        let step = Step {
            past,
            rotary: self.rotary.at(past, s, length, &device),
            left_pad: cache.left_pad(),
            token_mask: cache.token_mask(s),
            activations: self.activations.into(),
            new: s,
            length,
            embedding: self.rotary.clone(),
            device,
            from_start: OnceCell::new(),
        };
        let (final_hidden, kept) = self.model.forward(ids, &step, cache, options.hidden);
        cache.advance(s);
        let logits = match options.logits {
            LogitsFor::Nothing => None,
            LogitsFor::Last => Some(self.head(final_hidden.clone().slice_dim(1, s - 1..s))),
            LogitsFor::All => Some(self.head(final_hidden.clone())),
        };
        Ok(ForwardOutput { logits, hidden: kept.hidden, final_hidden, depth: kept.depth })
    }

    /// Feeds a prompt `[b][s]` in chunks and returns the logits of the last position.
    ///
    /// # Shapes
    /// `-> [b, vocabulary]`
    ///
    /// # Errors
    /// [`Error::Prompt`] when it is empty, too long, ragged, or has ids outside the vocabulary.
    pub fn prefill(&self, ids: &[&[u32]], cache: &mut Cache<B>, chunk: usize) -> Result<Tensor<B, 2>> {
        let s = ids.first().map_or(0, |row| row.len());
        self.check_prompt(ids, s, cache)?;
        cache.make_room(s)?;
        cache.expect(cache.len() + s);
        let mut logits = None;
        for start in (0..s).step_by(chunk.max(1)) {
            let end = s.min(start + chunk.max(1));
            let rows: Vec<&[u32]> = ids.iter().map(|row| &row[start..end]).collect();
            let wanted = if end == s { LogitsFor::Last } else { LogitsFor::Nothing };
            let options = ForwardOptions { logits: wanted, hidden: false };
            logits = self.forward(self.ids(&rows)?, cache, options)?.logits;
        }
        let [b, _, v] = logits.as_ref().map_or([0; 3], Tensor::dims);
        logits.map(|t| B::reshape(t, [b, v])).ok_or_else(|| Error::Prompt("it has no tokens".into()))
    }

    /// Feeds one token per row.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn decode(&self, ids: &[u32], cache: &mut Cache<B>) -> Result<Tensor<B, 2>> {
        let rows: Vec<&[u32]> = ids.chunks(1).collect();
        self.prefill(&rows, cache, 1)
    }

    /// Token ids as a tensor `[b, s]`.
    ///
    /// # Errors
    /// [`Error::Prompt`] when there are none, rows differ in length, or an id is outside the vocabulary.
    pub fn ids(&self, rows: &[&[u32]]) -> Result<Tensor<B, 2, Int>> {
        let s = self.check_ids(rows)?;
        let ids: Vec<i64> = rows.iter().flat_map(|row| row.iter().map(|&id| i64::from(id))).collect();
        Ok(Tensor::from_data(TensorData::new(ids, [rows.len(), s]), &self.device()))
    }

    /// The length of the rows.
    fn check_ids(&self, rows: &[&[u32]]) -> Result<usize> {
        let fail = |message: String| Err(Error::Prompt(message));
        let s = rows.first().map_or(0, |row| row.len());
        if s == 0 {
            return fail("it has no tokens".into());
        }
        if rows.iter().any(|row| row.len() != s) {
            return fail("its rows are of different lengths".into());
        }
        let vocabulary = self.architecture.config.vocab_size;
        match rows.iter().flat_map(|row| row.iter()).find(|&&id| id as usize >= vocabulary) {
            Some(id) => fail(format!("token {id} is outside the vocabulary of {vocabulary}")),
            None => Ok(s),
        }
    }

    pub(crate) fn check_prompt(&self, ids: &[&[u32]], s: usize, cache: &Cache<B>) -> Result<()> {
        let fail = |message: String| Err(Error::Prompt(message));
        self.check_ids(ids)?;
        if ids.len() != cache.batch() {
            return fail(format!("{} rows for a cache of {}", ids.len(), cache.batch()));
        }
        let (total, limit) = (cache.len().saturating_add(s), self.architecture.config.max_position_embeddings);
        if total > limit {
            return fail(format!("{total} tokens, but the context of this model is {limit}; shorten it"));
        }
        cache.check_room(total)
    }

    /// Logits of normed hidden states, not rounded to the type of activations: large ones would tie.
    fn head(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let x = x.cast(DType::F32);
        match &self.lm_head {
            Some(head) => head.logits(x),
            None => self.model.embed_tokens.logits(x),
        }
    }
}
