//! One sequence of an engine: its tokens, its cache, and how its next token is chosen.

use std::time::Instant;

use burn::tensor::{Tensor, Transaction};
use emberlm_quant::CompactBackend;

use super::SequenceId;
use super::mask::Masked;
use super::request::{Event, EventKind, Finish, Finished, LogProbabilities, Piece, Request, Summary};
use crate::cache::Cache;
use crate::error::Result;
use crate::read::{elements, read_back};
use crate::sampling::{Sampler, log_softmax};
use crate::text::{DecodeStream, StopSet, StopStrings, TextProcessor};
use crate::token_depth::TokenDepth;

/// The state of a request between steps.
#[derive(Clone, Debug)]
pub(super) struct Sequence<B: CompactBackend> {
    pub id: SequenceId,
    pub cache: Cache<B>,
    /// Prompt and output; the cache holds the first of them.
    pub tokens: Vec<u32>,
    pub trace: bool,
    sampler: Sampler,
    stream: DecodeStream,
    stops: StopStrings,
    stop_tokens: StopSet,
    max_tokens: usize,
    log_probabilities: Option<usize>,
    grammar: Option<Masked>,
    context: usize,
    steps_sum: f64,
    begun: Option<Instant>,
    decode_begun: Option<Instant>,
    summary: Summary,
}

impl<B: CompactBackend> Sequence<B> {
    /// A request whose first tokens the cache holds already.
    pub fn new(
        id: SequenceId,
        request: Request,
        (cache, mut tokens): (Cache<B>, Vec<u32>),
        text: &TextProcessor,
        context: usize,
    ) -> Result<Self> {
        let sampler = Sampler::new(&request.sampling)?.with_processors(request.processors, request.stop_tokens.ids());
        tokens.extend_from_slice(&request.prompt);
        Ok(Self {
            id,
            cache,
            tokens,
            trace: request.trace,
            stream: text.decode_stream(true),
            stops: StopStrings::new(request.stop_strings)?,
            stop_tokens: request.stop_tokens,
            max_tokens: request.max_tokens,
            log_probabilities: request.log_probabilities,
            grammar: request.grammar.map(Masked::new),
            context,
            steps_sum: 0.0,
            begun: None,
            decode_begun: None,
            summary: Summary {
                finish: Finish::Length,
                prompt_tokens: request.prompt.len(),
                generated: Vec::new(),
                prefill_seconds: 0.0,
                decode_seconds: 0.0,
                mean_steps: None,
                seed: sampler.seed(),
            },
            sampler,
        })
    }

    /// Tokens that the cache lacks.
    pub fn pending(&self) -> &[u32] {
        self.tokens.get(self.cache.len()..).unwrap_or_default()
    }

    /// Whether its prompt was read: then one token is pending.
    pub fn decodes(&self) -> bool {
        self.decode_begun.is_some()
    }

    /// Tokens that it may still come to hold.
    pub fn most_tokens(&self) -> usize {
        let rest = self.max_tokens.saturating_sub(self.summary.generated.len());
        self.tokens.len().saturating_add(rest).min(self.context)
    }

    /// Whether nothing more is to be chosen.
    pub fn is_at_end(&self) -> bool {
        self.summary.generated.len() >= self.max_tokens || self.tokens.len() > self.context
    }

    pub fn begin(&mut self) {
        self.begun.get_or_insert_with(Instant::now);
    }

    /// Chooses the next token from the logits `[1, vocabulary]` after all tokens, and says what became of the text; none where a
    /// stop token ends it.
    ///
    /// # Errors
    /// When no token can be chosen or turned into text.
    pub fn choose(&mut self, logits: Tensor<B, 2>, depth: Option<TokenDepth>) -> Result<Option<(Piece, bool)>> {
        let step = self.sampler.step();
        let numbers = self.log_probabilities.map(|_| logits.clone());
        let token = match &mut self.grammar {
            None => self.sampler.choose(logits, &self.tokens)?,
            Some(grammar) => {
                let [_, vocabulary] = logits.dims();
                let Some(allowed) = grammar.allowed(vocabulary, &self.stop_tokens)? else { return Ok(None) };
                self.sampler.choose_allowed(logits, &self.tokens, allowed)?
            }
        };
        if self.decode_begun.is_none() {
            self.summary.prefill_seconds = seconds_since(self.begun);
            self.decode_begun = Some(Instant::now());
        }
        if let Some(depth) = depth.as_ref().filter(|depth| !depth.steps.is_empty()) {
            self.steps_sum += depth.mean_steps();
            self.summary.mean_steps = Some(self.steps_sum / self.sampler.step() as f64);
        }
        if self.stop_tokens.contains(token) {
            return Ok(None);
        }
        let complete = self.grammar.as_mut().map(|grammar| grammar.accept(token)).transpose()?.unwrap_or(false);
        self.summary.generated.push(token);
        self.tokens.push(token);
        let hidden = self.stream.left_out(token).map(|name| self.stops.push_hidden(&name));
        let stopped = match hidden {
            Some(stopped) => stopped,
            None => self.stops.push(&self.stream.push(token)?),
        };
        let log_probabilities = match (numbers, self.log_probabilities) {
            (Some(logits), Some(count)) => Some(log_probabilities(logits, token, count, step)?),
            _ => None,
        };
        let piece = Piece { text: stopped.text, token: Some(token), depth, log_probabilities };
        Ok(Some((piece, complete || stopped.stop.is_some())))
    }

    /// Ends the text: what was held back, then the end.
    pub fn finish(mut self, finish: Finish) -> Vec<Event<B>> {
        let id = self.id;
        let event = |kind| Event { sequence: id, kind };
        let mut text = match self.stream.finish() {
            Ok(rest) => self.stops.push(&rest).text,
            Err(error) => return vec![event(EventKind::Failed(error))],
        };
        text.push_str(&self.stops.finish());
        let held = (!text.is_empty()).then_some(Piece { text, token: None, depth: None, log_probabilities: None });
        self.summary.finish = finish;
        self.summary.decode_seconds = seconds_since(self.decode_begun);
        self.tokens.truncate(self.cache.len());
        let finished = Finished { summary: self.summary, cache: self.cache, tokens: self.tokens };
        held.map(EventKind::Token).into_iter().chain([EventKind::Finished(Box::new(finished))]).map(event).collect()
    }
}

/// Of logits `[1, vocabulary]`: of the token chosen, and of the `count` most probable ones.
fn log_probabilities<B: CompactBackend>(
    logits: Tensor<B, 2>,
    chosen: u32,
    count: usize,
    step: usize,
) -> Result<LogProbabilities> {
    let logits: Vec<f32> = elements(read_back(Transaction::default().register(logits))?.next())?;
    let all = log_softmax(&logits, step)?;
    let of = |id: u32| all.get(id as usize).copied().unwrap_or(f64::NEG_INFINITY);
    let mut ids: Vec<u32> = (0u32..).zip(&all).map(|(id, _)| id).collect();
    let by_probability = |a: &u32, b: &u32| of(*b).total_cmp(&of(*a)).then(a.cmp(b));
    let count = count.min(ids.len());
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, by_probability);
    }
    ids.truncate(count);
    ids.sort_unstable_by(by_probability);
    Ok(LogProbabilities { chosen: of(chosen), top: ids.into_iter().map(|id| (id, of(id))).collect() })
}

fn seconds_since(start: Option<Instant>) -> f64 {
    start.map_or(0.0, |start| start.elapsed().as_secs_f64())
}
