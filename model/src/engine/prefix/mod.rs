//! The prefix cache: what sequences left behind, for others that begin with the same tokens.
//!
//! Entries are never changed. A sequence holds the same keys and values (but for those of its last tile, which it copies, and on a
//! backend that does not read a cache in parts, where it copies all), and a copy of a state where the model is recurrent (a state cannot
//! be rolled back). At least one token of a prompt is always computed, since its logits are.

mod tree;

use std::collections::VecDeque;
use std::sync::Arc;

use emberlm_quant::CompactBackend;
use emberlm_quant::kv::KvStore;

use super::EngineOptions;
use super::sequence::Sequence;
use crate::architecture::Architecture;
use crate::cache::{KvBlock, KvSegment, RecurrentState, shared_blocks};
use crate::causal_lm::CausalLm;
use crate::config::RopeScaling;
use crate::error::Result;
use tree::{Hit, PrefixTree, Segment, State, common_prefix};
pub(super) use tree::{Keep, Snapshots};

/// Tokens that are worth a place in the cache, or waiting for, where the request does not say so itself. A state takes as many bytes
/// as the keys and values of hundreds of tokens, and templates begin alike by a few tokens anyway.
const WORTHWHILE: usize = 32;

impl<B: CompactBackend> Segment for KvSegment<B> {
    fn bytes(&self) -> usize {
        self.bytes()
    }

    fn split(&self, at: usize) -> (Self, Self) {
        self.split(at)
    }
}

impl<B: CompactBackend> State for RecurrentState<B> {
    fn bytes(&self) -> usize {
        self.bytes()
    }
}

/// The prefixes that an engine keeps.
#[derive(Debug)]
pub(super) struct PrefixCache<B: CompactBackend> {
    tree: PrefixTree<KvSegment<B>, RecurrentState<B>>,
    recurrent: bool,
    /// Of its own; 0 where nothing is kept.
    limit: usize,
    /// Bytes of the keys and values of a token.
    token_bytes: usize,
    /// A text longer than this has other rotary frequencies, and so other keys from its beginning on.
    longest: usize,
}

impl<B: CompactBackend> PrefixCache<B> {
    pub fn new(model: &CausalLm<B>, options: &EngineOptions) -> Self {
        let architecture = model.architecture();
        let format = KvStore::<B>::format_on(options.kv_format, &model.device());
        let shapes = architecture.cache_shapes();
        let token_bytes = shapes.iter().map(|shape| shape.bytes_per_token(format)).sum();
        let recurrent = shapes.iter().any(|shape| shape.fixed_bytes() > 0);
        let (limit, longest) = (options.prefix_cache_bytes, longest(architecture));
        Self { tree: PrefixTree::new(recurrent), recurrent, limit, token_bytes, longest }
    }

    pub fn bytes(&self) -> usize {
        self.tree.bytes()
    }

