//! What an engine counts.

use emberlm_quant::CompactBackend;

use super::request::{Event, EventKind, Finish};

/// What an engine has done since it was made, over all sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineTotals {
    /// Passes of the model, but for those that drafted.
    pub steps: u64,
    /// Passes of fewer steps that drafted.
    pub draft_steps: u64,
    /// Sequences that took part, forks included.
    pub started: u64,
    /// Tokens of their prompts, those that were cached included.
    pub prompt_tokens: u64,
    /// Tokens of their prompts that were not computed.
    pub cached_tokens: u64,
    /// Sequences that began with something from the prefix cache.
    pub prefix_hits: u64,
    /// Tokens chosen, stop tokens excluded.
    pub generated_tokens: u64,
    /// Tokens that were drafted.
    pub drafted_tokens: u64,
    /// Of them those that were what the model chose in their place.
    pub accepted_tokens: u64,
    /// Texts that ended at a stop token or a stop string.
    pub stopped: u64,
    /// Texts that ended at their limit of tokens or at the end of the context.
    pub at_length: u64,
    /// Sequences that were cancelled, also before they took part.
    pub cancelled: u64,
    /// Sequences that failed.
    pub failed: u64,
}

impl EngineTotals {
    pub(super) fn count<B: CompactBackend>(&mut self, events: &[Event<B>]) {
        for event in events {
            match &event.kind {
                EventKind::Started { prompt, cached } => {
                    self.started += 1;
                    self.prompt_tokens += *prompt as u64;
                    self.cached_tokens += *cached as u64;
                }
                EventKind::PromptRead { .. } => {}
                EventKind::Token(piece) => self.generated_tokens += u64::from(piece.token.is_some()),
                EventKind::Finished(finished) => match finished.summary.finish {
                    Finish::Stop => self.stopped += 1,
                    Finish::Length => self.at_length += 1,
                    Finish::Cancelled => self.cancelled += 1,
                },
                EventKind::Failed(_) => self.failed += 1,
            }
        }
    }
}
