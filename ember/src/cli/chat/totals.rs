//! What a chat took.

use emberlm::model::engine::Summary;

use crate::cli::generate::{drafts, shown_rate};
use crate::cli::output;

/// Sums over the answers of a chat.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    answers: usize,
    prompt_tokens: usize,
    cached_tokens: usize,
    prefill_seconds: f64,
    generated: usize,
    /// Tokens that `decode_seconds` took: the first one of an answer belongs to its prefill.
    decoded: usize,
    decode_seconds: f64,
    drafted: u64,
    accepted: u64,
    steps_sum: f64,
    tokens_with_steps: usize,
}

impl Totals {
    /// Adds what a turn took. One that was interrupted while its prompt was read has no times, and counts nothing.
    pub fn add(&mut self, summary: &Summary, answered: bool) {
        let generated = summary.generated.len();
        if generated == 0 && !answered {
            return;
        }
        self.answers += usize::from(answered);
        self.prompt_tokens += summary.prompt_tokens;
        self.cached_tokens += summary.cached_tokens;
        self.prefill_seconds += summary.prefill_seconds;
        self.generated += generated;
        self.decoded += generated.saturating_sub(1);
        self.decode_seconds += summary.decode_seconds;
        self.drafted += summary.drafted_tokens as u64;
        self.accepted += summary.accepted_tokens as u64;
        if let Some(steps) = summary.mean_steps {
            self.steps_sum += steps * generated as f64;
            self.tokens_with_steps += generated;
        }
    }

    /// In one line, with the bytes of the caches.
    pub fn line(&self, cache_bytes: usize) -> String {
        let read = self.prompt_tokens.saturating_sub(self.cached_tokens);
        let steps = match self.tokens_with_steps {
            0 => String::new(),
            tokens => format!(", {:.2} steps per layer and token", self.steps_sum / tokens as f64),
        };
        let drafts = drafts(self.accepted, self.drafted);
        format!(
            "{} {}: {} prompt tokens, {} of them from the cache, {read} read{}, {} generated{}{drafts}{steps}, \
             {} of cache",
            self.answers,
            if self.answers == 1 { "answer" } else { "answers" },
            self.prompt_tokens,
            self.cached_tokens,
            shown_rate(read, self.prefill_seconds),
            self.generated,
            shown_rate(self.decoded, self.decode_seconds),
            output::bytes(cache_bytes)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_of_times_that_were_not_measured() {
        let line = Totals::default().line(0);
        assert_eq!(line, "0 answers: 0 prompt tokens, 0 of them from the cache, 0 read, 0 generated, 0 B of cache");
    }
}
