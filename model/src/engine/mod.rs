//! Many sequences with one model: requests in, events out, a step at a time.
//!
//! A step is one pass of the model. It feeds one token of every sequence that generates and chunks of the prompts of those that do
//! not yet, under a budget of tokens, so that nobody waits longer than a chunk. What does not depend on other tokens is computed for
//! all of them at once, which costs little more than one sequence while the weights are what has to be read.
//!
//! Each sequence has its own cache, sampler, stop rules and text: what it gets does not depend on who else is there (but for the last
//! bits of sums, which are taken in another order when more tokens share a pass; with rounded activations, all but
//! [`Activations::F32`](emberlm_quant::Activations::F32), that can change a text). One that fails, fails alone.
//!
//! With [drafts](DraftOptions), a step feeds several tokens of a sequence that generates, which were guessed, and keeps those that are right.
//!
//! With a prefix cache, a prompt that begins like an earlier one is computed from where they part.
//!
//! The engine is synchronous and owned by one thread; an [`EngineHandle`] is for programs with many.

mod check;
mod chooser;
mod draft;
mod handle;
mod mask;
mod prefix;
mod request;
mod room;
mod schedule;
mod scoring;
mod sequence;
#[cfg(test)]
mod tests;
mod totals;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use emberlm_quant::CompactBackend;
use emberlm_quant::kv::KvFormat;

use crate::cache::Cache;
use crate::causal_lm::{CausalLm, DEFAULT_CHUNK, ForwardOptions, ForwardOutput, LogitsFor};
use crate::diagnose::{self, Run};
use crate::error::{Error, Result};
use crate::evaluate::tokens_per_pass;
use crate::nn::Span;
use crate::text::TextProcessor;
pub use crate::token_depth::Trace;
use crate::token_depth::{TokenDepth, token_depths};
use check::RequestCheck;
use draft::ForcedAcceptance;
pub use draft::{DraftOptions, DraftSource};
pub use handle::{EngineHandle, EngineStatus, HandleOptions, Refused, Ticket, Update};
pub use mask::TokenMask;
use prefix::{Keep, PrefixCache, Snapshots};
pub use request::{Event, EventKind, Finish, Finished, LogProbabilities, Piece, Request, Summary};
use schedule::shares;
use sequence::{Chosen, Sequence, Then};
pub use totals::EngineTotals;

/// The name of a sequence, of which there is one among all engines of a process; never used again. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

impl SequenceId {
    /// Of all engines together: where one is given to another engine, that must not mean a sequence there.
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Limits and formats of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Number format of cached keys and values.
    pub kv_format: KvFormat,
    /// Tokens of a step while no sequence generates.
    pub tokens_per_step: usize,
    /// Tokens of prompts in a step in which others generate, drafts included; they wait for it.
    pub prompt_tokens_beside_decoding: usize,
    /// Sequences that take part at once; others wait for their turn.
    pub max_running: usize,
    /// Bytes of all caches together, free slots and kept prefixes included, what several share once; none: what the device has. A cache that grows is for a moment
    /// there twice. Where texts together grow beyond it, the youngest wait until others have ended, and then compute anew what they held.
    pub cache_bytes: Option<usize>,
    /// Bytes of prefixes that are kept for requests that begin with the same tokens, at most; 0: none are kept. They make way where
    /// running sequences need the room: answers first, what many prompts begin with last. Less than 32 tokens in common are computed
    /// again, unless a [boundary](Request::prefix_boundaries) is there. A model with linear attention goes on from boundaries, from the ends of texts,
    /// and from where prompts parted before.
    pub prefix_cache_bytes: usize,
    /// Guess tokens of those that generate, and verify several in one pass; the texts are the same. None: decode token by token.
    pub draft: Option<DraftOptions>,
    /// After logits that are no numbers, find the layer where they come from; that takes a run over the whole text.
    pub explain_failures: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            kv_format: KvFormat::default(),
            tokens_per_step: DEFAULT_CHUNK,
            prompt_tokens_beside_decoding: 128,
            max_running: 64,
            cache_bytes: None,
            prefix_cache_bytes: 0,
            draft: None,
            explain_failures: true,
        }
    }
}

/// Runs requests with one model.
#[derive(Debug)]
pub struct Engine<'m, B: CompactBackend> {
    model: &'m CausalLm<B>,
    text: TextProcessor,
    options: EngineOptions,
    check: RequestCheck,
    prefix: PrefixCache<B>,
    /// Those that take part, the oldest first.
    running: Vec<Sequence<B>>,
    /// Those that wait for room; their caches take none.
    waiting: VecDeque<Sequence<B>>,
    /// What the next step has to tell besides.
    events: Vec<Event<B>>,
    totals: EngineTotals,
}

