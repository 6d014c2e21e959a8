//! One text: prompt in, pieces of text out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use emberlm_quant::CompactBackend;
use emberlm_quant::kv::KvFormat;

use crate::cache::Cache;
use crate::causal_lm::{CausalLm, DEFAULT_CHUNK};
pub use crate::engine::{DraftOptions, DraftSource, Finish, Piece, Summary};
use crate::engine::{Engine, EngineOptions, EventKind, Finished, Request, SequenceId};
use crate::error::Result;
use crate::nn::DepthOptions;
use crate::sampling::{LogitsProcessors, SamplingConfig};
use crate::text::{StopSet, StopStrings, TextProcessor};
pub use crate::token_depth::{TokenDepth, Trace};

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
    /// Tokens per pass over the prompt. With [activations](emberlm_quant::Activations) that are rounded another number can change the text.
    pub chunk: usize,
    /// Number format of cached keys and values.
    pub cache: KvFormat,
    /// How deep tokens go (CREST).
    pub depth: DepthOptions,
    /// Of which tokens the depth is told (CREST).
    pub trace: Trace,
    /// Guess tokens, and verify several in one pass; the text is the same, but for what [`DraftOptions`] says of rounding. None: decode token by token.
    pub draft: Option<DraftOptions>,
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
            depth: DepthOptions::default(),
            trace: Trace::Off,
            draft: None,
        }
    }
}

/// Continues one text with a model: an [`Engine`] of one sequence as an iterator.
#[derive(Debug)]
pub struct Generator<'a, B: CompactBackend> {
    engine: Engine<'a, B>,
    model: &'a CausalLm<B>,
    options: GenerateOptions,
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

impl<'a, B: CompactBackend> Generator<'a, B> {
    /// A generator at the beginning of a text.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) when a sampling option is out of range or a stop string is empty.
    pub fn new(model: &'a CausalLm<B>, text: &TextProcessor, options: GenerateOptions) -> Result<Self> {
        options.sampling.validate()?;
        options.processors.validate()?;
        StopStrings::new(options.stop_strings.iter().cloned())?;
        let limits = EngineOptions {
            kv_format: options.cache,
            tokens_per_step: options.chunk,
            draft: options.draft,
            ..EngineOptions::default()
        };
        let engine = Engine::new(model, text, limits);
        Ok(Self { engine, model, options, cancel: CancelHandle::default(), cache: None })
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
    /// [`Error::Prompt`](crate::Error::Prompt) when the prompt is empty, too long, or has ids outside the vocabulary; [`Error::Option`](crate::Error::Option) when a sampling
    /// option is out of range, or the cache is not that of the history.
    pub fn run(self, prompt: &[u32]) -> Result<Pieces<'a, B>> {
        let Self { mut engine, model, options, cancel, cache } = self;
        let (cache, history) = cache.unwrap_or_else(|| (model.new_cache(options.cache), Vec::new()));
        let request = Request {
            prompt: prompt.to_vec(),
            sampling: options.sampling,
            processors: options.processors,
            max_tokens: options.max_tokens,
            stop_tokens: options.stop_tokens,
            stop_strings: options.stop_strings,
            depth: options.depth,
            trace: options.trace,
            log_probabilities: None,
            prompt_log_probabilities: None,
            prefix_boundaries: Vec::new(),
            grammar: None,
        };
        let id = engine.resume(cache, history, request)?;
        let (pieces, prompt_depth) = (VecDeque::new(), Vec::new());
        Ok(Pieces { engine, id, cancel, pieces, prompt_depth, state: State::Running })
    }
}

/// The pieces of a text as they are generated.
#[derive(Debug)]
pub struct Pieces<'a, B: CompactBackend> {
    engine: Engine<'a, B>,
    id: SequenceId,
    cancel: CancelHandle,
    /// Generated and not yet asked for.
    pieces: VecDeque<Piece>,
    prompt_depth: Vec<TokenDepth>,
    state: State<B>,
}

#[derive(Debug)]
enum State<B: CompactBackend> {
    Running,
    Finished(Box<Finished<B>>),
    Failed,
}

impl<B: CompactBackend> Pieces<'_, B> {
    /// What the generation was; none before the iterator has ended, and after an error.
    pub fn summary(&self) -> Option<&Summary> {
        match &self.state {
            State::Finished(finished) => Some(&finished.summary),
            State::Running | State::Failed => None,
        }
    }

    /// Depth of each token of the prompt; only with [`Trace::All`], once the first piece is there.
    pub fn prompt_depth(&self) -> &[TokenDepth] {
        &self.prompt_depth
    }

    /// The cache and the tokens that it holds, to continue from; none after an error. One that has not ended is cancelled.
    ///
    /// They are those of prompt and output but for the end that was not read yet: of a text that reached its length the last token, with which
    /// the next prompt has to begin.
    pub fn into_cache(mut self) -> Option<(Cache<B>, Vec<u32>)> {
        self.engine.cancel(self.id);
        while matches!(self.state, State::Running) {
            self.step().ok()?;
        }
        match self.state {
            State::Finished(finished) => Some((finished.cache, finished.tokens)),
            State::Running | State::Failed => None,
        }
    }

    fn step(&mut self) -> Result<()> {
        if self.cancel.is_cancelled() {
            self.engine.cancel(self.id);
        }
        for event in self.engine.step() {
            match event.kind {
                EventKind::Started { .. } => {}
                EventKind::PromptRead { depth, .. } => self.prompt_depth.extend(depth),
                EventKind::Token(piece) => self.pieces.push_back(piece),
                EventKind::Finished(finished) => self.state = State::Finished(finished),
                EventKind::Failed(error) => {
                    self.state = State::Failed;
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl<B: CompactBackend> Iterator for Pieces<'_, B> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(Ok(piece));
            }
            if !matches!(self.state, State::Running) {
                return None;
            }
            if let Err(error) = self.step() {
                return Some(Err(error));
            }
        }
    }
}
