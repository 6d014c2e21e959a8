//! One sequence of an engine: its tokens, its cache, and how its next token is chosen.

use std::time::Instant;

use burn::tensor::Tensor;
use emberlm_quant::CompactBackend;

use super::SequenceId;
use super::chooser::Chooser;
use super::draft::{DraftLength, ForcedAcceptance};
use super::prefix::{Keep, Snapshots};
use super::request::{Event, EventKind, Finish, Finished, LogProbabilities, Piece, Request, Summary};
use super::scoring::log_probabilities;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::nn::DepthOptions;
use crate::sampling::Sampler;
use crate::text::{DecodeStream, StopStrings, TextProcessor};
use crate::token_depth::{TokenDepth, Trace};

/// The state of a request between steps.
#[derive(Clone, Debug)]
pub(super) struct Sequence<B: CompactBackend> {
    pub id: SequenceId,
    pub cache: Cache<B>,
    /// Prompt and output; the cache holds the first of them.
    pub tokens: Vec<u32>,
    pub depth: DepthOptions,
    pub trace: Trace,
    /// Still to be taken.
    pub snapshots: Snapshots,
    /// Guesses about the tokens after the pending one; empty between steps.
    pub draft: Vec<u32>,
    pub draft_length: DraftLength,
    pub forced_acceptance: Option<ForcedAcceptance>,
    pub chooser: Chooser,
    stream: DecodeStream,
    stops: StopStrings,
    max_tokens: usize,
    log_probabilities: Option<usize>,
    prompt_log_probabilities: Option<usize>,
    context: usize,
    /// Tokens before the prompt.
    history: usize,
    /// Whether it was told that it takes part.
    started: bool,
    steps_sum: f64,
    begun: Option<Instant>,
    decode_begun: Option<Instant>,
    summary: Summary,
}

/// What the logits after the last tokens of a sequence became.
pub(super) struct Chosen {
    /// Of each token that was chosen.
    pub pieces: Vec<Piece>,
    pub then: Then,
}

