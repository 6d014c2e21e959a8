//! What a chat took.

use emberlm::model::engine::Summary;

use crate::cli::generate::drafts;
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
    /// Adds an answer.
    pub fn add(&mut self, summary: &Summary) {
        let generated = summary.generated.len();
        self.answers += 1;
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
        let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        let read = self.prompt_tokens.saturating_sub(self.cached_tokens);
        let steps = match self.tokens_with_steps {
            0 => String::new(),
            tokens => format!(", {:.2} steps per layer and token", self.steps_sum / tokens as f64),
        };
        let drafts = drafts(self.accepted, self.drafted);
        format!(
            "{} {}: {} prompt tokens, {} of them from the cache, {read} read ({:.1} tokens/s), {} generated ({:.1} tokens/s){drafts}{steps}, \
             {} of cache",
            self.answers,
            if self.answers == 1 { "answer" } else { "answers" },
            self.prompt_tokens,
            self.cached_tokens,
            rate(read, self.prefill_seconds),
            self.generated,
            rate(self.decoded, self.decode_seconds),
            output::bytes(cache_bytes)
        )
    }
}
