//! A causal language model of any family: token ids in, logits out, a cache in between.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use emberlm_quant::kv::KvFormat;
use emberlm_quant::modules::{Linear, LinearConfig};
use emberlm_quant::{Activations, CompactBackend};

use crate::architecture::Architecture;
use crate::cache::Cache;
use crate::config::{CrestOverrides, KvOverrides, ModelOptions};
use crate::error::{Error, Result};
use crate::limits::{check_activations, check_device, check_pass};
use crate::loader::{self, Loader, WeightOptions, WeightSource};
use crate::nn::{
    Decoder, DepthOptions, DepthTrace, FeedForward, ForwardContext, PassDepth, RotaryEmbedding, Span, SpanPosition,
};
use crate::plan::{LoadPlan, Progress};
use crate::read::device_error;

/// Tokens per pass when a long prompt is fed in.
pub const DEFAULT_CHUNK: usize = 512;

/// A language model whose weights are on the device of `B`. Threads may share it.
///
/// `num_params` of burn counts numbers that can be trained: packed matrices are none. [`LoadPlan::parameters`] counts all.
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
    activations: Activations,
}

/// Which positions get logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogitsFor {
    /// None: the caches alone are wanted.
    Nothing,
    /// The last token of every span and its [drafts](Span::drafted), or the last of every row of a pass without caches.
    #[default]
    Last,
    /// Every token.
    All,
}

/// What a pass should return.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardOptions {
    /// Positions that get logits.
    pub logits: LogitsFor,
    /// Keep the residual stream of every layer.
    pub hidden: bool,
}

/// The result of a pass over `n` tokens.
#[derive(Clone, Debug)]
pub struct ForwardOutput<B: Backend> {
    /// `[positions, vocabulary]` F32, for the positions asked for, in order.
    pub logits: Option<Tensor<B, 2>>,
    /// The residual stream before each layer and after the last, `[n, hidden]` in the type of activations; empty unless asked
    /// for.
    pub hidden: Vec<Tensor<B, 2>>,
    /// After the last norm, `[n, hidden]` in the type of activations.
    pub final_hidden: Tensor<B, 2>,
    /// Per CREST layer, the depth of each token.
    pub depth: Vec<DepthTrace<B>>,
}

impl<B: CompactBackend> CausalLm<B> {
    /// Checks a source of weights against an architecture and adds up the bytes, loading nothing.
    ///
    /// # Errors
    /// [`Error::Differences`] with every missing, unused and mismatched tensor, [`Error::Limit`] when a size is beyond what the device
    /// takes.
    pub fn plan(
        architecture: &Architecture,
        source: &dyn WeightSource,
        options: WeightOptions,
        device: &B::Device,
    ) -> Result<LoadPlan> {
        check_device::<B>(architecture, device)?;
        loader::plan(architecture, source, options)
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
        loader::load(&architecture, source, options, plan, device, progress, |loader| {
            Self::build(loader, &architecture)
        })
    }

    /// A model with random weights to train. What is random is drawn by the backend; `B::seed` makes it the same every time.
    ///
    /// # Errors
    /// [`Error::Option`] when the options of adaptive depth cannot be, [`Error::Limit`] when a size is beyond what the device takes.
    pub fn init(architecture: Architecture, device: &B::Device) -> Result<Self> {
        check_device::<B>(&architecture, device)?;
        let (model, config) = (Decoder::init(&architecture, device)?, &architecture.config);
        let head = LinearConfig::new(config.hidden_size, config.vocab_size).with_bias(false);
        let lm_head = (!architecture.tied_head).then(|| head.init(device));
        let rotary = RotaryEmbedding::new(&config.rope);
        Ok(Self { model, lm_head, architecture: Arc::new(architecture), rotary, activations: Activations::default() })
    }

    fn build(loader: &Loader<'_, B>, architecture: &Architecture) -> Result<Self> {
        let model = Decoder::load(&loader.at("model"), architecture)?;
        let lm_head = (!architecture.tied_head).then(|| loader.linear("lm_head")).transpose()?;
        let rotary = RotaryEmbedding::new(&architecture.config.rope);
        let architecture = Arc::new(architecture.clone());
        Ok(Self { model, lm_head, architecture, rotary, activations: Activations::default() })
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
        Cache::new(self.architecture.cache_shapes(), format, &self.device())
    }

