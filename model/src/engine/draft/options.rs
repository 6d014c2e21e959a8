//! What drafts come from, and how long they may be.

use crate::error::{Error, Result};

/// Where the tokens of a draft come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftSource {
    /// What followed the last tokens of prompt and output where they came before. Costs nothing, and helps where a text repeats what was said:
    /// summaries, edits, code, retrieved documents.
    PromptLookup,
    /// The model itself, where each token runs so many steps (CREST): fewer than it runs in earnest.
    Steps(usize),
}

/// How an engine drafts: it guesses the next tokens of those that generate, and verifies all of a sequence in one pass.
///
/// The text is that without drafts. At every place the token is chosen as ever, from the logits of the full model with the sampler,
/// the rules and the random number of that place; a draft stays as far as it is what was chosen. So greedy texts and those of a seed are the
/// same, and distributions too. (A pass over several tokens adds up in another order than one over each, so that the last bits of logits
/// may differ, as they do when other sequences share a pass; with rounded activations, all but
/// [`Activations::F32`](emberlm_quant::Activations::F32), a text can change by that.) A draft of the model itself draws with the random numbers of the places
/// that it guesses, which makes it agree as often as the two distributions let it.
///
/// A text is decoded without drafts where they cannot be taken back or pay nothing: of a request whose own steps are no more than those
/// of the draft, of a text so long that its rotary frequencies depend on its length (`dynamic`, `longrope`), beside a prompt
/// whose tokens are scored, and where memory or the tokens of a step are short.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftOptions {
    /// Where the tokens come from.
    pub source: DraftSource,
    /// Tokens of a draft at most. How many there are follows from the share that was accepted of late: one more as long as it is accepted
    /// with a probability of a half ([`PromptLookup`](DraftSource::PromptLookup)) or three quarters ([`Steps`](DraftSource::Steps)), by what
    /// rows and passes cost. Where not even one is, one is tried every 16 tokens.
    pub max_tokens: usize,
    /// To measure speed alone: every drafted token is accepted with this probability, whatever the model says, and **the text is nonsense**.
    pub forced_acceptance: Option<f64>,
}

impl DraftOptions {
    /// Tokens of a draft at most, where nothing is said.
    pub const MAX_TOKENS: usize = 8;

    /// Drafts from this source.
    pub fn new(source: DraftSource) -> Self {
        Self { source, max_tokens: Self::MAX_TOKENS, forced_acceptance: None }
    }

    /// The least probability with which a token has to be accepted to be drafted. On a processor one more row of a pass costs about a third
    /// of a pass, and a pass of one step out of four as much again; each token has to earn that.
    pub(super) fn worthwhile(&self) -> f64 {
        match self.source {
            DraftSource::PromptLookup => 0.5,
            DraftSource::Steps(_) => 0.75,
        }
    }

    /// Checks it against the steps that a model has; none in a model without adaptive depth.
    ///
    /// # Errors
    /// [`Error::Option`] when the model has no fewer steps to draft with, or a probability is none.
    pub fn check(&self, max_depth: Option<usize>) -> Result<()> {
        let refuse = |option: &str, message: String| Err(Error::Option { option: option.into(), message });
        if let Some(rate) = self.forced_acceptance.filter(|rate| !(0.0..=1.0).contains(rate)) {
            return refuse("draft.forced_acceptance", format!("is {rate}, expected a number from 0 to 1"));
        }
        match (self.source, max_depth) {
            (DraftSource::PromptLookup, _) => Ok(()),
            (DraftSource::Steps(steps), None) => refuse(
                "draft.steps",
                format!("is {steps}, but this model has no adaptive depth; prompt lookup is for every model"),
            ),
            (DraftSource::Steps(steps), Some(loaded)) if steps == 0 || steps >= loaded => {
                let expected = match loaded {
                    ..=1 => "the model has one step, and no fewer to draft with".to_owned(),
                    2 => "expected 1, fewer than the 2 that the model has".to_owned(),
                    _ => format!("expected 1 to {}, fewer than the {loaded} that the model has", loaded - 1),
                };
                refuse("draft.steps", format!("is {steps}; {expected}"))
            }
            (DraftSource::Steps(_), Some(_)) => Ok(()),
        }
    }
}
