//! What `ember diff --json` prints.

use emberlm::model::compare::{Comparison, TextComparison};
use serde::Serialize;
use serde_json::Value;

/// The whole of it. Numbers that are infinite are null.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    a: &'a str,
    b: &'a str,
    same: bool,
    tensors: Vec<TensorReport<'a>>,
    /// How many are equal.
    identical_tensors: usize,
    reshaped: Vec<Reshaped<'a>>,
    only_a: &'a [String],
    only_b: &'a [String],
    config: ConfigReport<'a>,
    text: Option<&'a TextReport>,
}

#[derive(Debug, Serialize)]
struct TensorReport<'a> {
    name: &'a str,
    shape: &'a [usize],
    storage: [String; 2],
    identical: bool,
    relative_error: f64,
    cosine: f64,
    max_difference: f64,
    max_at: [usize; 2],
    norm_ratio: f64,
    not_finite: u64,
    worst_rows: Vec<RowReport>,
}

#[derive(Debug, Serialize)]
struct RowReport {
    row: usize,
    relative_error: f64,
}

#[derive(Debug, Serialize)]
struct Reshaped<'a> {
    name: &'a str,
    a: &'a [usize],
    b: &'a [usize],
}

#[derive(Debug, Serialize)]
struct ConfigReport<'a> {
    same: bool,
    keys: Vec<KeyReport<'a>>,
}

#[derive(Debug, Serialize)]
struct KeyReport<'a> {
    key: &'a str,
    a: Option<&'a Value>,
    b: Option<&'a Value>,
    counts: bool,
}

/// What the models say about a text.
#[derive(Clone, Debug, Serialize)]
pub struct TextReport {
    /// Tokens that were scored.
    pub tokens: usize,
    pub windows: usize,
    pub context: usize,
    /// Nats per token, and its standard error.
    pub kl: f64,
    pub kl_error: f64,
    /// Of 99 in 100 tokens it is below this.
    pub kl_99: f64,
    pub kl_max: f64,
    /// The part of the tokens.
    pub same_top: f64,
    pub perplexity_a: f64,
    pub perplexity_b: f64,
    /// Number formats of the caches, as `--cache-type` has them.
    pub cache_type_a: &'static str,
    pub cache_type_b: &'static str,
    /// Whether hidden values were cached in place of codes.
    pub cache_hidden_a: bool,
    pub cache_hidden_b: bool,
    pub seconds: f64,
}

impl<'a> Report<'a> {
    /// The tensors that differ most, or all of them where `top` is 0.
    pub fn new([a, b]: [&'a str; 2], compared: &'a Comparison, top: usize, text: Option<&'a TextReport>) -> Self {
        let shown = if top == 0 { compared.tensors.len() } else { top };
        let tensors = compared.tensors.iter().take(shown).map(|tensor| TensorReport {
            name: &tensor.name,
            shape: &tensor.shape,
            storage: tensor.storage.map(|storage| storage.to_string()),
            identical: tensor.identical,
            relative_error: tensor.relative_error,
            cosine: tensor.cosine,
            max_difference: tensor.max_difference,
            max_at: tensor.max_at,
            norm_ratio: tensor.norm_ratio,
            not_finite: tensor.not_finite,
            worst_rows: tensor
                .worst_rows
                .iter()
                .map(|row| RowReport { row: row.row, relative_error: row.relative_error })
                .collect(),
        });
        let keys = compared.config.keys.iter().map(|key| KeyReport {
            key: &key.key,
            a: key.first.as_ref(),
            b: key.second.as_ref(),
            counts: key.counts,
        });
        Self {
            a,
            b,
            same: compared.is_same(),
            tensors: tensors.collect(),
            identical_tensors: compared.tensors.iter().filter(|tensor| tensor.identical).count(),
            reshaped: compared.reshaped.iter().map(|(name, a, b)| Reshaped { name, a, b }).collect(),
            only_a: &compared.only_first,
            only_b: &compared.only_second,
            config: ConfigReport { same: compared.config.same, keys: keys.collect() },
            text,
        }
    }
}

impl TextReport {
    /// Of models with caches of these formats, with hidden values in place of codes or not.
    pub fn new(
        compared: &TextComparison,
        context: usize,
        [cache_type_a, cache_type_b]: [&'static str; 2],
        [cache_hidden_a, cache_hidden_b]: [bool; 2],
    ) -> Self {
        let mut sorted = compared.divergences.clone();
        sorted.sort_by(f32::total_cmp);
        let at = |part: f64| sorted.get(((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1)));
        let number = |x: Option<&f32>| x.copied().map_or(f64::NAN, f64::from);
        Self {
            tokens: compared.divergences.len(),
            windows: compared.first.windows,
            context,
            kl: compared.mean_divergence(),
            kl_error: compared.divergence_error(),
            kl_99: number(at(0.99)),
            kl_max: number(sorted.last()),
            same_top: compared.top_agreement(),
            perplexity_a: compared.first.perplexity(),
            perplexity_b: compared.second.perplexity(),
            cache_type_a,
            cache_type_b,
            cache_hidden_a,
            cache_hidden_b,
            seconds: compared.first.seconds + compared.second.seconds,
        }
    }
}