/// How a sequence goes on.
pub(super) enum Then {
    GoesOn,
    Ends(Finish),
    Fails(Error),
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
        let history = tokens.len();
        tokens.extend_from_slice(&request.prompt);
        Ok(Self {
            id,
            cache,
            tokens,
            depth: request.depth,
            trace: request.trace,
            snapshots: None,
            draft: Vec::new(),
            draft_length: DraftLength::default(),
            forced_acceptance: None,
            stream: text.decode_stream(true),
            stops: StopStrings::new(request.stop_strings)?,
            max_tokens: request.max_tokens,
            log_probabilities: request.log_probabilities,
            prompt_log_probabilities: request.prompt_log_probabilities,
            context,
            history,
            started: false,
            steps_sum: 0.0,
            begun: None,
            decode_begun: None,
            summary: Summary {
                finish: Finish::Length,
                stop_string: None,
                prompt_tokens: request.prompt.len(),
                cached_tokens: 0,
                generated: Vec::new(),
                drafted_tokens: 0,
                accepted_tokens: 0,
                prefill_seconds: 0.0,
                decode_seconds: 0.0,
                mean_steps: None,
                seed: None,
            },
            chooser: Chooser::new(sampler, request.grammar, request.stop_tokens),
        })
    }

    /// Bytes that its draft takes beside the cache, while it is verified.
    pub fn draft_bytes(&self) -> usize {
        if self.draft.is_empty() { 0 } else { self.cache.replay_bytes(1 + self.draft.len()) }
    }

    /// Tokens that the cache lacks.
    pub fn pending(&self) -> &[u32] {
        self.tokens.get(self.cache.len()..).unwrap_or_default()
    }

    /// Tokens that are chosen once all are fed: one, and one after each of its draft.
    pub fn choices(&self) -> usize {
        1 + self.draft.len()
    }

    /// Of them those that come before the next snapshot.
    pub fn until_snapshot(&self) -> usize {
        let next = self.snapshots.iter().flatten().next().map(|(at, _)| at.saturating_sub(self.cache.len()));
        self.pending().len().min(next.unwrap_or(usize::MAX))
    }

    /// A snapshot that is to be taken before anything more is computed.
    pub fn due_snapshot(&mut self) -> Option<Keep> {
        let held = self.cache.len();
        let snapshots = self.snapshots.as_mut()?;
        while let Some((at, keep)) = snapshots.pop_front_if(|(at, _)| *at <= held) {
            if at == held {
                return Some(keep);
            }
        }
        None
    }

    /// Whether it may begin with what others left behind: it has computed nothing, and its text is all its own.
    pub fn begins_anew(&self) -> bool {
        self.snapshots.is_some() && self.cache.is_empty()
    }

    /// Whether its prompt was read, and so its text has begun.
    pub fn has_begun(&self) -> bool {
        self.decode_begun.is_some()
    }

    /// Whether its next token is the only one that is pending. One that [was set aside](Self::set_aside) reads what it held before.
    pub fn decodes(&self) -> bool {
        self.has_begun() && self.pending().len() <= 1
    }

    /// Lets go of all that is computed for it. It goes on as before once that is computed anew.
    pub fn set_aside(&mut self) {
        self.cache = self.cache.emptied();
    }

    /// Whether the probabilities of its prompt's tokens are still to be told.
    pub fn scores_prompt(&self) -> bool {
        self.prompt_log_probabilities.is_some() && !self.has_begun()
    }

    /// How probable the tokens of the prompt are that follow the last `tokens` of the cache, whose logits `[tokens, vocabulary]` these
    /// are.
    pub fn score(&self, logits: Tensor<B, 2>, tokens: usize) -> Result<Vec<LogProbabilities>> {
        let Some(count) = self.prompt_log_probabilities else { return Ok(Vec::new()) };
        let first = (self.cache.len() + 1).saturating_sub(tokens);
        log_probabilities(logits, self.tokens.get(first..).unwrap_or_default(), count, 0)
    }

    /// Tokens that it may still come to hold.
    pub fn most_tokens(&self) -> usize {
        let rest = self.max_tokens.saturating_sub(self.summary.generated.len());
        self.tokens.len().saturating_add(rest).min(self.context)
    }

    /// Drafted tokens that were accepted so far.
    pub fn accepted_tokens(&self) -> usize {
        self.summary.accepted_tokens
    }

    /// Tokens of a draft at most: the pass that verifies it gives one more, and feeds all of them.
    pub fn most_drafts(&self) -> usize {
        let rest = self.max_tokens.saturating_sub(self.summary.generated.len());
        rest.saturating_sub(1).min(self.context.saturating_sub(self.tokens.len()))
    }

    /// Whether nothing more is to be chosen.
    pub fn is_at_end(&self) -> bool {
        self.summary.generated.len() >= self.max_tokens || self.tokens.len() > self.context
    }

    /// Says that it takes part, the first time: what its cache holds of the prompt by then need not be computed.
    pub fn start(&mut self) -> Option<Event<B>> {
        if std::mem::replace(&mut self.started, true) {
            return None;
        }
        let prompt = self.summary.prompt_tokens;
        let cached = self.cache.len().saturating_sub(self.history).min(prompt);
        self.summary.cached_tokens = cached;
        Some(Event { sequence: self.id, kind: EventKind::Started { prompt, cached } })
    }

    /// The same sequence by another name, which has not started yet.
    ///
    /// # Errors
    /// When its cache has lost a tensor.
    pub fn fork(&mut self, id: SequenceId) -> Result<Self> {
        let cache = self.cache.fork()?;
        Ok(Self { id, cache, started: false, ..self.clone() })
    }

    pub fn begin(&mut self) {
        self.begun.get_or_insert_with(Instant::now);
    }

    /// Chooses tokens from logits `[1 + n, vocabulary]`: those after all tokens, and those after each of the `n` tokens of the draft. A
    /// token of the draft stays if it is what was chosen in its place, and with it the logits after it count. The cache then holds
    /// what it would without a draft. `depth` is that of the passes over the rows, where it is traced.
    pub fn choose_all(&mut self, logits: Tensor<B, 2>, depth: impl Iterator<Item = TokenDepth>) -> Chosen {
        let draft = std::mem::take(&mut self.draft);
        let mut depth = depth.fuse();
        let mut pieces = Vec::with_capacity(1);
        let mut accepted = 0;
        let mut then = loop {
            let drafted = draft.get(accepted).copied();
            let row = match draft.is_empty() {
                true => logits.clone(),
                false => logits.clone().slice_dim(0, accepted..accepted + 1),
            };
            let (piece, stopped) = match self.choose(row, depth.next(), drafted) {
                Ok(Some(chosen)) => chosen,
                Ok(None) => break Then::Ends(Finish::Stop),
                Err(error) => break Then::Fails(error),
            };
            let agrees = drafted.is_some() && piece.token == drafted;
            pieces.push(piece);
            if stopped {
                break Then::Ends(Finish::Stop);
            }
            if self.is_at_end() {
                break Then::Ends(Finish::Length);
            }
            if !agrees {
                break Then::GoesOn;
            }
            accepted += 1;
        };
        if !draft.is_empty() {
            self.summary.drafted_tokens += draft.len();
            self.summary.accepted_tokens += accepted;
            self.draft_length.learn(draft.len(), accepted);
            if let (Err(error), Then::GoesOn | Then::Ends(_)) =
                (self.cache.keep_of_pass(1 + draft.len(), 1 + accepted), &then)
            {
                then = Then::Fails(error);
            }
        }
        Chosen { pieces, then }
    }

    /// Chooses the next token from the logits `[1, vocabulary]` after all tokens, and says what became of the text and whether it ends; none
    /// where a stop token ends it. `drafted` is what a draft has in its place.
    ///
    /// # Errors
    /// When no token can be chosen or turned into text.
    fn choose(
        &mut self,
        logits: Tensor<B, 2>,
        depth: Option<TokenDepth>,
        drafted: Option<u32>,
    ) -> Result<Option<(Piece, bool)>> {
        let step = self.chooser.step();
        let numbers = self.log_probabilities.map(|_| logits.clone());
        let Some(mut token) = self.chooser.choose(logits, &self.tokens)? else { return Ok(None) };
        if let (Some(forced), Some(drafted)) = (&mut self.forced_acceptance, drafted) {
            token = forced.instead_of(token, drafted);
        }
        if self.decode_begun.is_none() {
            self.summary.prefill_seconds = seconds_since(self.begun);
            self.decode_begun = Some(Instant::now());
        }
        if let Some(depth) = depth.as_ref().filter(|depth| !depth.steps.is_empty()) {
            self.steps_sum += depth.mean_steps();
            self.summary.mean_steps = Some(self.steps_sum / self.chooser.step() as f64);
        }
        if self.chooser.stops_at(token) {
            return Ok(None);
        }
        let complete = self.chooser.accept(token)?;
        self.summary.generated.push(token);
        self.tokens.push(token);
        let hidden = self.stream.left_out(token).map(|name| self.stops.push_hidden(&name));
        let stopped = match hidden {
            Some(stopped) => stopped,
            None => self.stops.push(&self.stream.push(token)?),
        };
        let log_probabilities = match (numbers, self.log_probabilities) {
            (Some(logits), Some(count)) => log_probabilities(logits, &[token], count, step)?.pop(),
            _ => None,
        };
        let piece = Piece { text: stopped.text, token: Some(token), depth, log_probabilities };
        self.summary.stop_string = stopped.stop;
        Ok(Some((piece, complete || self.summary.stop_string.is_some())))
    }

    /// Ends the text: what was held back, then the end.
    pub fn finish(mut self, finish: Finish) -> Vec<Event<B>> {
        let id = self.id;
        let event = |kind| Event { sequence: id, kind };
        let mut text = match self.stream.finish_whole() {
            Ok(rest) => self.stops.push(&rest).text,
            Err(error) => return vec![event(EventKind::Failed(error))],
        };
        text.push_str(&self.stops.finish());
        let held = (!text.is_empty()).then_some(Piece { text, token: None, depth: None, log_probabilities: None });
        self.summary.finish = finish;
        self.summary.seed = self.chooser.drawn_seed();
        self.summary.decode_seconds = seconds_since(self.decode_begun);
        self.tokens.truncate(self.cache.len());
        let finished = Finished { summary: self.summary, cache: self.cache, tokens: self.tokens };
        held.map(EventKind::Token).into_iter().chain([EventKind::Finished(Box::new(finished))]).map(event).collect()
    }
}

fn seconds_since(start: Option<Instant>) -> f64 {
    start.map_or(0.0, |start| start.elapsed().as_secs_f64())
}
