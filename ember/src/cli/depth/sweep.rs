//! Quality, depth and time of a text over halting thresholds.

use anyhow::Result;
use emberlm::model::CausalLm;
use emberlm::model::config::CrestOptions;
use emberlm::model::evaluate::{EvaluateOptions, evaluate};
use emberlm::quant::CompactBackend;
use serde::Serialize;

use super::map::mean_steps;

const THRESHOLDS: [f32; 9] = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999];

/// Times that each threshold is measured; the fastest counts.
const REPETITIONS: usize = 3;

/// What one threshold gives.
#[derive(Debug, Serialize)]
pub struct Threshold {
    pub threshold: f32,
    pub mean_steps: f64,
    pub perplexity: f64,
    /// One token per pass, as in decoding.
    pub milliseconds_per_token: f64,
}

/// Measures the text under every threshold. The model keeps the options that it had.
pub fn measure<B: CompactBackend>(
    model: &mut CausalLm<B>,
    crest: &CrestOptions,
    ids: &[u32],
) -> Result<Vec<Threshold>> {
    let mut out: Vec<Threshold> = Vec::new();
    for repetition in 0..REPETITIONS {
        for (i, threshold) in THRESHOLDS.into_iter().enumerate() {
            model.set_depth(crest.num_steps, true, threshold)?;
            let evaluated = evaluate(model, ids, &EvaluateOptions { chunk: Some(1), ..EvaluateOptions::default() })?;
            let milliseconds_per_token = evaluated.seconds * 1e3 / ids.len() as f64;
            match out.get_mut(i) {
                Some(best) if repetition > 0 => {
                    best.milliseconds_per_token = best.milliseconds_per_token.min(milliseconds_per_token);
                }
                _ => out.push(Threshold {
                    threshold,
                    mean_steps: mean_steps(&evaluated, ids.len()).unwrap_or(f64::NAN),
                    perplexity: evaluated.perplexity(),
                    milliseconds_per_token,
                }),
            }
        }
    }
    model.set_depth(crest.num_steps, crest.halt_enabled, crest.halt_threshold)?;
    Ok(out)
}

/// A table for reading.
pub fn table(sweep: &[Threshold]) -> String {
    let rows = sweep.iter().map(|row| {
        let Threshold { threshold, mean_steps, perplexity, milliseconds_per_token } = row;
        format!("{threshold:>9} {mean_steps:>6.2} {perplexity:>11.3} {milliseconds_per_token:>9.3}\n")
    });
    "threshold  steps  perplexity  ms/token\n".to_owned() + &rows.collect::<String>()
}
