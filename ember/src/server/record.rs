//! One line of the log for each request, written when its answer has left or its client is gone. It never holds a text or a key. What is asked
//! for every few seconds is told at the level of debugging alone where it succeeds, as llama-server leaves it out.

use std::fmt::Write;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::app::Phase;
use super::metrics::Metrics;

/// Paths that the page, gateways and Prometheus ask for again and again.
const POLLED: [&str; 3] = ["/health", "/metrics", "/v1/models"];

/// What a request came to.
pub struct Record {
    method: String,
    path: String,
    begun: Instant,
    metrics: Arc<Metrics>,
    phase: Arc<Phase>,
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    status: Option<u16>,
    prompt: Option<usize>,
    cached: usize,
    generated: usize,
    first_token: Option<Instant>,
    reason: Option<&'static str>,
    /// The whole answer was handed to the connection.
    complete: bool,
}

impl Record {
    /// A request that has arrived.
    pub fn new(method: &str, path: &str, metrics: &Arc<Metrics>, phase: &Arc<Phase>) -> Arc<Self> {
        let facts = Mutex::default();
        // A path is the client's; in the log it is one line of bounded length.
        let path = path.chars().filter(|c| !c.is_control()).take(100).collect();
        let method = method.chars().take(16).collect();
        Arc::new(Self { method, path, begun: Instant::now(), metrics: metrics.clone(), phase: phase.clone(), facts })
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn status(&self, status: u16) {
        self.facts().status = Some(status);
    }

    /// Tokens of the prompts.
    pub fn prompt(&self, tokens: usize) {
        self.facts().prompt = Some(tokens);
    }

    /// Tokens of the prompts that were not computed again.
    pub fn cached(&self, tokens: usize) {
        self.facts().cached = tokens;
    }

    /// A token was chosen; `last` is when the one before it was, of the same answer.
    pub fn token(&self, last: &mut Option<Instant>) {
        let now = Instant::now();
        match last.replace(now) {
            Some(before) => self.metrics.time_between_tokens.observe((now - before).as_secs_f64()),
            None => self.metrics.time_to_first_token.observe((now - self.begun).as_secs_f64()),
        }
        let mut facts = self.facts();
        facts.first_token.get_or_insert(now);
        facts.generated += 1;
    }

    /// An answer has ended.
    pub fn reason(&self, reason: &'static str) {
        self.facts().reason = Some(reason);
        self.metrics.ended(reason);
    }

    /// An answer was given up before its end.
    pub fn cancelled(&self) {
        self.metrics.ended("cancelled");
    }

    fn line(&self) -> String {
        let facts = self.facts();
        let mut line = format!("{} {}", self.method, self.path);
        match facts.status {
            Some(status) => {
                let _ = write!(line, " {status}");
            }
            None => line.push_str(" -"),
        }
        let _ = write!(line, " {:.3}s", self.begun.elapsed().as_secs_f64());
        if let Some(prompt) = facts.prompt {
            let _ = write!(line, " prompt={prompt} cached={} generated={}", facts.cached, facts.generated);
            if let Some(first) = facts.first_token {
                let _ = write!(line, " first_token={:.3}s", (first - self.begun).as_secs_f64());
            }
        }
        if let Some(reason) = facts.reason {
            let _ = write!(line, " finish={reason}");
        }
        if !facts.complete {
            line.push_str(if self.phase.has_given_up() { " cut off" } else { " client gone" });
        }
        line
    }

    /// Whether the log is left alone with it: it comes every few seconds, and all is well.
    fn is_poll(&self) -> bool {
        let facts = self.facts();
        let well = facts.complete && facts.status.is_some_and(|status| (200..300).contains(&status));
        well && matches!(self.method.as_str(), "GET" | "HEAD") && POLLED.contains(&self.path.as_str())
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.is_poll() {
            tracing::debug!(target: "ember::serve", "{}", self.line());
        } else {
            tracing::info!(target: "ember::serve", "{}", self.line());
        }
    }
}

/// A body that keeps its record until it has left.
pub struct RecordedBody {
    inner: Body,
    record: Arc<Record>,
}

impl RecordedBody {
    pub fn new(inner: Body, record: Arc<Record>) -> Self {
        // Nobody reads the body of an answer to HEAD.
        if http_body::Body::is_end_stream(&inner) || record.method == "HEAD" {
            record.facts().complete = true;
        }
        Self { inner, record }
    }
}

impl http_body::Body for RecordedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || self.inner.is_end_stream() {
            self.record.facts().complete = true;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
