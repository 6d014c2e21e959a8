//! What `ember generate` says about a run: one JSON object, or lines on stderr.

use std::io::{self, Write};

use emberlm::model::generate::{Finish, Summary, TokenDepth};
use emberlm::model::text::TextProcessor;
use serde::Serialize;

use crate::cli::output::counted;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    text: &'a str,
    tokens: &'a [u32],
    prompt_tokens: usize,
    finish: &'static str,
    /// None where nothing is drawn.
    seed: Option<u64>,
    /// 0 without drafts.
    drafted_tokens: usize,
    accepted_tokens: usize,
    prefill_seconds: f64,
    decode_seconds: f64,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    mean_steps: Option<f64>,
    depth: Option<Vec<TracedToken>>,
}

/// How deep a token went.
#[derive(Debug, Serialize)]
pub struct TracedToken {
    pub token: u32,
    pub steps: Vec<u32>,
    pub halt: Vec<Vec<f32>>,
}

/// The depth of one token, for stderr.
pub fn trace_line(token: u32, text: &TextProcessor, depth: &TokenDepth) -> String {
    let spelled = text.token(token).unwrap_or_default();
    let steps: Vec<String> = depth.steps.iter().map(u32::to_string).collect();
    format!("{token:>7} {spelled:?}: {:.2} steps: {}", depth.mean_steps(), steps.join(" "))
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// Tokens per second of the prompt, and of the output after its first token.
fn rates(summary: &Summary) -> (f64, f64) {
    let decoded = summary.generated.len().saturating_sub(1);
    (rate(summary.prompt_tokens, summary.prefill_seconds), rate(decoded, summary.decode_seconds))
}

fn finish_name(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
    }
}

/// What became of drafts, as a part of a line; empty where nothing was drafted.
pub fn drafts(accepted: u64, drafted: u64) -> String {
    match drafted {
        0 => String::new(),
        _ => format!(", {accepted} of {drafted} drafted tokens accepted"),
    }
}

/// A rate in brackets; empty where no time was measured, as where a prompt was not read to its end.
pub fn shown_rate(tokens: usize, seconds: f64) -> String {
    if seconds > 0.0 { format!(" ({:.1} tokens/s)", rate(tokens, seconds)) } else { String::new() }
}

/// What a run was, for stderr.
pub fn summary_line(summary: &Summary) -> String {
    let prefill = shown_rate(summary.prompt_tokens, summary.prefill_seconds);
    let decode = shown_rate(summary.generated.len().saturating_sub(1), summary.decode_seconds);
    let steps = summary.mean_steps.map_or(String::new(), |steps| format!(", {steps:.2} steps per layer and token"));
    let drafts = drafts(summary.accepted_tokens as u64, summary.drafted_tokens as u64);
    let seed = summary.seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
    format!(
        "{}{prefill}, {} generated{decode}{drafts}{steps}{seed}, finish: {}",
        counted(summary.prompt_tokens, "prompt token"),
        summary.generated.len(),
        finish_name(&summary.finish)
    )
}

/// Writes the JSON object.
pub fn write(text: &str, summary: &Summary, depth: Option<Vec<TracedToken>>) -> io::Result<()> {
    let (prefill_tokens_per_second, decode_tokens_per_second) = rates(summary);
    let report = Report {
        text,
        tokens: &summary.generated,
        prompt_tokens: summary.prompt_tokens,
        finish: finish_name(&summary.finish),
        seed: summary.seed,
        drafted_tokens: summary.drafted_tokens,
        accepted_tokens: summary.accepted_tokens,
        prefill_seconds: summary.prefill_seconds,
        decode_seconds: summary.decode_seconds,
        prefill_tokens_per_second,
        decode_tokens_per_second,
        mean_steps: summary.mean_steps,
        depth,
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &report)?;
    writeln!(out)?;
    out.flush()
}
