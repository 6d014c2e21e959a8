//! The budget of bytes: who takes part, and what goes to make room.

use std::collections::HashSet;
use std::sync::Arc;

use emberlm_quant::CompactBackend;

use super::Engine;
use super::request::{Event, EventKind, Finish};
use super::sequence::Sequence;
use crate::cache::{Cache, KvBlock, block_bytes};
use crate::error::{Error, Result};

/// Output tokens that a cache gets room for at once; a longer text grows it.
const RESERVED: usize = 1024;

impl<B: CompactBackend> Engine<'_, B> {
    fn caches(&self) -> impl Iterator<Item = &Cache<B>> {
        self.running.iter().chain(&self.waiting).map(|sequence| &sequence.cache)
    }

    /// Of what each sequence has by itself, and of the drafts that are verified in this step. Of a [fork](Self::fork) that is what it still shares but will copy: room for the copy is set
    /// aside before one of the two goes on.
    fn own_bytes(&self) -> usize {
        let drafts: usize = self.running.iter().map(Sequence::draft_bytes).sum();
        self.caches().map(Cache::own_bytes).sum::<usize>().saturating_add(drafts)
    }

    /// Of the caches of all sequences; what several share counts once.
    fn sequence_bytes(&self) -> usize {
        self.own_bytes() + block_bytes(self.caches(), |_| true)
    }

    /// Of them those that are not in kept prefixes too.
    pub(super) fn bytes_beside_prefixes(&self) -> usize {
        self.own_bytes() + block_bytes(self.caches(), |block| !block.is_kept())
    }

    /// What the sequences would take with so many bytes more, and the budget, where it is beyond even without prefixes.
    pub(super) fn beyond_budget(&self, more: usize) -> Option<(usize, usize)> {
        let limit = self.options.cache_bytes?;
        let bytes = self.sequence_bytes().saturating_add(more);
        (bytes > limit).then_some((bytes, limit))
    }

    /// Bytes that prefixes may take beside the sequences.
    pub(super) fn prefix_limit(&self) -> usize {
        self.options.cache_bytes.map_or(usize::MAX, |limit| limit.saturating_sub(self.bytes_beside_prefixes()))
    }

    /// Whether the sequences can take so many bytes more without any prefix going.
    fn fits_beside_prefixes(&self, more: usize) -> bool {
        self.prefix_limit() >= self.prefix.bytes().saturating_add(more)
    }

    /// Lets prefixes go, so that the sequences can take so many bytes more.
    pub(super) fn make_way(&mut self, more: usize) {
        self.make_way_for(|_| more);
    }

    /// Lets prefixes go, so that the sequences can take `more` bytes, which may be more without what went. What sequences share with a
    /// prefix stays with them.
    fn make_way_for(&mut self, more: impl Fn(&Self) -> usize) {
        while self.prefix.bytes() > 0 {
            let limit = self.prefix_limit().saturating_sub(more(self));
            if self.prefix.bytes() <= limit {
                return;
            }
            self.prefix.shrink_to(limit);
        }
    }

    /// Bytes of a cache that takes part which are there already: beside the prefixes, and without them.
    fn bytes_there(&self, sequence: &Sequence<B>) -> [usize; 2] {
        let blocks: Vec<&Arc<KvBlock<B>>> = match sequence.begins_anew() {
            true => self.prefix.blocks_for(sequence),
            false => sequence.cache.blocks().iter().collect(),
        };
        let held: HashSet<_> = self.caches().flat_map(Cache::blocks).map(Arc::as_ptr).collect();
        let is_held = |block: &Arc<KvBlock<B>>| held.contains(&Arc::as_ptr(block));
        let bytes = |there: &dyn Fn(&Arc<KvBlock<B>>) -> bool| {
            blocks.iter().filter(|block| there(block)).map(|block| block.bytes()).sum()
        };
        [bytes(&|block| block.is_kept() || is_held(block)), bytes(&is_held)]
    }

    /// Lets those that wait take part, in order, as long as there is room for their prompts. One whose prompt another is just reading
    /// waits for what both have in common, and lets others pass.
    pub(super) fn admit(&mut self, events: &mut Vec<Event<B>>) {
        let mut at = 0;
        while self.running.len() < self.options.max_running.max(1) {
            let Some(sequence) = self.waiting.get(at) else { return };
            let worth_waiting = |running| self.prefix.is_worth_waiting_for(running, sequence);
            if self.running.iter_mut().any(worth_waiting) {
                at += 1;
                continue;
            }
            let Some(mut sequence) = self.waiting.remove(at) else { return };
            let read = sequence.tokens.len();
            let roomy = sequence.most_tokens().min(read.saturating_add(RESERVED));
            let held = sequence.cache.bytes();
            // Its own bytes count with those of the others, but for what it shares with them or with prefixes.
            let [there, there_without_prefixes] = self.bytes_there(&sequence);
            let [roomy_bytes, read_bytes] = [roomy, read].map(|slots| sequence.cache.bytes_with_room(slots).max(held));
            let (slots, bytes) = match self.fits_beside_prefixes(roomy_bytes.saturating_sub(there)) {
                true => (roomy, roomy_bytes),
                false => (read, read_bytes),
            };
            match self.beyond_budget(bytes.saturating_sub(there_without_prefixes)) {
                None => {
                    self.prefix.touch(&sequence);
                    self.make_way_for(|engine| {
                        let [there, _] = engine.bytes_there(&sequence);
                        bytes.saturating_sub(there)
                    });
                    self.start(&mut sequence, slots);
                    events.extend(sequence.start());
                    self.running.push(sequence);
                }
                // Nobody will make room.
                Some((bytes, limit)) if self.running.is_empty() => {
                    let error = Error::Memory { what: "the caches of all sequences".into(), bytes, limit };
                    events.extend(self.give_up(sequence, error));
                }
                Some(_) => {
                    self.waiting.insert(at, sequence);
                    return;
                }
            }
        }
    }

    /// What becomes of a sequence that was taken out because none of those that run has room for its next tokens: it waits in front of all
    /// others until there is room, and what it held is computed anew. It ends where waiting would be in vain, or where scores that were told
    /// would be told again.
    pub(super) fn yield_room(&mut self, mut sequence: Sequence<B>, error: Error) -> Vec<Event<B>> {
        if self.running.is_empty() || sequence.scores_prompt() || !self.fits_alone(&sequence) {
            return self.give_up(sequence, error);
        }
        sequence.set_aside();
        self.waiting.push_front(sequence);
        Vec::new()
    }

    /// Ends a sequence for which there will be no room: a text that has begun as at the end of the context, so that it is not lost.
    fn give_up(&mut self, sequence: Sequence<B>, error: Error) -> Vec<Event<B>> {
        if !sequence.has_begun() {
            return vec![Event { sequence: sequence.id, kind: EventKind::Failed(error) }];
        }
        let limit = self.prefix_limit();
        self.end(sequence, Finish::Length, limit)
    }

    /// Whether there would be room for all tokens of a sequence that is alone.
    fn fits_alone(&self, sequence: &Sequence<B>) -> bool {
        let (cache, tokens) = (&sequence.cache, sequence.tokens.len());
        let within = |limit| cache.bytes_with_room(tokens) <= limit;
        cache.check_room(tokens).is_ok() && self.options.cache_bytes.is_none_or(within)
    }

    /// Gives the cache of a sequence so many slots and what prefixes left behind.
    fn start(&mut self, sequence: &mut Sequence<B>, slots: usize) {
        // Where the device has less room than that, it grows step by step.
        if sequence.cache.check_room(slots).is_err() {
            return;
        }
        let anew = sequence.begins_anew();
        if anew && self.prefix.restore(sequence).is_err() {
            let mut cache = self.model.new_cache(self.options.kv_format);
            cache.expect(sequence.tokens.len());
            sequence.cache = cache;
        }
        sequence.cache.reserve(slots);
        self.totals.prefix_hits += u64::from(anew && !sequence.cache.is_empty());
    }

    /// Makes room for `tokens` more of a sequence, half as much again where the budget has it.
    pub(super) fn make_room(&mut self, at: usize, tokens: usize) -> Result<()> {
        let Some(sequence) = self.running.get(at) else { return Ok(()) };
        let cache = &sequence.cache;
        let (needed, held) = (cache.len() + tokens, cache.bytes());
        cache.check_room(needed)?;
        if needed <= cache.capacity() {
            return Ok(());
        }
        let roomy = sequence.most_tokens().min(needed.max(cache.capacity() + cache.capacity() / 2));
        let [roomy_more, more] = [roomy, needed].map(|slots| cache.bytes_with_room(slots).saturating_sub(held));
        let is_roomy = roomy >= needed && self.fits_beside_prefixes(roomy_more) && cache.check_room(roomy).is_ok();
        let (slots, more) = if is_roomy { (roomy, roomy_more) } else { (needed, more) };
        if let Some((bytes, limit)) = self.beyond_budget(more) {
            let what = format!("the caches of {} sequences", self.running.len() + self.waiting.len());
            return Err(Error::Memory { what, bytes, limit });
        }
        self.make_way(more);
        if let Some(sequence) = self.running.get_mut(at) {
            sequence.cache.reserve(slots);
        }
        Ok(())
    }
}
