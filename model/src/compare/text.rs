//! What two models say about one text, token by token.

use emberlm_quant::CompactBackend;
use emberlm_quant::host::on_threads;
use emberlm_quant::kv::KvFormat;
use rayon::prelude::*;

use crate::causal_lm::CausalLm;
use crate::error::{Error, Result};
use crate::evaluate::{EvaluateOptions, Evaluation, WindowReader, log_probability, tokens_per_pass, windows};

/// What two models say about a text.
#[derive(Clone, Debug, Default)]
pub struct TextComparison {
    /// What the first model says.
    pub first: Evaluation,
    /// What the second says.
    pub second: Evaluation,
    /// Of every scored token: the Kullback-Leibler divergence of the second model's distribution from the first's, in nats.
    pub divergences: Vec<f32>,
    /// Scored tokens for which both hold the same token most likely.
    pub same_top: usize,
}

impl TextComparison {
    /// The mean of the divergences, in nats; NaN when nothing was scored.
    pub fn mean_divergence(&self) -> f64 {
        self.divergences.iter().map(|&kl| f64::from(kl)).sum::<f64>() / self.divergences.len() as f64
    }

    /// The standard error of that mean, as if tokens were independent of each other.
    pub fn divergence_error(&self) -> f64 {
        let (mean, count) = (self.mean_divergence(), self.divergences.len() as f64);
        let squares: f64 = self.divergences.iter().map(|&kl| (f64::from(kl) - mean).powi(2)).sum();
        (squares / (count - 1.0).max(1.0) / count).sqrt()
    }

    /// The part of the scored tokens for which both hold the same token most likely.
    pub fn top_agreement(&self) -> f64 {
        self.same_top as f64 / self.divergences.len() as f64
    }
}

/// Feeds a text to two models with one tokenizer, in the same windows and passes; the second keeps its keys and values as `second_cache`. Two
/// passes' logits are held at a time.
///
/// # Errors
/// As [`evaluate`](crate::evaluate::evaluate); [`Error::Option`] when the vocabularies differ in size.
pub fn compare_text<B: CompactBackend>(
    first: &CausalLm<B>,
    second: &CausalLm<B>,
    ids: &[u32],
    options: &EvaluateOptions,
    second_cache: KvFormat,
) -> Result<TextComparison> {
    let [a, b] = [first, second].map(|model| &model.architecture().config);
    if a.vocab_size != b.vocab_size {
        let message = format!(
            "one model has {}, the other {}: distributions over them do not compare",
            a.vocab_size, b.vocab_size
        );
        return Err(Error::Option { option: "vocab_size".into(), message });
    }
    // The same windows for both.
    let context = a.max_position_embeddings.min(b.max_position_embeddings);
    let most = tokens_per_pass(a.vocab_size);
    let chunk = options.chunk.map_or(most, |chunk| chunk.clamp(1, most));
    let second_options = &EvaluateOptions { cache: second_cache, ..options.clone() };
    let mut out = TextComparison::default();
    for window in windows(context, ids, options)? {
        let mut x = WindowReader::new(first, window, options, chunk)?;
        let mut y = WindowReader::new(second, window, second_options, chunk)?;
        while let (Some(x), Some(y)) = (x.next(&mut out.first)?, y.next(&mut out.second)?) {
            let pairs: Vec<_> = x.scored().zip(y.scored()).collect();
            let done = out.divergences.len();
            let compared: Vec<Scores> = on_threads(|| {
                pairs
                    .par_iter()
                    .enumerate()
                    .map(|(i, ((x, target, place), (y, ..)))| Scores::new(x, y, *target, *place, done + i))
                    .collect::<Result<_>>()
            })?;
            for scores in compared {
                out.first.log_probabilities.push(scores.log_probabilities[0]);
                out.second.log_probabilities.push(scores.log_probabilities[1]);
                out.first.scored.push(scores.place);
                out.second.scored.push(scores.place);
                out.divergences.push(scores.divergence);
                out.same_top += usize::from(scores.same_top);
            }
        }
        out.first.windows += 1;
        out.second.windows += 1;
    }
    Ok(out)
}

/// What both say about one token.
struct Scores {
    place: usize,
    log_probabilities: [f32; 2],
    divergence: f32,
    same_top: bool,
}

impl Scores {
    fn new(x: &[f32], y: &[f32], target: u32, place: usize, step: usize) -> Result<Self> {
        let log_probabilities = [log_probability(x, target, step)?, log_probability(y, target, step)?];
        let (sum_x, sum_y) = (log_sum(x), log_sum(y));
        let divergence: f64 = x
            .iter()
            .zip(y)
            .map(|(&x, &y)| {
                let (log_x, log_y) = (f64::from(x) - sum_x, f64::from(y) - sum_y);
                let p = log_x.exp();
                if p == 0.0 { 0.0 } else { p * (log_x - log_y) }
            })
            .sum();
        Ok(Self { place, log_probabilities, divergence: divergence as f32, same_top: top(x) == top(y) })
    }
}

/// The logarithm of the sum of exponentials.
fn log_sum(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    largest + logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln()
}

/// The most likely token; of equal ones the first.
fn top(logits: &[f32]) -> usize {
    let best = |best: (usize, f32), (id, &x): (usize, &f32)| if x > best.1 { (id, x) } else { best };
    logits.iter().enumerate().fold((0, f32::NEG_INFINITY), best).0
}
