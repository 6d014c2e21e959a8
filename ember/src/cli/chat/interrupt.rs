//! Ctrl-C: in a chat it ends an answer.
//!
//! While a line is typed the terminal does not make a signal of it; the editor of lines tells of it then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cli::{INTERRUPTED, output};

/// What a prompt says about leaving.
pub const HOW_TO_LEAVE: &str = "Ctrl-D or /exit leaves";

#[derive(Debug, Default)]
struct State {
    answering: AtomicBool,
    asked: AtomicBool,
}

/// Tells whether an answer is to end.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<State>);

impl Interrupt {
    /// Handles Ctrl-C from now on. Without a terminal the first one ends an answer, and the program with it; the second, or one
    /// between answers, ends the program at once. Where signals cannot be handled, each ends the program.
    pub fn handle(interactive: bool) -> Self {
        let interrupt = Self::default();
        let state = interrupt.0.clone();
        let _ = ctrlc::set_handler(move || {
            let answering = state.answering.load(Ordering::SeqCst);
            let first = answering && !state.asked.swap(true, Ordering::SeqCst);
            if interactive && !answering {
                output::note(HOW_TO_LEAVE);
            } else if !interactive && !first {
                std::process::exit(INTERRUPTED.into());
            }
        });
        interrupt
    }

    /// An answer begins.
    pub fn begin(&self) {
        self.0.asked.store(false, Ordering::SeqCst);
        self.0.answering.store(true, Ordering::SeqCst);
    }

    /// The answer has ended.
    pub fn end(&self) {
        self.0.answering.store(false, Ordering::SeqCst);
    }

    /// Whether the answer is to end.
    pub fn is_asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }
}
