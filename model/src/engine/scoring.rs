//! How probable tokens are: of what was chosen, and of a prompt.

use burn::tensor::Tensor;
use emberlm_quant::CompactBackend;

use super::request::LogProbabilities;
use crate::error::Result;
use crate::read::floats;
use crate::sampling::log_softmax;

/// Of logits `[n, vocabulary]`: per row of its target, and of the `count` most probable tokens. Rows beyond the targets are left
/// out. `step` is for errors.
pub(super) fn log_probabilities<B: CompactBackend>(
    logits: Tensor<B, 2>,
    targets: &[u32],
    count: usize,
    step: usize,
) -> Result<Vec<LogProbabilities>> {
    let [_, vocabulary] = logits.dims();
    let logits = floats(logits)?;
    logits.chunks_exact(vocabulary.max(1)).zip(targets).map(|(row, &target)| of_row(row, target, count, step)).collect()
}

fn of_row(logits: &[f32], target: u32, count: usize, step: usize) -> Result<LogProbabilities> {
    let all = log_softmax(logits, step)?;
    let of = |id: u32| all.get(id as usize).copied().unwrap_or(f64::NEG_INFINITY);
    let mut ids: Vec<u32> = (0u32..).zip(&all).map(|(id, _)| id).collect();
    let by_probability = |a: &u32, b: &u32| of(*b).total_cmp(&of(*a)).then(a.cmp(b));
    let count = count.min(ids.len());
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, by_probability);
    }
    ids.truncate(count);
    ids.sort_unstable_by(by_probability);
    Ok(LogProbabilities { chosen: of(target), top: ids.into_iter().map(|id| (id, of(id))).collect() })
}