    /// Changes how deep CREST tokens go from now on; other families have no depth. More steps than there are mean all of them.
    /// [`architecture`](Self::architecture) goes on telling what is loaded.
    ///
    /// # Errors
    /// [`Error::Option`] when the threshold is no number from 0 to 1; the model then stays as it was.
    pub fn set_depth(&mut self, num_steps: usize, halt_enabled: bool, halt_threshold: f32) -> Result<()> {
        if self.max_depth().is_none() {
            return Ok(());
        }
        self.check_depth(DepthOptions { threshold: Some(halt_threshold), ..DepthOptions::default() })?;
        for layer in &mut self.model.layers {
            if let FeedForward::Crest(mlp) = &mut layer.mlp {
                mlp.set_depth(num_steps, halt_enabled, halt_threshold);
            }
        }
        Ok(())
    }

    /// Changes options from now on that change no weight; what is not said stays. Sequences that were begun under others end with
    /// them: their caches hold what tokens became under those.
    ///
    /// # Errors
    /// [`Error::Option`] when a value is out of range, or the model has no adaptive depth or no compressors and something is asked of
    /// them; the model then stays as it was.
    pub fn set_options(&mut self, options: &ModelOptions) -> Result<()> {
        let mut architecture = (*self.architecture).clone();
        let lacks = |option: &str, what: &str| {
            Err(Error::Option { option: option.into(), message: format!("is given, but this model has no {what}") })
        };
        // Those in force, which `set_depth` may have changed.
        let crest = self.model.layers.iter().find_map(|layer| match &layer.mlp {
            FeedForward::Crest(mlp) => Some(mlp.options()),
            FeedForward::Dense(_) => None,
        });
        match (crest, self.max_depth()) {
            (Some(crest), Some(steps)) => architecture.crest = Some(crest.with(&options.crest, steps)?),
            _ if options.crest != CrestOverrides::default() => return lacks("crest", "adaptive depth"),
            _ => {}
        }
        match architecture.kv_compression.take() {
            None if options.kv_compression != KvOverrides::default() => {
                return lacks("kv_compression", "compressors");
            }
            compression => architecture.kv_compression = compression.map(|c| c.with(options.kv_compression)),
        }
        for layer in &mut self.model.layers {
            if let (FeedForward::Crest(mlp), Some(crest)) = (&mut layer.mlp, &architecture.crest) {
                mlp.set_options(crest);
            }
            if let (Some(attention), Some(compression)) = (&mut layer.self_attn, &architecture.kv_compression) {
                attention.set_options(compression);
            }
        }
        self.architecture = Arc::new(architecture);
        Ok(())
    }

    /// Checks what a sequence may ask for.
    ///
    /// # Errors
    /// [`Error::Option`] when a threshold is not a number from 0 to 1, the steps are none or more than the model has, or the model has
    /// no adaptive depth and something is asked for.
    pub fn check_depth(&self, depth: DepthOptions) -> Result<()> {
        depth.check(self.max_depth())
    }

    /// The most steps that every layer has; none in a model without adaptive depth.
    pub(crate) fn max_depth(&self) -> Option<usize> {
        let steps = self.model.layers.iter().filter_map(|layer| match &layer.mlp {
            FeedForward::Crest(mlp) => Some(mlp.max_steps()),
            FeedForward::Dense(_) => None,
        });
        steps.min()
    }

    /// In which numbers it computes.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// Changes in which numbers it computes from now on; F32 after loading.
    ///
    /// # Errors
    /// [`Error::Option`] when the device does not compute so.
    pub fn set_activations(&mut self, activations: Activations) -> Result<()> {
        check_activations::<B>(activations, &self.device())?;
        self.activations = activations;
        Ok(())
    }

