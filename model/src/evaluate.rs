//! How well a model predicts a text, and how deep it goes for each token.

use std::time::Instant;

use burn::tensor::Transaction;
use emberlm_quant::CompactBackend;
use emberlm_quant::kv::KvFormat;

use crate::cache::Cache;
use crate::causal_lm::{CausalLm, DEFAULT_CHUNK, ForwardOptions, LogitsFor};
use crate::diagnose::{Run, explained};
use crate::error::{Error, Result};
use crate::nn::{DepthOptions, Span};
use crate::read::{elements, read_back};
use crate::token_depth::{TokenDepth, token_depths};

/// Most logits that are held at once, in numbers: 64 MiB.
const MOST_LOGITS: usize = 16 << 20;

/// What a model says about a text, token by token.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Places of the scored tokens in the text, ascending: those that one window or another predicted.
    pub scored: Vec<usize>,
    /// Of every scored token: the natural logarithm of its probability.
    pub log_probabilities: Vec<f32>,
    /// Depth of the pass over every token that was read, window after window (CREST; otherwise without layers). The pass over a
    /// token predicts the next one. Empty without [`EvaluateOptions::trace`].
    pub depth: Vec<TokenDepth>,
    /// Tokens that were read, window after window.
    pub read: usize,
    /// The steps per layer of every one of them, added up; 0 without adaptive depth.
    pub steps: f64,
    /// Windows that were read.
    pub windows: usize,
    /// Seconds that the passes took.
    pub seconds: f64,
}

impl Evaluation {
    /// `exp` of the mean negative log probability; NaN when nothing was scored.
    pub fn perplexity(&self) -> f64 {
        (self.nats() / self.log_probabilities.len() as f64).exp()
    }

    /// The negative log probability of all scored tokens, in nats.
    pub fn nats(&self) -> f64 {
        -self.log_probabilities.iter().map(|&p| f64::from(p)).sum::<f64>()
    }

    /// Steps per layer and token, on average; none without adaptive depth.
    pub fn mean_steps(&self) -> Option<f64> {
        (self.steps > 0.0).then(|| self.steps / self.read as f64)
    }
}

/// How a text is fed in, and which of its tokens count.
///
/// A text that is longer than a window is read in several, each from an empty cache. Of a window, the tokens are scored that have
/// one before them in it, that no window before has scored, and that are beyond the first [`skip`](Self::skip).
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// Tokens that the model sees at most before it begins afresh, the prefix included; none: its context.
    pub window: Option<usize>,
    /// Tokens from the beginning of one window to that of the next; none: all of a window, so that no token is read twice. Fewer
    /// give every scored token more context and take longer.
    pub stride: Option<usize>,
    /// Tokens of the text at the beginning of every window that are context only.
    pub skip: usize,
    /// Tokens that are read at the beginning of every window, such as BOS. They are not part of the text and not scored, and the
    /// first token of a window is scored after them.
    pub prefix: Vec<u32>,
    /// Tokens per pass; none: as many as pay. One at a time costs what decoding costs.
    pub chunk: Option<usize>,
    /// Number format of cached keys and values.
    pub cache: KvFormat,
    /// Keep the depth of every token (CREST), which takes memory for each of them, its layers and their steps; the mean is told without it.
    pub trace: bool,
}

impl Default for EvaluateOptions {
    /// Windows of the model's context, one after the other, without a prefix, an exact cache, and the depth of every token.
    fn default() -> Self {
        Self { window: None, stride: None, skip: 0, prefix: Vec::new(), chunk: None, cache: KvFormat::F32, trace: true }
    }
}

impl EvaluateOptions {
    /// Whether windows can be made for a model with a context of so many tokens, as [`evaluate`] asks it.
    ///
    /// # Errors
    /// [`Error::Option`] when the options leave nothing to score.
    pub fn check(&self, context: usize) -> Result<()> {
        self.steps(context).map(drop)
    }