/// A sequence's part in a step.
struct Turn {
    /// In `running`.
    at: usize,
    tokens: usize,
}

impl<'m, B: CompactBackend> Engine<'m, B> {
    /// An engine without sequences. `text` is what turns tokens into text.
    pub fn new(model: &'m CausalLm<B>, text: &TextProcessor, options: EngineOptions) -> Self {
        let (running, waiting, events) = (Vec::new(), VecDeque::new(), Vec::new());
        let (check, totals) = (RequestCheck::new(model, &options), EngineTotals::default());
        let (text, prefix) = (text.clone(), PrefixCache::new(model, &options));
        Self { model, text, options, check, prefix, running, waiting, events, totals }
    }

    /// Takes a request. Nothing is computed before the next [`step`](Self::step).
    ///
    /// # Errors
    /// [`Error::Prompt`] when the prompt is empty, too long, or has ids outside the vocabulary; [`Error::Option`] when a sampling
    /// option, a depth or the draft is out of range or a stop string is empty; [`Error::Memory`] when its prompt alone is beyond the budget of bytes.
    pub fn submit(&mut self, mut request: Request) -> Result<SequenceId> {
        let cache = self.model.new_cache(self.options.kv_format);
        let boundaries = std::mem::take(&mut request.prefix_boundaries);
        // Every token of a prompt that is scored has to be computed.
        let snapshots = match request.prompt_log_probabilities {
            Some(_) => None,
            None => self.prefix.snapshots(request.prompt.len(), boundaries),
        };
        self.enqueue(cache, Vec::new(), request, snapshots)
    }

    /// As [`submit`](Self::submit), after the `history` that the cache holds: its tokens are not computed again. The prefix cache takes
    /// no part in it.
    ///
    /// # Errors
    /// As [`submit`](Self::submit); [`Error::Option`] when the cache does not hold that many tokens.
    pub fn resume(&mut self, cache: Cache<B>, history: Vec<u32>, request: Request) -> Result<SequenceId> {
        if cache.len() != history.len() {
            let message = format!("holds {} tokens, and the history has {}", cache.len(), history.len());
            return Err(Error::Option { option: "cache".into(), message });
        }
        self.enqueue(cache, history, request, None)
    }

    fn enqueue(
        &mut self,
        mut cache: Cache<B>,
        history: Vec<u32>,
        request: Request,
        snapshots: Snapshots,
    ) -> Result<SequenceId> {
        self.check.check(&cache, &request)?;
        cache.expect(history.len() + request.prompt.len());
        let id = SequenceId::next();
        let context = self.model.architecture().config.max_position_embeddings;
        let mut sequence = Sequence::new(id, request, (cache, history), &self.text, context)?;
        sequence.snapshots = snapshots;
        sequence.forced_acceptance =
            self.options.draft.and_then(|draft| draft.forced_acceptance).map(ForcedAcceptance::new);
        self.waiting.push_back(sequence);
        Ok(id)
    }

    /// Ends a sequence; its last events come with the next step. Nothing happens where it has ended already, or is another engine's.
    pub fn cancel(&mut self, id: SequenceId) {
        let limit = self.prefix_limit();
        let sequence = if let Some(at) = self.running.iter().position(|sequence| sequence.id == id) {
            self.running.remove(at)
        } else if let Some(at) = self.waiting.iter().position(|sequence| sequence.id == id) {
            let Some(sequence) = self.waiting.remove(at) else { return };
            sequence
        } else {
            return;
        };
        let events = self.end(sequence, Finish::Cancelled, limit);
        self.events.extend(events);
        self.make_way(0);
    }

    /// A second sequence that has read and generated what this one has, and goes on by itself, with the same random numbers to come.
    /// On a backend that reads a cache in parts they share its whole tiles for good; the rest, and on other backends all of it, is shared
    /// until one of the two appends and then copied.
    ///
    /// For several answers to one prompt with seeds of their own, submit it several times: with a prefix cache it is read once, the others
    /// wait meanwhile, and each gets what it gets alone.
    ///
    /// # Errors
    /// [`Error::Option`] when there is no such sequence (any more) in this engine, [`Error::Memory`] when there is no room for a second cache.
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId> {
        let mut all = self.running.iter_mut().chain(&mut self.waiting);
        let Some(original) = all.find(|sequence| sequence.id == id) else {
            return Err(Error::Option {
                option: "sequence".into(),
                message: "has ended, or is none of this engine".into(),
            });
        };
        let id = SequenceId::next();
        let copy = original.fork(id)?;
        let more = copy.cache.own_bytes();
        if let Some((bytes, limit)) = self.beyond_budget(more) {
            let what = format!("the caches of {} sequences", self.running.len() + self.waiting.len() + 1);
            return Err(Error::Memory { what, bytes, limit });
        }
        self.make_way(more);
        // What it holds takes room wherever it is; a turn of its own comes when there is a place.
        self.waiting.push_front(copy);
        Ok(id)
    }

