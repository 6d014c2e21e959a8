//! Ending from elsewhere what takes long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends what it was made for from elsewhere: a generation at the next token or chunk of the prompt, downloads at the next bytes. Clones
/// name the same work.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// Asks for the end.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the end was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