    /// Tokens of the text in a window, and from one window to the next.
    fn steps(&self, context: usize) -> Result<(usize, usize)> {
        let wrong = |option: &str, message: String| Err(Error::Option { option: option.into(), message });
        let window = self.window.unwrap_or(context).min(context);
        let text = window.saturating_sub(self.prefix.len());
        let scored = text.saturating_sub(self.skip.max(usize::from(self.prefix.is_empty())));
        if window < 2 {
            return wrong("window", format!("is {window}, expected at least 2 tokens"));
        }
        if scored == 0 {
            let message = format!("is {}, which leaves no token of a window of {window} to score", self.skip);
            return wrong("skip", message);
        }
        match self.stride.unwrap_or(text) {
            stride if stride == 0 || stride > text => {
                let message = format!("is {stride}, expected 1 to {text}, the tokens of the text in a window");
                wrong("stride", message)
            }
            stride => Ok((text, stride)),
        }
    }
}

/// Tokens that [`evaluate`] feeds at once at most; their logits, four bytes each, are held together.
pub fn tokens_per_pass(vocab_size: usize) -> usize {
    (MOST_LOGITS / vocab_size.max(1)).clamp(1, DEFAULT_CHUNK)
}

/// Feeds a text to a model and records the probability of its tokens, and the depth of each.
///
/// # Errors
/// [`Error::Prompt`] when the text is empty or has ids outside the vocabulary; [`Error::Option`] when the options leave nothing to
/// score; [`Error::NonFinite`] when the model gives logits that are not numbers.
pub fn evaluate<B: CompactBackend>(model: &CausalLm<B>, ids: &[u32], options: &EvaluateOptions) -> Result<Evaluation> {
    let config = &model.architecture().config;
    let windows = windows(config.max_position_embeddings, ids, options)?;
    let most = tokens_per_pass(config.vocab_size);
    let chunk = options.chunk.map_or(most, |chunk| chunk.clamp(1, most));
    let mut out = Evaluation::default();
    for window in windows {
        let run = Run { chunk, format: options.cache, depth: DepthOptions::default() };
        read_window(model, window, options, chunk, &mut out)
            .map_err(|error| explained(error, model, &window.read(&options.prefix), run, || false))?;
    }
    Ok(out)
}

/// The windows that a text is read in by a model with a context of so many tokens.
///
/// # Errors
/// [`Error::Prompt`] when the text is empty; [`Error::Option`] when the options leave nothing to score.
pub(crate) fn windows<'a>(context: usize, ids: &'a [u32], options: &EvaluateOptions) -> Result<Vec<Window<'a>>> {
    let (text, stride) = options.steps(context)?;
    if ids.is_empty() {
        return Err(Error::Prompt("it has no tokens".into()));
    }
    let mut out = Vec::new();
    let (mut begin, mut done) = (0, 0);
    while done < ids.len() {
        let end = ids.len().min(begin + text);
        let first = done.max(begin + options.skip);
        out.push(Window { ids, begin, end, first });
        done = end;
        begin += stride;
    }
    Ok(out)
}

/// Tokens `begin..end` of a text, those from `first` on to be scored.
#[derive(Clone, Copy)]
pub(crate) struct Window<'a> {
    ids: &'a [u32],
    begin: usize,
    end: usize,
    first: usize,
}

impl Window<'_> {
    /// The tokens that are read: the prefix and those of the text.
    pub(crate) fn read(&self, prefix: &[u32]) -> Vec<u32> {
        prefix.iter().chain(self.ids.get(self.begin..self.end).unwrap_or_default()).copied().collect()
    }
}

fn read_window<B: CompactBackend>(
    model: &CausalLm<B>,
    window: Window<'_>,
    options: &EvaluateOptions,
    chunk: usize,
    out: &mut Evaluation,
) -> Result<()> {
    let mut reader = WindowReader::new(model, window, options, chunk)?;
    while let Some(pass) = reader.next(out)? {
        for (row, target, place) in pass.scored() {
            out.log_probabilities.push(log_probability(row, target, out.log_probabilities.len())?);
            out.scored.push(place);
        }
    }
    out.windows += 1;
    Ok(())
}