    /// Sequences that take part, and those that wait.
    pub fn sequences(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Whether there is nothing to do and nothing to tell.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.events.is_empty()
    }

    /// Bytes of all caches, free slots and kept prefixes included. What several of them share counts once.
    pub fn cache_bytes(&self) -> usize {
        self.bytes_beside_prefixes() + self.prefix.bytes()
    }

    /// Bytes of the prefixes that are kept.
    pub fn prefix_cache_bytes(&self) -> usize {
        self.prefix.bytes()
    }

    /// Lets go of all prefixes.
    pub fn clear_prefix_cache(&mut self) {
        self.prefix.shrink_to(0);
    }

    /// What it has done since it was made.
    pub fn totals(&self) -> EngineTotals {
        self.totals
    }

    /// One pass of the model, and what came of it. Without sequences that is nothing.
    pub fn step(&mut self) -> Vec<Event<B>> {
        let mut events = std::mem::take(&mut self.events);
        self.admit(&mut events);
        self.end_those_at_their_end(&mut events);
        self.draft();
        let turns = self.turns(&mut events);
        if !turns.is_empty() {
            self.pass(turns, &mut events);
            self.totals.steps += 1;
        }
        self.totals.count(&events);
        events
    }

    /// Ends a sequence that has not failed. What it has computed is kept as a prefix, in so many bytes for all of them.
    fn end(&mut self, mut sequence: Sequence<B>, finish: Finish, prefix_limit: usize) -> Vec<Event<B>> {
        self.prefix.keep(&mut sequence, Keep::Answer, prefix_limit);
        sequence.finish(finish)
    }

    /// Keeps the prefixes that sequences have come to the end of.
    fn take_snapshots(&mut self) {
        let limit = self.prefix_limit();
        for sequence in &mut self.running {
            if let Some(keep) = sequence.due_snapshot() {
                self.prefix.keep(sequence, keep, limit);
            }
        }
    }

    fn end_those_at_their_end(&mut self, events: &mut Vec<Event<B>>) {
        let limit = self.prefix_limit();
        let ended: Vec<Sequence<B>> = self.running.extract_if(.., |sequence| sequence.is_at_end()).collect();
        for sequence in ended {
            events.extend(self.end(sequence, Finish::Length, limit));
        }
        self.make_way(0);
    }

    /// Whose tokens this step feeds, as far as there is room for them. Where none can go on for want of room, the youngest are set aside.
    fn turns(&mut self, events: &mut Vec<Event<B>>) -> Vec<Turn> {
        loop {
            let decoding = self.running.iter().any(Sequence::decodes);
            let drafted = self.running.iter().map(|sequence| sequence.draft.len()).sum();
            let budget = match decoding {
                true => self.options.prompt_tokens_beside_decoding.saturating_sub(drafted),
                false => self.options.tokens_per_step,
            };
            // Where prompts are scored, the logits of every token of the step are there at once.
            let scoring = self.running.iter().any(Sequence::scores_prompt);
            let most = tokens_per_pass(self.model.architecture().config.vocab_size);
            let budget = if scoring { budget.min(most) } else { budget };
            let prompts: Vec<usize> =
                self.running.iter().filter(|s| !s.decodes()).map(Sequence::until_snapshot).collect();
            let mut shares = shares(&prompts, budget).into_iter();
            let tokens: Vec<usize> = (self.running.iter())
                .map(|sequence| match sequence.decodes() {
                    true => sequence.pending().len() + sequence.draft.len(),
                    false => shares.next().unwrap_or(0),
                })
                .collect();
            let mut turns = Vec::new();
            let mut refused = None;
            for (at, tokens) in tokens.into_iter().enumerate() {
                match self.make_room(at, tokens) {
                    Ok(()) => turns.push(Turn { at, tokens }),
                    Err(error) => refused = Some(error),
                }
            }
            match refused {
                // Guesses go before a text waits.
                Some(_) if self.drop_drafts() => {}
                Some(error) if turns.is_empty() => {
                    let Some(youngest) = self.running.pop() else { return turns };
                    events.extend(self.yield_room(youngest, error));
                }
                _ => return turns,
            }
        }
    }

