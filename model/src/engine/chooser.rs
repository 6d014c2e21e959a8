//! How the next token of one sequence is chosen: its sampler, and the mask before it.

use burn::tensor::Tensor;
use emberlm_quant::CompactBackend;

use super::mask::{Masked, TokenMask};
use crate::error::Result;
use crate::sampling::Sampler;
use crate::text::StopSet;

/// Chooses tokens, and knows those that end the text.
#[derive(Clone, Debug)]
pub(super) struct Chooser {
    sampler: Sampler,
    grammar: Option<Masked>,
    stop_tokens: StopSet,
}

impl Chooser {
    pub fn new(sampler: Sampler, grammar: Option<Box<dyn TokenMask>>, stop_tokens: StopSet) -> Self {
        Self { sampler, grammar: grammar.map(Masked::new), stop_tokens }
    }

    /// One that chooses what this one would, and leaves it as it is.
    pub fn for_draft(&self) -> Self {
        let (grammar, stop_tokens) = (self.grammar.clone(), self.stop_tokens.clone());
        Self { sampler: self.sampler.without_scratch(), grammar, stop_tokens }
    }

    /// Tokens chosen so far.
    pub fn step(&self) -> usize {
        self.sampler.step()
    }

    /// The seed of what was drawn so far.
    pub fn drawn_seed(&self) -> Option<u64> {
        self.sampler.drawn_seed()
    }

    /// The next token by the logits `[1, vocabulary]` after the tokens `seen`; none where the text has to end.
    ///
    /// # Errors
    /// When no token can be chosen.
    pub fn choose<B: CompactBackend>(&mut self, logits: Tensor<B, 2>, seen: &[u32]) -> Result<Option<u32>> {
        let Some(grammar) = &mut self.grammar else { return self.sampler.choose(logits, seen).map(Some) };
        let [_, vocabulary] = logits.dims();
        let Some(allowed) = grammar.allowed(vocabulary, &self.stop_tokens)? else { return Ok(None) };
        self.sampler.choose_allowed(logits, seen, allowed).map(Some)
    }

    /// Whether this token ends the text, and is no part of it.
    pub fn stops_at(&self, token: u32) -> bool {
        self.stop_tokens.contains(token)
    }

    /// Takes a token that does not; whether the text has to end behind it.
    ///
    /// # Errors
    /// When the mask refuses it.
    pub fn accept(&mut self, token: u32) -> Result<bool> {
        self.grammar.as_mut().map_or(Ok(false), |grammar| grammar.accept(token))
    }
}
