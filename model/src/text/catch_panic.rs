//! Panics of the tokenizer library, which some crafted files and texts cause, as errors.

use emberlm_quant::panics::catch_quietly;

use crate::{Error, Result};

/// Runs the tokenizer library and turns a panic into an error, without the report that a panic prints.
pub(super) fn catch_panic<T>(run: impl FnOnce() -> std::result::Result<T, tokenizers::Error>) -> Result<T> {
    // The tokenizer is only read (or just being made) here, so no half-changed state survives a panic.
    match catch_quietly(run) {
        Ok(result) => result.map_err(|e| Error::Tokenizer(e.to_string())),
        Err(message) => Err(Error::Tokenizer(format!(
            "the tokenizer library failed on this file or text ({message}); tokenizer.json is probably damaged"
        ))),
    }
}
