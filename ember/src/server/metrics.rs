//! What `/metrics` tells, in the format of OpenMetrics.

use std::fmt;
use std::sync::Arc;

use emberlm::model::engine::EngineStatus;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Content type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Completion {
    reason: &'static str,
}

/// What caches hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CacheKind {
    /// The number format, as `--cache-type` has it.
    pub cache_type: &'static str,
    /// Whether hidden values are cached in place of codes.
    pub cache_hidden: bool,
}

/// What the server counts by itself; the engine's numbers are asked for when they are read.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub time_to_first_token: Histogram,
    pub time_between_tokens: Histogram,
    completions: Family<Completion, Counter>,
}

impl Metrics {
    /// For a server whose caches are of this kind.
    pub fn new(cache: CacheKind) -> Arc<Self> {
        let mut registry = Registry::with_prefix("ember");
        registry.register("kv_cache", "What caches hold", Info::new(cache));
        // Seconds: from a cached prompt to one of many thousand tokens on a small machine.
        let first = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0];
        let between = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
        let time_to_first_token = Histogram::new(first);
        let time_between_tokens = Histogram::new(between);
        let completions = Family::default();
        registry.register(
            "time_to_first_token_seconds",
            "From a request's arrival to its first token",
            time_to_first_token.clone(),
        );
        registry.register(
            "time_between_tokens_seconds",
            "Between two tokens of one request",
            time_between_tokens.clone(),
        );
        registry.register("completions", "Answers that ended, by reason", completions.clone());
        Arc::new(Self { registry, time_to_first_token, time_between_tokens, completions })
    }

    /// Counts an answer that has ended.
    pub fn ended(&self, reason: &'static str) {
        self.completions.get_or_create(&Completion { reason }).inc();
    }

    /// The text of all metrics; the engine's are left out before it runs.
    ///
    /// # Errors
    /// Never in practice: a text is written.
    pub fn text(&self, engine: Option<&EngineStatus>) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let mut now = Registry::with_prefix("ember");
        if let Some(status) = engine {
            of_engine(&mut now, status);
        }
        encode(&mut text, &now)?;
        // Each registry ends its text; one end is allowed.
        text.truncate(text.strip_suffix("# EOF\n").map_or(text.len(), str::len));
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A number that is read once.
#[derive(Debug)]
enum Reading {
    Gauge(f64),
    Counter(u64),
}

impl EncodeMetric for Reading {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match *self {
            Self::Gauge(value) => ConstGauge::new(value).encode(encoder),
            Self::Counter(value) => ConstCounter::new(value).encode(encoder),
        }
    }

    fn metric_type(&self) -> MetricType {
        match self {
            Self::Gauge(_) => MetricType::Gauge,
            Self::Counter(_) => MetricType::Counter,
        }
    }
}

fn of_engine(registry: &mut Registry, status: &EngineStatus) {
    use Reading::{Counter, Gauge};
    let ratio =
        status.cache_limit.filter(|&limit| limit > 0).map_or(0.0, |limit| status.cache_bytes as f64 / limit as f64);
    let step = status.step_began.map_or(0.0, |at| at.elapsed().as_secs_f64());
    let readings = [
        ("requests_waiting", "Requests that wait for a place in the batch", Gauge(status.waiting as f64)),
        ("requests_running", "Requests that take part in the batch", Gauge(status.running as f64)),
        ("requests_capacity", "Requests that take part in the batch at most", Gauge(status.max_running as f64)),
        ("kv_cache_usage_ratio", "Share of the budget of bytes that caches take; 0 without a budget", Gauge(ratio)),
        ("kv_cache_bytes", "Bytes that caches take", Gauge(status.cache_bytes as f64)),
        (
            "prefix_cache_bytes",
            "Of them those of prompts that are kept for others",
            Gauge(status.prefix_cache_bytes as f64),
        ),
        ("step_seconds", "How long the step in progress takes already", Gauge(step)),
        ("prompt_tokens", "Tokens of prompts, cached ones included", Counter(status.totals.prompt_tokens)),
        ("prefix_cache_hit_tokens", "Tokens of prompts that were in the cache", Counter(status.totals.cached_tokens)),
        ("prefix_cache_hits", "Requests that began with what was in the cache", Counter(status.totals.prefix_hits)),
        ("generated_tokens", "Tokens chosen", Counter(status.totals.generated_tokens)),
        ("drafted_tokens", "Tokens that were guessed", Counter(status.totals.drafted_tokens)),
        ("accepted_tokens", "Guessed tokens that were right", Counter(status.totals.accepted_tokens)),
        ("engine_steps", "Passes of the model", Counter(status.totals.steps)),
    ];
    for (name, help, reading) in readings {
        registry.register(name, help, reading);
    }
}