/// Feeds the tokens of a window to a model, pass by pass.
pub(crate) struct WindowReader<'a, B: CompactBackend> {
    model: &'a CausalLm<B>,
    cache: Cache<B>,
    read: Vec<u32>,
    chunk: usize,
    /// Tokens that were fed.
    at: usize,
    /// The first token of `read` that is scored.
    first: usize,
    /// What is added to a place in `read` for that in the text, and then what is taken off.
    begin: usize,
    prefix: usize,
    trace: bool,
}

/// The logits after a pass, for the tokens that it predicts.
pub(crate) struct ScoredPass {
    logits: Vec<f32>,
    vocabulary: usize,
    /// Of every row of logits that counts: its number, the token that follows, and the place of that in the text.
    rows: Vec<(usize, u32, usize)>,
}

impl ScoredPass {
    /// Logits, the token that follows, and its place in the text.
    pub(crate) fn scored(&self) -> impl Iterator<Item = (&[f32], u32, usize)> {
        self.rows.iter().filter_map(|&(row, target, place)| {
            Some((self.logits.chunks_exact(self.vocabulary).nth(row)?, target, place))
        })
    }
}

impl<'a, B: CompactBackend> WindowReader<'a, B> {
    pub(crate) fn new(
        model: &'a CausalLm<B>,
        window: Window<'_>,
        options: &EvaluateOptions,
        chunk: usize,
    ) -> Result<Self> {
        let (read, prefix) = (window.read(&options.prefix), options.prefix.len());
        let mut cache = model.new_cache(options.cache);
        model.check_prompt(&read, &cache)?;
        cache.reserve(read.len());
        cache.expect(read.len());
        // Of the first token that has one before it and is to be scored, in `read`.
        let first = (window.first.saturating_sub(window.begin) + prefix).max(1);
        Ok(Self { model, cache, read, chunk, at: 0, first, begin: window.begin, prefix, trace: options.trace })
    }

    /// One pass; `out` takes its depth and its time. None when all tokens are fed.
    pub(crate) fn next(&mut self, out: &mut Evaluation) -> Result<Option<ScoredPass>> {
        let part: Vec<u32> = self.read.iter().skip(self.at).take(self.chunk).copied().collect();
        if part.is_empty() {
            return Ok(None);
        }
        let started = Instant::now();
        // What follows the pass over a token predicts the token after it.
        let targets = self.at + 1..(self.at + 1 + part.len()).min(self.read.len());
        let wanted = if self.first < targets.end { LogitsFor::All } else { LogitsFor::Nothing };
        let mut spans = [Span::new(part.len(), &mut self.cache)];
        let want = ForwardOptions { logits: wanted, hidden: false };
        let pass = self.model.forward(self.model.ids(&part)?, &mut spans, want)?;
        let depth = token_depths(&pass, &(0..part.len()).collect::<Vec<_>>())?;
        let vocabulary = pass.logits.as_ref().map_or(1, |logits| logits.dims()[1]);
        let logits = match pass.logits {
            Some(logits) => elements(read_back(Transaction::default().register(logits))?.next())?,
            None => Vec::<f32>::new(),
        };
        out.seconds += started.elapsed().as_secs_f64();
        out.read += part.len();
        out.steps += depth.iter().map(TokenDepth::mean_steps).sum::<f64>();
        if self.trace {
            out.depth.extend(depth);
        }
        let scored = targets.enumerate().filter(|&(_, place)| place >= self.first && !logits.is_empty());
        let rows = scored.map(|(row, place)| {
            let target = self.read.get(place).copied().unwrap_or(u32::MAX);
            (row, target, (self.begin + place).saturating_sub(self.prefix))
        });
        let rows = rows.collect();
        self.at += part.len();
        Ok(Some(ScoredPass { logits, vocabulary, rows }))
    }
}

pub(crate) fn log_probability(logits: &[f32], target: u32, step: usize) -> Result<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    let chosen = logits.get(target as usize).copied().unwrap_or(f32::NAN);
    let log = f64::from(chosen - largest) - sum.ln();
    if log.is_nan() {
        return Err(Error::NonFinite { step, message: "while a text was evaluated".into() });
    }
    Ok(log as f32)
}
