//! Text generation: prompt in, pieces of text out.

#![cfg_attr(not(test), deny(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used))]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Tensor;
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::KvFormat;

use crate::cache::Cache;
use crate::causal_lm::{CausalLm, DEFAULT_CHUNK, ForwardOptions, LogitsFor};
use crate::diagnose::{self, Run};
use crate::error::{Error, Result};
use crate::nn::Span;
use crate::sampling::{LogitsProcessors, Sampler, SamplingConfig};
use crate::text::{DecodeStream, StopSet, StopStrings, TextProcessor};
pub use crate::token_depth::TokenDepth;
use crate::token_depth::token_depths;

/// Output tokens that the cache gets room for at once; a longer text grows it.
const RESERVED: usize = 1024;

/// How a text is continued.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: SamplingConfig,
    /// Rules about single tokens, which change logits before one is chosen.
    pub processors: LogitsProcessors,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Tokens that end the text; they are not part of it.
    pub stop_tokens: StopSet,
    /// Strings that end the text; they are not part of it. Names of special tokens count as text here.
    pub stop_strings: Vec<String>,
    /// Tokens per pass over the prompt.
    pub chunk: usize,
    /// Number format of cached keys and values.
    pub cache: KvFormat,
    /// Record the depth of every token (CREST).
    pub trace: bool,
}

impl Default for GenerateOptions {
    /// Greedy, 256 tokens, no stop.
    fn default() -> Self {
        Self {
            sampling: SamplingConfig::greedy(),
            processors: LogitsProcessors::default(),
            max_tokens: 256,
            stop_tokens: StopSet::default(),
            stop_strings: Vec::new(),
            chunk: DEFAULT_CHUNK,
            cache: KvFormat::default(),
            trace: false,
        }
    }
}

/// Continues texts with one model.
#[derive(Debug)]
pub struct Generator<'a, B: CompactBackend> {
    model: &'a CausalLm<B>,
    options: GenerateOptions,
    sampler: Sampler,
    stream: DecodeStream,
    stops: StopStrings,
    cancel: CancelHandle,
    cache: Option<(Cache<B>, Vec<u32>)>,
}

/// Ends a generation from elsewhere, at the next token or chunk of the prompt.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// Asks the generation to end.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token or a stop string.
    Stop,
    /// As many tokens as were asked for, or the end of the context.
    Length,
    /// It was cancelled.
    Cancelled,
}

/// One token's worth of a generated text.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Text that became certain; often empty inside a character or a possible stop string.
    pub text: String,
    /// The token; none for text that was held back to the end.
    pub token: Option<u32>,
    /// Depth of the pass that chose the token; only with [`GenerateOptions::trace`].
    pub depth: Option<TokenDepth>,
}

/// What a generation was.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt that were fed in.
    pub prompt_tokens: usize,
    /// Every token chosen, stop tokens excluded.
    pub generated: Vec<u32>,
    /// Seconds until the logits after the prompt.
    pub prefill_seconds: f64,
    /// Seconds since then.
    pub decode_seconds: f64,
    /// Steps per layer and token, on average over the passes that chose tokens; only with a trace.
    pub mean_steps: Option<f64>,
    /// Seed of the sampler: giving it again repeats the run.
    pub seed: u64,
}

impl<'a, B: CompactBackend> Generator<'a, B> {
    /// A generator at the beginning of a text.
    ///
    /// # Errors
    /// [`Error::Option`] when a sampling option is out of range or a stop string is empty.
    pub fn new(model: &'a CausalLm<B>, text: &TextProcessor, options: GenerateOptions) -> Result<Self> {
        Ok(Self {
            model,
            sampler: Sampler::new(&options.sampling)?
                .with_processors(options.processors.clone(), options.stop_tokens.ids()),
            stream: text.decode_stream(true),
            stops: StopStrings::new(options.stop_strings.iter().cloned())?,
            options,
            cancel: CancelHandle::default(),
            cache: None,
        })
    }

    /// Continues from a cache that already holds `history`, so that only new tokens are fed in.
    pub fn with_cache(mut self, cache: Cache<B>, history: Vec<u32>) -> Self {
        self.cache = Some((cache, history));
        self
    }

    /// Ends the generation from another thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Starts after a prompt. Nothing is computed before the first piece is asked for.
    ///
    /// # Errors
    /// [`Error::Prompt`] when the prompt is empty, too long, or has ids outside the vocabulary.
    pub fn run(self, prompt: &[u32]) -> Result<Pieces<'a, B>> {
        let Self { model, options, sampler, stream, stops, cancel, cache } = self;
        let (mut cache, mut seen) = cache.unwrap_or_else(|| (model.new_cache(options.cache), Vec::new()));
        model.check_prompt(prompt, &cache)?;
        let context = model.architecture().config.max_position_embeddings;
        let roomy = (cache.len() + prompt.len() + options.max_tokens.min(RESERVED)).min(context);
        if cache.check_room(roomy).is_ok() {
            cache.reserve(roomy);
        }
        cache.expect(cache.len() + prompt.len());
        seen.extend_from_slice(prompt);
        let seed = sampler.seed();
        Ok(Pieces {
            model,
            options,
            sampler,
            stream,
            stops,
            cancel,
            cache,
            seen,
            next: prompt.to_vec(),
            prompt_depth: Vec::new(),
            state: State::Running,
            steps_sum: 0.0,
            decode_started: None,
            summary: Summary {
                finish: Finish::Length,
                prompt_tokens: prompt.len(),
                generated: Vec::new(),
                prefill_seconds: 0.0,
                decode_seconds: 0.0,
                mean_steps: None,
                seed,
            },
        })
    }
}

