//! Speculative decoding: tokens are guessed, and verified in one pass.
//!
//! A pass over a few tokens costs little more than one over one, since the weights are what has to be read. Drafts are made before a
//! step; the step feeds each sequence its pending token and its draft, and [`Sequence::choose_all`] goes through the logits token
//! by token, with the sequence's own sampler. What was not chosen is cut from the cache.
//!
//! Drafts of the model itself (CREST, at fewer steps) are decoded token by token through the sequence's own cache. What they leave there is
//! of another depth, so the cache returns to the pending token before the pass that verifies.

mod forced;
mod length;
mod lookup;
mod options;

use burn::tensor::Tensor;
use emberlm_quant::CompactBackend;

pub(super) use forced::ForcedAcceptance;
pub(super) use length::DraftLength;
use lookup::lookup;
pub use options::{DraftOptions, DraftSource};

use super::Engine;
use super::chooser::Chooser;
use super::prefix::longest;
use super::schedule::shares;
use super::sequence::Sequence;
use crate::cache::Mark;
use crate::causal_lm::{ForwardOptions, LogitsFor};
use crate::error::Result;
use crate::nn::{DepthOptions, Span};

/// A sequence that drafts by passes of its own.
struct Drafting<B: CompactBackend> {
    /// In `running`.
    at: usize,
    /// Tokens to draft at most.
    wanted: usize,
    chooser: Chooser,
    mark: Mark<B>,
    /// Tokens of the sequence before.
    tokens: usize,
    ended: bool,
}

impl<B: CompactBackend> Engine<'_, B> {
    /// Drafts for those that generate.
    pub(super) fn draft(&mut self) {
        let Some(options) = self.options.draft else { return };
        let wanted = self.wanted(options);
        match options.source {
            DraftSource::PromptLookup => {
                for (at, wanted) in wanted {
                    let Some(sequence) = self.running.get_mut(at) else { continue };
                    sequence.draft = lookup(&sequence.tokens, wanted);
                    if options.forced_acceptance.is_some() {
                        // Whatever stands there counts.
                        sequence.draft.resize(wanted, sequence.tokens.last().copied().unwrap_or_default());
                    }
                }
            }
            DraftSource::Steps(steps) => self.draft_by_steps(wanted, steps),
        }
    }

    /// Who is to draft how many tokens, for which there is room. Together they are half of what others wait for, at most.
    fn wanted(&mut self, options: DraftOptions) -> Vec<(usize, usize)> {
        let half = self.options.prompt_tokens_beside_decoding / 2;
        let decoding = self.running.iter().filter(|sequence| sequence.decodes()).count();
        if decoding > half || self.running.iter().any(Sequence::scores_prompt) {
            return Vec::new();
        }
        let longest = longest(self.model.architecture());
        let max_depth = self.model.max_depth();
        let mut each = Vec::new();
        for (at, sequence) in self.running.iter_mut().enumerate() {
            let DepthOptions { steps, .. } = sequence.depth;
            let deeper = match options.source {
                DraftSource::PromptLookup => true,
                DraftSource::Steps(drafted) => steps.or(max_depth).is_some_and(|steps| steps > drafted),
            };
            if !deeper || !sequence.decodes() || sequence.pending().len() != 1 {
                continue;
            }
            let most = sequence.most_drafts().min(longest.saturating_sub(sequence.tokens.len()));
            let wanted = sequence.draft_length.next(options.worthwhile(), most.min(options.max_tokens));
            if wanted > 0 {
                each.push((at, wanted));
            }
        }
        let wanted: Vec<usize> = each.iter().map(|&(_, wanted)| wanted).collect();
        let each = each.into_iter().map(|(at, _)| at).zip(shares(&wanted, half));
        let mut each: Vec<_> = each.filter(|&(at, wanted)| self.make_room(at, 1 + wanted).is_ok()).collect();
        let mut bytes = 0usize;
        each.retain(|&(at, wanted)| {
            let more = self.running.get(at).map_or(0, |sequence| sequence.cache.replay_bytes(1 + wanted));
            let all = bytes.saturating_add(more);
            let fits = self.beyond_budget(all).is_none();
            bytes = if fits { all } else { bytes };
            fits
        });
        self.make_way(bytes);
        each
    }

    /// Gives up the drafts of this step; whether there were any.
    pub(super) fn drop_drafts(&mut self) -> bool {
        let drafts = self.running.iter_mut().map(|sequence| std::mem::take(&mut sequence.draft));
        drafts.filter(|draft| !draft.is_empty()).count() > 0
    }

    /// Decodes at few steps, one token of every sequence that drafts in a pass. Where a pass fails there is less to verify; what is wrong
    /// shows there too.
    fn draft_by_steps(&mut self, wanted: Vec<(usize, usize)>, steps: usize) {
        let mut drafting = Vec::new();
        for (at, wanted) in wanted {
            let Some(sequence) = self.running.get(at) else { continue };
            let (chooser, mark) = (sequence.chooser.for_draft(), sequence.cache.mark());
            drafting.push(Drafting { at, wanted, chooser, mark, tokens: sequence.tokens.len(), ended: false });
        }
        while drafting.iter().any(|drafting| !drafting.ended) {
            self.totals.draft_steps += 1;
            if self.draft_token(&mut drafting, steps).is_err() {
                break;
            }
        }
        for Drafting { at, mark, tokens, .. } in drafting {
            let Some(sequence) = self.running.get_mut(at) else { continue };
            sequence.draft = sequence.tokens.split_off(tokens.min(sequence.tokens.len()));
            if sequence.cache.return_to(mark).is_err() {
                // It cannot go on either: its next pass says why.
                sequence.draft.clear();
            }
        }
    }

    /// One token more of those whose draft has not ended.
    fn draft_token(&mut self, drafting: &mut [Drafting<B>], steps: usize) -> Result<()> {
        let (mut ids, mut spans) = (Vec::new(), Vec::new());
        let mut of = drafting.iter().filter(|drafting| !drafting.ended).map(|drafting| drafting.at).peekable();
        for (at, sequence) in self.running.iter_mut().enumerate() {
            if of.next_if_eq(&at).is_some() {
                let depth = DepthOptions { steps: Some(steps), ..sequence.depth };
                ids.extend(sequence.tokens.last());
                spans.push(Span { depth, ..Span::new(1, &mut sequence.cache) });
            }
        }
        let options = ForwardOptions { logits: LogitsFor::Last, hidden: false };
        let logits = self.model.forward(self.model.ids(&ids)?, &mut spans, options)?.logits;
        let Some(logits) = logits else {
            drafting.iter_mut().for_each(|drafting| drafting.ended = true);
            return Ok(());
        };
        for (row, drafting) in drafting.iter_mut().filter(|drafting| !drafting.ended).enumerate() {
            let Some(sequence) = self.running.get_mut(drafting.at) else { continue };
            drafting.ended = !drafting.extend(&mut sequence.tokens, logits.clone().slice_dim(0, row..row + 1))?;
        }
        Ok(())
    }
}

impl<B: CompactBackend> Drafting<B> {
    /// Chooses a token of the draft; whether one more is to follow.
    fn extend(&mut self, tokens: &mut Vec<u32>, logits: Tensor<B, 2>) -> Result<bool> {
        let Some(token) = self.chooser.choose(logits, tokens)? else { return Ok(false) };
        tokens.push(token);
        if self.chooser.stops_at(token) || self.chooser.accept(token)? {
            return Ok(false);
        }
        Ok(tokens.len() < self.tokens + self.wanted)
    }
}
