//! One text: prompt in, pieces of text out.

use std::collections::VecDeque;

use emberlm_quant::CompactBackend;
use emberlm_quant::kv::KvFormat;

use crate::cache::Cache;
pub use crate::cancel::CancelHandle;
use crate::causal_lm::{CausalLm, DEFAULT_CHUNK};
pub use crate::engine::{DraftOptions, DraftSource, Finish, Piece, Summary};
use crate::engine::{Engine, EngineOptions, EventKind, Finished, Request, SequenceId, TokenMask};
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
    /// Tell how probable every token was, and so many of the most probable ones.
    pub log_probabilities: Option<usize>,
    /// What the text has to be, if not anything: a `Grammar` of the feature `grammar`.
    pub grammar: Option<Box<dyn TokenMask>>,
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
            log_probabilities: None,
            grammar: None,
            draft: None,
        }
    }
}

impl GenerateOptions {
    /// The same for an [`Engine`]: a request that continues a prompt so. [`chunk`](Self::chunk), [`cache`](Self::cache) and
    /// [`draft`](Self::draft) are the engine's own and hold for all of its sequences: see [`EngineOptions`].
    pub fn request(&self, prompt: Vec<u32>) -> Request {
        self.clone().into_request(prompt)
    }

    fn into_request(self, prompt: Vec<u32>) -> Request {
        Request {
            sampling: self.sampling,
            processors: self.processors,
            max_tokens: self.max_tokens,
            stop_tokens: self.stop_tokens,
            stop_strings: self.stop_strings,
            depth: self.depth,
            trace: self.trace,
            log_probabilities: self.log_probabilities,
            grammar: self.grammar,
            ..Request::new(prompt)
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
        let id = engine.resume(cache, history, options.into_request(prompt.to_vec()))?;
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

#[cfg(test)]
mod tests {
    use burn_ndarray::NdArray;

    use super::*;
    use crate::pretrained::Pretrained;

    type Backend = NdArray<f32>;

    /// Threads share a model, on any backend, and each gets what it gets alone.
    #[test]
    fn threads_share_a_model() {
        fn shared<T: Send + Sync>() {}
        fn on_any<B: CompactBackend>() {
            shared::<CausalLm<B>>();
            shared::<Pretrained>();
        }
        on_any::<Backend>();
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/leanllama");
        let pretrained = Pretrained::open(fixture).expect("a fixture");
        let text = pretrained.text().expect("a tokenizer");
        let model = pretrained.load::<Backend>(&Default::default()).expect("a model");
        let run = |first: u32| -> Result<Vec<Option<u32>>> {
            let options = GenerateOptions { max_tokens: 8, ..GenerateOptions::default() };
            let pieces = Generator::new(&model, &text, options)?.run(&[first, 5, 9])?;
            pieces.map(|piece| Ok(piece?.token)).collect()
        };
        std::thread::scope(|scope| {
            let threads = [1, 2, 3].map(|first| (first, scope.spawn(move || run(first).expect("a text"))));
            for (first, thread) in threads {
                assert_eq!(thread.join().expect("no panic"), run(first).expect("a text"));
            }
        });
    }

    /// One text and no other.
    #[derive(Clone, Debug)]
    struct Only {
        left: VecDeque<u32>,
        allowed: Vec<u32>,
    }

    impl TokenMask for Only {
        fn allowed(&mut self) -> Result<Option<&[u32]>> {
            self.allowed.fill(0);
            if let Some(&id) = self.left.front() {
                self.allowed.resize(id as usize / 32 + 1, 0);
                self.allowed[id as usize / 32] |= 1 << (id % 32);
            }
            Ok(Some(&self.allowed))
        }

        fn accept(&mut self, token: u32) -> Result<()> {
            assert_eq!(self.left.pop_front(), Some(token));
            Ok(())
        }

        fn is_complete(&self) -> bool {
            self.left.is_empty()
        }

        fn is_at_end(&self) -> bool {
            self.left.is_empty()
        }

        fn boxed_clone(&self) -> Box<dyn TokenMask> {
            Box::new(self.clone())
        }
    }

    /// What a generator is told is what its engine is asked, and a request of the same options gets the same.
    #[test]
    fn options_are_kept_by_a_generator_and_by_a_request() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/crest_k2");
        let pretrained = Pretrained::open(fixture).expect("a fixture");
        let (text, model) = (
            pretrained.text().expect("a tokenizer"),
            pretrained.load::<Backend>(&Default::default()).expect("a model"),
        );
        let wanted = vec![40, 7, 90];
        let grammar = Only { left: wanted.clone().into(), allowed: Vec::new() };
        let options = GenerateOptions {
            log_probabilities: Some(2),
            grammar: Some(Box::new(grammar)),
            trace: Trace::Chosen,
            max_tokens: 7,
            stop_strings: vec!["never".into()],
            depth: DepthOptions { steps: Some(1), ..DepthOptions::default() },
            sampling: SamplingConfig { temperature: 0.5, seed: Some(3), ..SamplingConfig::greedy() },
            ..GenerateOptions::default()
        };
        let request = options.request(vec![3, 5]);
        assert_eq!((request.max_tokens, &request.stop_strings), (options.max_tokens, &options.stop_strings));
        assert_eq!((&request.depth, &request.sampling), (&options.depth, &options.sampling));
        let mut pieces = Generator::new(&model, &text, options).expect("options").run(&[3, 5]).expect("a prompt");
        let told: Vec<Piece> = pieces.by_ref().collect::<Result<_>>().expect("a text");
        assert_eq!(told.iter().filter_map(|piece| piece.token).collect::<Vec<_>>(), wanted);
        let steps =
            |piece: &Piece| piece.depth.as_ref().is_some_and(|depth| depth.steps.iter().all(|&steps| steps == 1));
        assert!(told.iter().filter(|piece| piece.token.is_some()).all(steps));
        let probabilities: Vec<_> = told.iter().filter_map(|piece| piece.log_probabilities.clone()).collect();
        assert_eq!(probabilities.len(), 3);
        assert!(probabilities.iter().all(|of| of.top.len() == 2 && of.chosen < 0.0));
        assert_eq!(pieces.summary().expect("an end").finish, Finish::Stop);

        let mut engine = Engine::new(&model, &text, EngineOptions::default());
        engine.submit(request).expect("a request");
        let mut again = Vec::new();
        while !engine.is_idle() {
            again.extend(engine.step().into_iter().filter_map(|event| match event.kind {
                EventKind::Token(piece) => Some((piece.token, piece.log_probabilities, piece.depth)),
                _ => None,
            }));
        }
        let told: Vec<_> = told.into_iter().map(|piece| (piece.token, piece.log_probabilities, piece.depth)).collect();
        assert_eq!(again, told);
    }
}