    /// Lets go of prefixes until no more than so many bytes are left.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.tree.shrink_to(bytes);
    }

    /// The snapshots that a prompt is worth: at the boundaries it came with, the last of which is taken for its own last turn's.
    pub fn snapshots(&self, prompt: usize, mut boundaries: Vec<usize>) -> Snapshots {
        if self.limit == 0 || prompt > self.longest {
            return None;
        }
        boundaries.retain(|&at| (1..=prompt).contains(&at));
        boundaries.sort_unstable();
        boundaries.dedup();
        let last = boundaries.last().copied();
        let keep = |at| if Some(at) == last { Keep::Turn } else { Keep::Shared };
        let mut snapshots: VecDeque<_> = boundaries.into_iter().map(|at| (at, keep(at))).collect();
        // Keys and values are copied anyway, at the latest with the answer.
        if !self.recurrent && prompt >= WORTHWHILE && last != Some(prompt) {
            snapshots.push_back((prompt, Keep::Turn));
        }
        Some(snapshots)
    }

    /// Notes that what a sequence begins with is about to be used.
    pub fn touch(&mut self, sequence: &Sequence<B>) {
        let hit = self.find(sequence);
        self.tree.touch(&hit);
    }

    /// Gives a sequence that has not started what others left behind of its prompt, and asks for a snapshot where it leaves their path.
    ///
    /// # Errors
    /// When that is not to be had; the cache of the sequence is not to be used then.
    pub fn restore(&self, sequence: &mut Sequence<B>) -> Result<()> {
        let hit = self.find(sequence);
        if hit.tokens > 0 {
            sequence.cache.restore(self.tree.segments(&hit), self.tree.state(&hit))?;
        }
        let Some(snapshots) = &mut sequence.snapshots else { return Ok(()) };
        snapshots.retain(|&(at, _)| at > hit.tokens);
        if self.recurrent && hit.agreed >= hit.tokens + WORTHWHILE {
            add(snapshots, hit.agreed);
        }
        Ok(())
    }

    /// The blocks that a sequence which has not started would share with the prefixes.
    pub fn blocks_for(&self, sequence: &Sequence<B>) -> Vec<&Arc<KvBlock<B>>> {
        shared_blocks(self.tree.segments(&self.find(sequence)))
    }

    /// Keeps what the cache of a sequence holds, with so many bytes for all prefixes. Both hold the same keys and values then.
    pub fn keep(&mut self, sequence: &mut Sequence<B>, keep: Keep, limit: usize) {
        let held = sequence.tokens.get(..sequence.cache.len()).unwrap_or_default();
        let too_short = keep == Keep::Answer && held.len() < WORTHWHILE;
        if sequence.snapshots.is_none() || too_short || held.len() > self.longest {
            return;
        }
        // Where that fails, so does what follows.
        let _ = sequence.cache.make_shareable();
        let cache = &sequence.cache;
        // A cache that has lost a tensor is not kept; its sequence will say so.
        let Ok(state) = cache.recurrent_state() else { return };
        let limits = (limit.min(self.limit), self.token_bytes);
        self.tree.insert((sequence.depth, keep), held, state, limits, |tokens| cache.segment(tokens).ok().flatten());
    }

    /// Whether `waiting` had better start when `running`, which reads its own prompt, has read what both have in common. `running`
    /// is then asked for a snapshot there.
    pub fn is_worth_waiting_for(&self, running: &mut Sequence<B>, waiting: &Sequence<B>) -> bool {
        let is_reading = !running.decodes() && running.id < waiting.id;
        let may_share = is_reading && running.depth == waiting.depth && waiting.begins_anew();
        let Some(snapshots) = running.snapshots.as_mut().filter(|_| may_share) else { return false };
        let common = common_prefix(&running.tokens, usable(&waiting.tokens));
        let too_much = common.saturating_mul(self.token_bytes) > self.limit;
        if too_much || common <= running.cache.len() || common < self.find(waiting).tokens + WORTHWHILE {
            return false;
        }
        if !snapshots.iter().any(|(at, _)| (common.saturating_sub(WORTHWHILE)..=common).contains(at)) {
            add(snapshots, common);
        }
        true
    }

    fn find(&self, sequence: &Sequence<B>) -> Hit {
        match sequence.begins_anew() {
            true => self.tree.find(sequence.depth, usable(&sequence.tokens)),
            false => Hit::default(),
        }
    }
}

/// The tokens of a prompt that may come from the cache.
fn usable(prompt: &[u32]) -> &[u32] {
    prompt.split_last().map_or(&[], |(_, before)| before)
}

/// Adds a snapshot after `at` tokens, unless there is one.
fn add(snapshots: &mut VecDeque<(usize, Keep)>, at: usize) {
    let place = snapshots.partition_point(|(other, _)| *other < at);
    if snapshots.get(place).is_none_or(|(other, _)| *other != at) {
        snapshots.insert(place, (at, Keep::Turn));
    }
}

/// Tokens of a text whose rotary frequencies do not depend on how long it becomes.
pub(super) fn longest(architecture: &Architecture) -> usize {
    match &architecture.config.rope.scaling {
        Some(RopeScaling::Dynamic(scaling)) => scaling.max_position_embeddings,
        Some(RopeScaling::LongRope(scaling)) => scaling.original_max_position_embeddings,
        _ => usize::MAX,
    }
}
