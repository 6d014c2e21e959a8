//! What can be told of a request before anything is computed for it.

use emberlm_quant::CompactBackend;

use super::EngineOptions;
use super::draft::DraftOptions;
use super::request::Request;
use crate::architecture::Architecture;
use crate::cache::Cache;
use crate::causal_lm::CausalLm;
use crate::error::{Error, Result};
use crate::text::StopStrings;

/// What requests are checked against. It does not hold the model.
#[derive(Clone, Debug)]
pub(super) struct RequestCheck {
    architecture: Architecture,
    /// Steps that can be asked for.
    max_depth: Option<usize>,
    cache_bytes: Option<usize>,
    draft: Option<DraftOptions>,
}

impl RequestCheck {
    pub fn new<B: CompactBackend>(model: &CausalLm<B>, options: &EngineOptions) -> Self {
        let architecture = model.architecture().clone();
        let EngineOptions { cache_bytes, draft, .. } = *options;
        Self { architecture, max_depth: model.max_depth(), cache_bytes, draft }
    }

    /// Checks a request whose prompt comes after what the cache holds.
    ///
    /// # Errors
    /// As [`Engine::submit`](super::Engine::submit).
    pub fn check<B: CompactBackend>(&self, cache: &Cache<B>, request: &Request) -> Result<()> {
        request.sampling.validate()?;
        request.processors.validate()?;
        request.depth.check(self.max_depth)?;
        self.draft.map_or(Ok(()), |draft| draft.check(self.max_depth))?;
        StopStrings::new(request.stop_strings.iter().cloned())?;
        self.architecture.check_prompt(&request.prompt, cache.len())?;
        let read = cache.len().saturating_add(request.prompt.len());
        cache.check_room(read)?;
        let bytes = cache.bytes_with_room(read);
        match self.cache_bytes.filter(|&limit| bytes > limit) {
            Some(limit) => Err(Error::Memory { what: format!("the cache of {read} tokens"), bytes, limit }),
            None => Ok(()),
        }
    }
}