    /// One pass over new tokens of any number of sequences, which are appended to their caches.
    ///
    /// The tokens of the spans follow one another in `ids`. What does not depend on other tokens is computed for all of them at
    /// once; a token sees those of its own sequence alone.
    ///
    /// Positions beyond the context that the model was trained for are computed as any; [`prefill`](Self::prefill) and
    /// [`decode`](Self::decode) refuse them.
    ///
    /// [`ids`](Self::ids) checks that every id is in the vocabulary. Of a tensor that was made in another way the host can tell only
    /// where it shares the memory of the device; elsewhere an unknown id makes the logits of its span NaN.
    ///
    /// # Shapes
    /// `ids [n]`, ids below the vocabulary size
    ///
    /// # Errors
    /// [`Error::Prompt`] when a span has no tokens, the spans are not all of `ids`, or an id is outside the vocabulary;
    /// [`Error::Option`] when a cache is another model's, or a depth [cannot be](Self::check_depth); [`Error::Buffer`] or [`Error::Memory`] when there is no room;
    /// [`Error::Device`] when a GPU is lost or refuses. The caches then hold the tokens that they held; but one with states (linear attention)
    /// that a pass was stopped in the middle of refuses every other, until [`reset`](Cache::reset).
    pub fn forward(
        &self,
        ids: Tensor<B, 1, Int>,
        spans: &mut [Span<'_, B>],
        options: ForwardOptions,
    ) -> Result<ForwardOutput<B>> {
        B::run_pass(self.activations, || self.forward_spans(ids, spans, options)).map_err(device_error)?
    }

    /// One pass over rows of tokens of one length that begin a sequence each and leave nothing behind: what training runs, since
    /// gradients pass through all of it.
    ///
    /// # Shapes
    /// `ids [b, s]`; the result is about `n = b * s` tokens, row after row
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_uncached(&self, ids: Tensor<B, 2, Int>, options: ForwardOptions) -> Result<ForwardOutput<B>> {
        B::run_pass(self.activations, || {
            let [b, s] = ids.dims();
            self.check_tensor(&ids)?;
            self.check_size((b, 0, s), b, options.logits)?;
            let activations = B::between_operations(self.activations).into();
            let context = ForwardContext::of_rows([b, s], &self.rotary, activations, &ids.device());
            self.run(ids, &context, None, options)
        })
        .map_err(device_error)?
    }

    fn forward_spans(
        &self,
        ids: Tensor<B, 1, Int>,
        spans: &mut [Span<'_, B>],
        options: ForwardOptions,
    ) -> Result<ForwardOutput<B>> {
        let [n] = ids.dims();
        self.check_tensor(&ids)?;
        self.check_spans(n, spans)?;
        let past = spans.iter().map(|span| span.cache.len()).max().unwrap_or(0);
        let rows = spans.iter().map(|span| 1 + span.drafted).sum();
        self.check_size((1, past, n), rows, options.logits)?;
        spans.iter_mut().try_for_each(|span| span.cache.make_room(span.tokens))?;
        let positions: Vec<SpanPosition> = spans
            .iter()
            .map(|Span { tokens, cache, drafted, .. }| SpanPosition {
                first: cache.first_position(),
                past: cache.len(),
                new: *tokens,
                expected: cache.expected(),
                drafted: *drafted,
            })
            .collect();
        let depth = PassDepth::new(spans.iter().map(|span| (span.tokens, span.depth)));
        let context = ForwardContext::new(
            &positions,
            depth,
            &self.rotary,
            B::between_operations(self.activations).into(),
            &ids.device(),
        );
        spans.iter_mut().for_each(|span| span.cache.begin_pass());
        let out = self.run(ids.reshape([1, n]), &context, Some(spans), options)?;
        spans.iter_mut().for_each(|span| span.cache.advance(span.tokens));
        Ok(out)
    }

    /// `[b, s]` tokens through decoder and head.
    fn run(
        &self,
        ids: Tensor<B, 2, Int>,
        context: &ForwardContext<B>,
        spans: Option<&mut [Span<'_, B>]>,
        options: ForwardOptions,
    ) -> Result<ForwardOutput<B>> {
        let [b, s] = ids.dims();
        let h = self.architecture.config.hidden_size;
        let flat = |x: Tensor<B, 3>| B::reshape(x, [b * s, h]);
        let (x, kept) = self.model.forward(ids, context, spans, options.hidden)?;
        let logits = match options.logits {
            LogitsFor::Nothing => None,
            LogitsFor::All => Some(self.head(flat(x.clone()))),
            LogitsFor::Last => {
                let last = context.last(x.clone());
                let [_, rows, _] = last.dims();
                Some(self.head(B::reshape(last, [b * rows, h])))
            }
        };
        let hidden = kept.hidden.into_iter().map(flat).collect();
        Ok(ForwardOutput { logits, hidden, final_hidden: flat(x), depth: kept.depth })
    }

    /// What can be told from the tensor of ids.
    fn check_tensor<const D: usize>(&self, ids: &Tensor<B, D, Int>) -> Result<()> {
        if ids.shape().num_elements() == 0 {
            return Err(Error::Prompt("it has no tokens".into()));
        }
        let vocabulary = self.architecture.config.vocab_size;
        match B::first_unknown_id(ids, vocabulary) {
            Some(id) => Err(Error::Prompt(format!("token {id} is outside the vocabulary of {vocabulary}"))),
            None => Ok(()),
        }
    }

    fn check_spans(&self, n: usize, spans: &[Span<'_, B>]) -> Result<()> {
        let shapes = self.architecture.cache_shapes();
        let mut tokens = 0usize;
        for span in spans {
            if span.tokens == 0 {
                return Err(Error::Prompt("it has no tokens".into()));
            }
            if span.drafted >= span.tokens {
                let message = format!("{} drafts among {} tokens; one before them is none", span.drafted, span.tokens);
                return Err(Error::Prompt(message));
            }
            tokens = tokens.saturating_add(span.tokens);
            span.cache.check_model(&shapes)?;
            span.cache.check_whole()?;
            self.check_depth(span.depth)?;
        }
        if tokens != n {
            return Err(Error::Prompt(format!("{n} ids for spans of {tokens} tokens")));
        }
        Ok(())
    }

    /// Of `(rows, tokens before them, tokens)` of a pass; logits of `last` tokens where not of all.
    fn check_size(&self, pass: (usize, usize, usize), last: usize, logits: LogitsFor) -> Result<()> {
        let (rows, _, new) = pass;
        let logits = match logits {
            LogitsFor::Nothing => 0,
            LogitsFor::Last => last.div_ceil(rows.max(1)),
            LogitsFor::All => new,
        };
        check_pass::<B>(&self.architecture, &self.device(), pass, logits)
    }

    /// Feeds a prompt in chunks and returns the logits after its last token.
    ///
    /// # Shapes
    /// `-> [1, vocabulary]`
    ///
    /// # Errors
    /// [`Error::Prompt`] when it is empty, too long, or has ids outside the vocabulary.
    pub fn prefill(&self, ids: &[u32], cache: &mut Cache<B>, chunk: usize) -> Result<Tensor<B, 2>> {
        self.check_prompt(ids, cache)?;
        cache.make_room(ids.len())?;
        cache.expect(cache.len() + ids.len());
        let mut logits = None;
        let mut parts = ids.chunks(chunk.max(1)).peekable();
        while let Some(part) = parts.next() {
            let wanted = if parts.peek().is_none() { LogitsFor::Last } else { LogitsFor::Nothing };
            let mut spans = [Span::new(part.len(), &mut *cache)];
            let options = ForwardOptions { logits: wanted, hidden: false };
            logits = self.forward(self.ids(part)?, &mut spans, options)?.logits;
        }
        logits.ok_or_else(|| Error::Prompt("it has no tokens".into()))
    }

    /// Feeds one token.
    ///
    /// # Shapes
    /// `-> [1, vocabulary]`
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn decode(&self, id: u32, cache: &mut Cache<B>) -> Result<Tensor<B, 2>> {
        self.prefill(&[id], cache, 1)
    }

    /// Token ids as a tensor `[n]`.
    ///
    /// # Errors
    /// [`Error::Prompt`] when there are none, or an id is outside the vocabulary.
    pub fn ids(&self, ids: &[u32]) -> Result<Tensor<B, 1, Int>> {
        self.architecture.check_ids(ids)?;
        let numbers: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        Ok(Tensor::from_data(TensorData::new(numbers, [ids.len()]), &self.device()))
    }

    pub(crate) fn check_prompt(&self, ids: &[u32], cache: &Cache<B>) -> Result<()> {
        self.architecture.check_prompt(ids, cache.len())?;
        cache.check_room(cache.len().saturating_add(ids.len()))
    }

    /// Logits of normed hidden states, not rounded to the type of activations: large ones would tie.
    fn head(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = x.cast(DType::F32);
        match &self.lm_head {
            Some(head) => head.logits(x),
            None => self.model.embed_tokens.logits(x),
        }
    }
}
