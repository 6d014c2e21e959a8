//! The results of `ember bench`, as JSON or as a table.

use serde::Serialize;

use crate::cli::estimate::cache_in_words;
use crate::cli::output;

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    pub results: Vec<Measurement>,
    pub peak_rss_bytes: u64,
    pub load_seconds: f64,
    pub model: String,
    pub family: String,
    pub parameters: usize,
    pub weight_bytes: usize,
    pub device: String,
    pub cpu_features: Vec<&'static str>,
    /// `exact`, `int8`, `bf16` or `int8 and bf16`; on a GPU `f32`, `f16` or `bf16`.
    pub activations: String,
    /// Whether hidden values are cached in place of codes.
    pub cache_hidden: bool,
    /// What a plain read loop reaches, per thread count, in the same process.
    pub read_gb_per_second: Vec<(usize, f64)>,
}

/// One test at one thread count.
#[derive(Debug, Serialize)]
pub struct Measurement {
    /// `pp128`: a prompt of 128 tokens; `tg64`: 64 tokens one at a time; `tg64x8`: so many of 8 sequences in the same passes; with ` drafted`
    /// behind it by an engine with drafts.
    pub test: String,
    pub n_prompt: usize,
    pub n_gen: usize,
    /// Sequences that generate together.
    pub n_parallel: usize,
    /// Tokens in the cache before; the key is that of llama-bench.
    pub n_depth: usize,
    /// The number format of the cache, as `--cache-type` has it.
    pub cache_type: &'static str,
    pub threads: usize,
    /// Of all sequences together, the median of the repetitions.
    pub tokens_per_second: f64,
    /// Of each of them.
    pub tokens_per_second_each: f64,
    pub best_tokens_per_second: f64,
    /// Weights that one token reads (for a prompt: that the whole pass reads, per token).
    pub bytes_per_token: f64,
    pub gb_per_second: f64,
    /// Steps per layer and token (CREST).
    pub mean_steps: Option<f64>,
    /// With `--draft` and `--draft-steps`: what became of the drafts of the last repetition.
    pub drafts: Option<Drafts>,
    pub cache_bytes: usize,
    /// Kernels of this project per pass (a token, or a whole prompt); none on the CPU. Those of burn's own operations (copies,
    /// small element-wise ones) are not counted: CubeCL keeps no count.
    pub launches: Option<f64>,
    /// How often a pass waited for the device to give numbers back (a generated token once, for its id); none on the CPU.
    pub read_backs: Option<f64>,
}

impl Measurement {
    /// The test as tables call it: with the tokens before it, and the format of its cache where there are several.
    fn name(&self, of_several: bool) -> String {
        let depth = if self.n_depth > 0 { format!(" @ d{}", self.n_depth) } else { String::new() };
        let cache = if of_several { format!(" {}", self.cache_type) } else { String::new() };
        format!("{}{depth}{cache}", self.test)
    }
}

/// Drafted tokens, and those that were accepted.
#[derive(Debug, Serialize)]
pub struct Drafts {
    pub drafted: u64,
    pub accepted: u64,
    /// With `--draft-acceptance`: the probability with which they were, whatever the model said.
    pub forced_acceptance: Option<f64>,
}

/// The results for a reader.
pub fn table(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut formats: Vec<&str> = report.results.iter().map(|result| result.cache_type).collect();
    formats.sort_unstable();
    formats.dedup();
    let names: Vec<String> = report.results.iter().map(|result| result.name(formats.len() > 1)).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0).max(8);
    let mut out = format!(
        "{:<width$} {:>7} {:>12} {:>12} {:>14} {:>9}",
        "test", "threads", "tokens/s", "best", "MB per token", "GB/s"
    );
    if report.results.iter().any(|result| result.mean_steps.is_some()) {
        out.push_str("   steps");
    }
    for (result, test) in report.results.iter().zip(&names) {
        let Measurement { threads, tokens_per_second, best_tokens_per_second, bytes_per_token, gb_per_second, .. } =
            result;
        let mb = bytes_per_token / 1e6;
        // A small model's are not zero.
        let digits = |value: f64| if value < 1.0 { 3 } else { 1 };
        let (mb_digits, gb_digits) = (digits(mb), digits(*gb_per_second));
        let _ = write!(
            out,
            "\n{test:<width$} {threads:>7} {tokens_per_second:>12.2} {best_tokens_per_second:>12.2} {mb:>14.mb_digits$} {gb_per_second:>9.gb_digits$}"
        );
        if let Some(steps) = result.mean_steps {
            let _ = write!(out, " {steps:>7.2}");
        }
        if result.n_parallel > 1 {
            let _ = write!(out, "   {:.2} each", result.tokens_per_second_each);
        }
        if let Some(Drafts { drafted, accepted, forced_acceptance }) = &result.drafts {
            let _ = write!(out, "   {accepted} of {drafted} accepted");
            if let Some(rate) = forced_acceptance {
                let _ = write!(out, " (forced: each with probability {rate}, whatever the model says)");
            }
        }
        if let Some(launches) = result.launches {
            let _ = write!(out, "   {launches:.0} launches, {:.0} read-backs", result.read_backs.unwrap_or_default());
        }
    }
    for (threads, speed) in &report.read_gb_per_second {
        let unit = if *threads == 1 { "thread" } else { "threads" };
        let _ = write!(out, "\nplain read, {threads} {unit}: {speed:.1} GB/s");
    }
    let _ = write!(
        out,
        "\nload {:.2} s, peak memory {}, {}, {} ({})\n",
        report.load_seconds,
        output::bytes(report.peak_rss_bytes as usize),
        cache_in_words(&formats.join(" and "), report.cache_hidden),
        report.device,
        report.cpu_features.join(" ")
    );
    out
}