    /// Feeds these tokens in one pass; where that is refused each sequence by itself, so that one that cannot go on fails alone.
    fn pass(&mut self, turns: Vec<Turn>, events: &mut Vec<Event<B>>) {
        let mut outcomes: Vec<Option<Outcome>> = self.running.iter().map(|_| None).collect();
        match self.forward(&turns) {
            Ok(out) => self.share_out(&turns, out, &mut outcomes),
            Err(error) if turns.len() == 1 => {
                if let Some(outcome) = turns.first().and_then(|turn| outcomes.get_mut(turn.at)) {
                    *outcome = Some(Outcome::Failed(error));
                }
            }
            Err(_) => {
                for turn in turns {
                    match self.forward_alone(&turn) {
                        Ok(out) => self.share_out(&[turn], out, &mut outcomes),
                        Err(error) => {
                            if let Some(outcome) = outcomes.get_mut(turn.at) {
                                *outcome = Some(Outcome::Failed(error));
                            }
                        }
                    }
                }
            }
        }
        let limit = self.prefix_limit();
        let mut kept = Vec::with_capacity(self.running.len());
        for (sequence, outcome) in std::mem::take(&mut self.running).into_iter().zip(outcomes) {
            kept.extend(self.after(sequence, outcome, limit, events));
        }
        self.running = kept;
        self.take_snapshots();
        // Prefixes that went may have left what sequences hold too.
        self.make_way(0);
    }

    /// The part of one sequence by itself, after a pass that failed. Where that has left its states behind, what they held is computed anew
    /// before: other sequences wait, but each gets what it gets alone.
    fn forward_alone(&mut self, turn: &Turn) -> Result<ForwardOutput<B>> {
        if let Some(Sequence { cache, tokens, depth, .. }) =
            self.running.get_mut(turn.at).filter(|sequence| sequence.cache.is_torn())
        {
            let held = cache.len();
            *cache = cache.emptied();
            let read = tokens.get(..held).unwrap_or_default();
            for tokens in read.chunks(self.options.tokens_per_step.max(1)) {
                let ids = self.model.ids(tokens)?;
                let span = Span { depth: *depth, ..Span::new(tokens.len(), cache) };
                self.model.forward(ids, &mut [span], ForwardOptions { logits: LogitsFor::Nothing, hidden: false })?;
            }
        }
        self.forward(std::slice::from_ref(turn))
    }

    fn forward(&mut self, turns: &[Turn]) -> Result<ForwardOutput<B>> {
        let mut ids = Vec::new();
        let mut spans = Vec::with_capacity(turns.len());
        let mut wanted = LogitsFor::Nothing;
        let mut turns = turns.iter().peekable();
        for (at, sequence) in self.running.iter_mut().enumerate() {
            let Some(turn) = turns.next_if(|turn| turn.at == at) else { continue };
            sequence.begin();
            let (pending, drafted) = (sequence.pending(), sequence.draft.len());
            ids.extend_from_slice(pending.get(..turn.tokens).unwrap_or(pending));
            ids.extend_from_slice(&sequence.draft);
            let ends = turn.tokens == pending.len() + drafted;
            wanted = match wanted {
                _ if sequence.scores_prompt() => LogitsFor::All,
                LogitsFor::Nothing if ends => LogitsFor::Last,
                before => before,
            };
            spans.push(Span { depth: sequence.depth, drafted, ..Span::new(turn.tokens, &mut sequence.cache) });
        }
        let ids = self.model.ids(&ids)?;
        self.model.forward(ids, &mut spans, ForwardOptions { logits: wanted, hidden: false })
    }

    /// Of every turn the tokens of the pass whose depth is told.
    fn traced(&self, turns: &[Turn]) -> Vec<Vec<usize>> {
        let mut first = 0;
        let rows = |turn: &Turn| {
            let rows = first..first + turn.tokens;
            first = rows.end;
            let Some(sequence) = self.running.get(turn.at) else { return Vec::new() };
            match sequence.trace {
                Trace::All => rows.collect(),
                Trace::Chosen if sequence.pending().is_empty() => {
                    (rows.end.saturating_sub(sequence.choices()).max(rows.start)..rows.end).collect()
                }
                Trace::Chosen | Trace::Off => Vec::new(),
            }
        };
        turns.iter().map(rows).collect()
    }

