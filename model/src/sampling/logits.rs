//! Operations on the logits of one position.

use super::truncate;
use crate::{Error, Result};

/// Applies the repetition penalty once to every distinct id of `seen`. `penalised` has one bit per token, all clear between calls.
pub(super) fn penalise(penalty: f32, penalised: &mut Vec<u64>, logits: &mut [f32], seen: &[u32]) {
    penalised.resize(logits.len().div_ceil(64), 0);
    for &id in seen {
        let index = id as usize;
        let (Some(logit), Some(word)) = (logits.get_mut(index), penalised.get_mut(index / 64)) else {
            continue;
        };
        let bit = 1u64 << (index % 64);
        if *word & bit == 0 {
            *word |= bit;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
    for &id in seen {
        if let Some(word) = penalised.get_mut(id as usize / 64) {
            *word = 0;
        }
    }
}

/// Bans the tokens whose bit is not set. By addition, so that a logit that is NaN stays one and is refused.
pub(super) fn keep_allowed(logits: &mut [f32], allowed: &[u32]) {
    let words = allowed.iter().copied().chain(std::iter::repeat(0));
    for (chunk, word) in logits.chunks_mut(32).zip(words) {
        match word {
            u32::MAX => {}
            0 => chunk.iter_mut().for_each(|logit| *logit += f32::NEG_INFINITY),
            // Without a branch per token, this is a loop of vector instructions.
            _ => {
                for (bit, logit) in (0u32..).zip(chunk) {
                    *logit += if word >> bit & 1 == 0 { f32::NEG_INFINITY } else { 0.0 };
                }
            }
        }
    }
}

/// Id and value of the largest logit, the lowest id among equals.
pub(super) fn largest(logits: &[f32], step: usize) -> Result<(u32, f32)> {
    let error = |message: String| Error::NonFinite { step, message };
    let (largest, nan) = truncate::largest(logits);
    if nan || largest == f32::INFINITY {
        let bad = |l: &f32| l.is_nan() || *l == f32::INFINITY;
        let count = logits.iter().filter(|l| bad(l)).count();
        let first = logits.iter().position(bad).unwrap_or_default();
        let value = logits.get(first).copied().unwrap_or(f32::NAN);
        return Err(error(format!(
            "{count} of {} are NaN or +Inf, the first is {value} for token {first}; the weights or the arithmetic type may be damaged",
            logits.len()
        )));
    }
    let best = logits.iter().position(|&l| l == largest);
    match best.map(u32::try_from) {
        Some(Ok(id)) if largest > f32::NEG_INFINITY => Ok((id, largest)),
        _ => Err(error(format!(
            "all {} are -Inf, so no token is possible (rules of generation_config.json, a bias or a grammar can ban tokens)",
            logits.len()
        ))),
    }
}

/// `log softmax` of one row in f64, for perplexity and reported log-probabilities.
///
/// # Errors
/// [`Error::NonFinite`] with `step` when a logit is NaN or `+Inf`, or when all are `-Inf`.
pub fn log_softmax(logits: &[f32], step: usize) -> Result<Vec<f64>> {
    let (_, largest) = largest(logits, step)?;
    let largest = f64::from(largest);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
    let log_sum = largest + sum.ln();
    Ok(logits.iter().map(|&l| f64::from(l) - log_sum).collect())
}
