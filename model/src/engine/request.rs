//! What is asked of an engine, and what it says.

use emberlm_quant::CompactBackend;

use super::SequenceId;
use super::mask::TokenMask;
use crate::cache::Cache;
use crate::error::Error;
use crate::nn::DepthOptions;
use crate::sampling::{LogitsProcessors, SamplingConfig};
use crate::text::StopSet;
use crate::token_depth::{TokenDepth, Trace};

/// A prompt and how it is continued.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids.
    pub prompt: Vec<u32>,
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
    /// How deep its tokens go (CREST).
    pub depth: DepthOptions,
    /// Of which tokens the depth is told (CREST); of those that come from the prefix cache none is known.
    pub trace: Trace,
    /// Tell how probable every token was, and so many of the most probable ones.
    pub log_probabilities: Option<usize>,
    /// Tell how probable every token of the prompt was after those before it, and so many of the most probable ones. The first one
    /// has none before it.
    pub prompt_log_probabilities: Option<usize>,
    /// Numbers of leading tokens after which the prefix cache keeps a snapshot, from which other prompts that begin alike can go on: where
    /// the system message and the tools end, and, last, where the turn of the answer begins. A model without linear attention goes on
    /// from anywhere; for it they only say what to keep longest. The prompt is read in parts that end there.
    pub prefix_boundaries: Vec<usize>,
    /// What the text has to be, if not anything: a `Grammar` of the feature `grammar`.
    pub grammar: Option<Box<dyn TokenMask>>,
}

impl Request {
    /// Greedy, 256 tokens, no stop.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            sampling: SamplingConfig::greedy(),
            processors: LogitsProcessors::default(),
            max_tokens: 256,
            stop_tokens: StopSet::default(),
            stop_strings: Vec::new(),
            depth: DepthOptions::default(),
            trace: Trace::Off,
            log_probabilities: None,
            prompt_log_probabilities: None,
            prefix_boundaries: Vec::new(),
            grammar: None,
        }
    }
}

/// Something that happened to a sequence.
#[derive(Debug)]
pub struct Event<B: CompactBackend> {
    /// Which one.
    pub sequence: SequenceId,
    /// What.
    pub kind: EventKind<Box<Finished<B>>>,
}

/// What happened to a sequence. After `Finished`, which tells `F`, or `Failed` it is forgotten.
#[derive(Debug)]
#[non_exhaustive]
pub enum EventKind<F> {
    /// It takes part from now on.
    Started {
        /// Tokens of its prompt.
        prompt: usize,
        /// Of them those that need not be computed.
        cached: usize,
    },
    /// So many tokens of its prompt were read in a step.
    PromptRead {
        /// Tokens.
        tokens: usize,
        /// Of each of them, with [`Trace::All`].
        depth: Vec<TokenDepth>,
        /// Of the tokens of the prompt that follow them, with [`Request::prompt_log_probabilities`]: all but its first one in all.
        log_probabilities: Vec<LogProbabilities>,
    },
    /// A token was chosen, or text that was held back to the end became certain.
    Token(Piece),
    /// The text has ended.
    Finished(F),
    /// It could not go on; other sequences do.
    Failed(Error),
}

impl<F> EventKind<F> {
    /// The same with something else about the end.
    pub(super) fn map_finished<G>(self, f: impl FnOnce(F) -> G) -> EventKind<G> {
        match self {
            Self::Started { prompt, cached } => EventKind::Started { prompt, cached },
            Self::PromptRead { tokens, depth, log_probabilities } => {
                EventKind::PromptRead { tokens, depth, log_probabilities }
            }
            Self::Token(piece) => EventKind::Token(piece),
            Self::Finished(finished) => EventKind::Finished(f(finished)),
            Self::Failed(error) => EventKind::Failed(error),
        }
    }
}

/// One token's worth of a generated text.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Text that became certain; often empty inside a character or a possible stop string.
    pub text: String,
    /// The token; none for text that was held back to the end.
    pub token: Option<u32>,
    /// Depth of the pass that chose the token; not with [`Trace::Off`].
    pub depth: Option<TokenDepth>,
    /// How probable the token was; only where that is [asked for](Request::log_probabilities).
    pub log_probabilities: Option<LogProbabilities>,
}

/// What the model thought of the tokens at one place, before penalties and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct LogProbabilities {
    /// Of the token that was chosen: the natural logarithm of its probability.
    pub chosen: f64,
    /// Of the most probable tokens, the most probable first; among equals the lowest id.
    pub top: Vec<(u32, f64)>,
}

/// A sequence that has ended.
#[derive(Debug)]
pub struct Finished<B: CompactBackend> {
    /// What was generated, and why it ended.
    pub summary: Summary,
    /// To continue from: what `tokens` left behind.
    pub cache: Cache<B>,
    /// The tokens that the cache holds: prompt and output but for the end that was not read yet, as [`Pieces::into_cache`] says.
    ///
    /// [`Pieces::into_cache`]: crate::generate::Pieces::into_cache
    pub tokens: Vec<u32>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token or a stop string.
    Stop,
    /// As many tokens as were asked for, or the end of the context or of what [`cache_bytes`](super::EngineOptions::cache_bytes) has for one text.
    Length,
    /// It was cancelled.
    Cancelled,
}

/// What a generation was.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Why it ended.
    pub finish: Finish,
    /// The stop string that ended it; none when another reason did.
    pub stop_string: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of them those that were not computed for this request.
    pub cached_tokens: usize,
    /// Every token chosen, stop tokens excluded.
    pub generated: Vec<u32>,
    /// Tokens that were drafted for it ([`EngineOptions::draft`](super::EngineOptions::draft)).
    pub drafted_tokens: usize,
    /// Of them those that were what the model chose in their place.
    pub accepted_tokens: usize,
    /// Seconds from the first step that took part in it until the logits after the prompt.
    pub prefill_seconds: f64,
    /// Seconds since then.
    pub decode_seconds: f64,
    /// Steps per layer and token, on average over the passes that chose tokens; not with [`Trace::Off`].
    pub mean_steps: Option<f64>,
    /// Seed of the draws: giving it again repeats the run. None where no token was drawn.
    pub seed: Option<u64>,
}