    /// Chooses the next tokens of every sequence whose tokens are all fed.
    fn share_out(&mut self, turns: &[Turn], out: ForwardOutput<B>, outcomes: &mut [Option<Outcome>]) {
        let traced = self.traced(turns);
        // What a trace lacks is no reason to end a text, and the logits will not be read either.
        let mut depth = token_depths(&out, &traced.concat()).unwrap_or_default().into_iter();
        // The first row of logits of each turn; where prompts are scored there is one for every token.
        let every = turns.iter().any(|turn| self.running.get(turn.at).is_some_and(Sequence::scores_prompt));
        let mut first = 0;
        for (turn, traced) in turns.iter().zip(&traced) {
            let last = self.running.get(turn.at).map_or(1, Sequence::choices);
            let rows = first..first + if every { turn.tokens } else { last };
            first = rows.end;
            let last = rows.end.saturating_sub(last)..rows.end;
            let (Some(sequence), Some(outcome)) = (self.running.get_mut(turn.at), outcomes.get_mut(turn.at)) else {
                continue;
            };
            let mut depth: Vec<_> = depth.by_ref().take(traced.len()).collect();
            let read = if sequence.has_begun() { 0 } else { turn.tokens };
            let scored = match &out.logits {
                Some(logits) if sequence.scores_prompt() => {
                    sequence.score(logits.clone().slice_dim(0, rows), turn.tokens)
                }
                _ => Ok(Vec::new()),
            };
            let log_probabilities = match scored {
                Ok(scored) => scored,
                Err(error) => {
                    *outcome = Some(Outcome::Failed(error));
                    continue;
                }
            };
            let logits = out.logits.as_ref().filter(|_| sequence.pending().is_empty());
            let chosen = logits.map(|logits| {
                let depth = depth.iter().skip(depth.len().saturating_sub(last.len())).cloned();
                let (drafted, before) = (sequence.draft.len(), sequence.accepted_tokens());
                let chosen = sequence.choose_all(logits.clone().slice_dim(0, last), depth);
                self.totals.drafted_tokens += drafted as u64;
                self.totals.accepted_tokens += (sequence.accepted_tokens() - before) as u64;
                chosen
            });
            if sequence.trace != Trace::All {
                depth.clear();
            }
            *outcome = Some(Outcome::Fed { read, depth, log_probabilities, chosen });
        }
    }

    /// Tells what became of a sequence in this step; it is given back where it goes on.
    fn after(
        &mut self,
        sequence: Sequence<B>,
        outcome: Option<Outcome>,
        prefix_limit: usize,
        events: &mut Vec<Event<B>>,
    ) -> Option<Sequence<B>> {
        let id = sequence.id;
        let event = |kind| Event { sequence: id, kind };
        match outcome {
            None => Some(sequence),
            Some(Outcome::Failed(error)) => {
                events.push(event(EventKind::Failed(self.explained(error, &sequence))));
                None
            }
            Some(Outcome::Fed { read, depth, log_probabilities, chosen }) => {
                if read > 0 {
                    events.push(event(EventKind::PromptRead { tokens: read, depth, log_probabilities }));
                }
                let Some(Chosen { pieces, then }) = chosen else { return Some(sequence) };
                events.extend(pieces.into_iter().map(|piece| event(EventKind::Token(piece))));
                match then {
                    Then::GoesOn => Some(sequence),
                    Then::Ends(finish) => {
                        events.extend(self.end(sequence, finish, prefix_limit));
                        None
                    }
                    Then::Fails(error) => {
                        events.push(event(EventKind::Failed(self.explained(error, &sequence))));
                        None
                    }
                }
            }
        }
    }

    /// With the layer where numbers stopped being finite.
    fn explained(&self, error: Error, sequence: &Sequence<B>) -> Error {
        if !self.options.explain_failures {
            return error;
        }
        let run = Run { chunk: self.options.tokens_per_step, format: self.options.kv_format, depth: sequence.depth };
        diagnose::explained(error, self.model, &sequence.tokens, run, || false)
    }
}

/// What a step did to one sequence.
enum Outcome {
    Fed {
        /// Tokens of its prompt.
        read: usize,
        /// Of every token fed, with [`Trace::All`].
        depth: Vec<TokenDepth>,
        /// Of the tokens of its prompt that follow those read, where they are asked for.
        log_probabilities: Vec<LogProbabilities>,
        /// Where all its tokens are fed.
        chosen: Option<Chosen>,
    },
    Failed(Error),
}
