//! How well a model foretells a text, and how deep it goes for each token.

use std::time::Instant;

use emberlm_quant::CompactBackend;
use emberlm_quant::kv::KvFormat;

use crate::causal_lm::{CausalLm, DEFAULT_CHUNK, ForwardOptions, LogitsFor};
use crate::error::{Error, Result};
use crate::generate::{TokenDepth, depths, numbers};

/// Most logits that are held at once, in numbers: 64 MiB.
const MOST_LOGITS: usize = 16 << 20;

/// What a model says about a text, token by token.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Of every token that had one before it: the natural logarithm of its probability.
    pub log_probabilities: Vec<f32>,
    /// Depth of the pass over each token (CREST; otherwise without layers). The pass over a token foretells the next one.
    pub depth: Vec<TokenDepth>,
    /// Seconds that the passes took.
    pub seconds: f64,
}

impl Evaluation {
    /// `exp` of the mean negative log probability; NaN when nothing was foretold.
    pub fn perplexity(&self) -> f64 {
        let sum: f64 = self.log_probabilities.iter().map(|&p| f64::from(p)).sum();
        (-sum / self.log_probabilities.len() as f64).exp()
    }

    /// Steps per layer and token, on average; none without adaptive depth.
    pub fn mean_steps(&self) -> Option<f64> {
        let deep = self.depth.iter().filter(|depth| !depth.steps.is_empty());
        let (count, sum) = deep.fold((0, 0.0), |(count, sum), depth| (count + 1, sum + depth.mean_steps()));
        (count > 0).then(|| sum / f64::from(count))
    }
}

/// How a text is fed in.
#[derive(Clone, Copy, Debug, Default)]
pub struct EvaluateOptions {
    /// Tokens that the model sees at most before it begins afresh; none: its context.
    pub window: Option<usize>,
    /// Tokens per pass; none: as many as pay. One at a time costs what decoding costs.
    pub chunk: Option<usize>,
}

/// Feeds a text to a model and records the probability of every token but the first of each window, and the depth of each.
///
/// # Errors
/// [`Error::Prompt`] when the text is empty or has ids outside the vocabulary; [`Error::Option`] when the window is shorter than
/// two tokens; [`Error::NonFinite`] when the model gives logits that are not numbers.
pub fn evaluate<B: CompactBackend>(model: &CausalLm<B>, ids: &[u32], options: EvaluateOptions) -> Result<Evaluation> {
    let config = &model.architecture().config;
    let window = options.window.unwrap_or(config.max_position_embeddings);
    if window < 2 {
        let message = format!("is {window}, expected at least 2 tokens");
        return Err(Error::Option { option: "window".into(), message });
    }
    if ids.is_empty() {
        return Err(Error::Prompt("it has no tokens".into()));
    }
    let most = (MOST_LOGITS / config.vocab_size).clamp(1, DEFAULT_CHUNK);
    let chunk = options.chunk.map_or(most, |chunk| chunk.clamp(1, most));
    let mut out = Evaluation::default();
    for part in ids.chunks(window.min(config.max_position_embeddings)) {
        let evaluated = evaluate_window(model, part, chunk)?;
        out.log_probabilities.extend(evaluated.log_probabilities);
        out.depth.extend(evaluated.depth);
        out.seconds += evaluated.seconds;
    }
    Ok(out)
}

fn evaluate_window<B: CompactBackend>(model: &CausalLm<B>, ids: &[u32], chunk: usize) -> Result<Evaluation> {
    let mut cache = model.new_cache(KvFormat::F32);
    model.check_prompt(&[ids], ids.len(), &cache)?;
    cache.reserve(ids.len());
    cache.expect(ids.len());
    let mut out = Evaluation::default();
    for (i, part) in ids.chunks(chunk).enumerate() {
        let started = Instant::now();
        let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
        let pass = model.forward(model.ids(&[part])?, &mut cache, options)?;
        let depth = depths(&pass, part.len())?;
        let Some(logits) = pass.logits else { continue };
        let [_, _, vocabulary] = logits.dims();
        let logits = numbers(logits)?;
        out.seconds += started.elapsed().as_secs_f64();
        out.depth.extend(depth);
        for (row, &target) in logits.chunks_exact(vocabulary).zip(ids.iter().skip(i * chunk + 1)) {
            out.log_probabilities.push(log_probability(row, target, out.log_probabilities.len())?);
        }
    }
    Ok(out)
}

fn log_probability(logits: &[f32], target: u32, step: usize) -> Result<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    let chosen = logits.get(target as usize).copied().unwrap_or(f32::NAN);
    let log = f64::from(chosen - largest) - sum.ln();
    if log.is_nan() {
        return Err(Error::NonFinite { step, message: "while a text was evaluated".into() });
    }
    Ok(log as f32)
}