/// The pieces of a text as they are generated.
#[derive(Debug)]
pub struct Pieces<'a, B: CompactBackend> {
    model: &'a CausalLm<B>,
    options: GenerateOptions,
    sampler: Sampler,
    stream: DecodeStream,
    stops: StopStrings,
    cancel: CancelHandle,
    cache: Cache<B>,
    /// Prompt and output, for the repetition penalty.
    seen: Vec<u32>,
    /// Tokens that the cache does not hold yet: the prompt, then the last token.
    next: Vec<u32>,
    prompt_depth: Vec<TokenDepth>,
    state: State,
    steps_sum: f64,
    decode_started: Option<Instant>,
    summary: Summary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Done,
}

impl<B: CompactBackend> Pieces<'_, B> {
    /// What happened so far; complete when the iterator has ended.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Depth of each token of the prompt; only with [`GenerateOptions::trace`], once the first piece is there.
    pub fn prompt_depth(&self) -> &[TokenDepth] {
        &self.prompt_depth
    }

    /// The cache and the tokens that it holds, to continue from.
    pub fn into_cache(self) -> (Cache<B>, Vec<u32>) {
        let mut history = self.seen;
        history.truncate(self.cache.len());
        (self.cache, history)
    }

    fn advance(&mut self) -> Result<Option<Piece>> {
        if self.summary.generated.len() >= self.options.max_tokens {
            return self.finish(Finish::Length);
        }
        if !self.next.is_empty() && self.cache.len() >= self.model.architecture().config.max_position_embeddings {
            return self.finish(Finish::Length);
        }
        let started = Instant::now();
        let Some((logits, depth)) = self.feed()? else { return self.finish(Finish::Cancelled) };
        let token = self.sampler.choose(logits, &self.seen).map_err(|error| self.explained(error))?;
        if self.decode_started.is_none() {
            self.summary.prefill_seconds = started.elapsed().as_secs_f64();
            self.decode_started = Some(Instant::now());
        }
        self.count(&depth);
        if self.options.stop_tokens.contains(token) {
            return self.finish(Finish::Stop);
        }
        self.summary.generated.push(token);
        self.seen.push(token);
        self.next.push(token);
        let hidden = self.stream.left_out(token).map(|name| self.stops.push_hidden(&name));
        let stopped = match hidden {
            Some(stopped) => stopped,
            None => self.stops.push(&self.stream.push(token)?),
        };
        if stopped.stop.is_some() {
            self.end(Finish::Stop);
        }
        Ok(Some(Piece { text: stopped.text, token: Some(token), depth }))
    }

    /// With the layer where numbers stopped being finite.
    fn explained(&self, error: Error) -> Error {
        let run = Run { chunk: self.options.chunk, format: self.options.cache };
        diagnose::explained(error, self.model, &self.seen, run, || self.cancel.is_cancelled())
    }

    /// Runs the model over the tokens that the cache lacks; none when it was cancelled.
    fn feed(&mut self) -> Result<Option<(Tensor<B, 2>, Option<TokenDepth>)>> {
        let tokens = std::mem::take(&mut self.next);
        let chunk = self.options.chunk.max(1);
        let first_pass = self.decode_started.is_none();
        let mut last = None;
        let mut rest = tokens.as_slice();
        while !rest.is_empty() {
            if self.cancel.is_cancelled() {
                self.next = rest.to_vec();
                return Ok(None);
            }
            let (part, after) = rest.split_at_checked(chunk).unwrap_or((rest, &[]));
            rest = after;
            self.cache.check_room(self.cache.len() + part.len())?;
            let wanted = if rest.is_empty() { LogitsFor::Last } else { LogitsFor::Nothing };
            let options = ForwardOptions { logits: wanted, hidden: false };
            let mut spans = [Span { tokens: part.len(), cache: &mut self.cache }];
            let out = self.model.forward(self.model.ids(part)?, &mut spans, options)?;
            if self.options.trace {
                let depth = token_depths(&out, part.len())?;
                last = depth.last().cloned();
                if first_pass {
                    self.prompt_depth.extend(depth);
                }
            }
            if let Some(logits) = out.logits {
                return Ok(Some((logits, last)));
            }
        }
        Err(Error::Prompt("it has no tokens".into()))
    }

    fn count(&mut self, depth: &Option<TokenDepth>) {
        if let Some(depth) = depth.as_ref().filter(|depth| !depth.steps.is_empty()) {
            self.steps_sum += depth.mean_steps();
            self.summary.mean_steps = Some(self.steps_sum / self.sampler.step() as f64);
        }
    }

    /// Ends the text and gives what was held back.
    fn finish(&mut self, finish: Finish) -> Result<Option<Piece>> {
        self.end(finish);
        let mut text = self.stops.push(&self.stream.finish()?).text;
        text.push_str(&self.stops.finish());
        Ok((!text.is_empty()).then_some(Piece { text, token: None, depth: None }))
    }

    fn end(&mut self, finish: Finish) {
        self.state = State::Done;
        self.summary.finish = finish;
        self.summary.decode_seconds = self.decode_started.map_or(0.0, |start| start.elapsed().as_secs_f64());
    }
}

impl<B: CompactBackend> Iterator for Pieces<'_, B> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            return None;
        }
        let piece = self.advance();
        if piece.is_err() {
            self.state = State::Done;
        }
        piece.transpose()
    }
}
