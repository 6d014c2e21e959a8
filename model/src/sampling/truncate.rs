//! Selection without sorting: the k-th largest logit and the nucleus of a distribution.

use std::cmp::Ordering;

use super::Candidate;

/// The `k`-th largest of `values` (`1 <= k <= values.len()`), in time linear in their number.
///
/// A buffer collects values above a rising bound; when it is full, the `k` largest of it stay and the smallest of those
/// becomes the bound. Most values of a large vocabulary fail one comparison and are never stored.
pub(super) fn kth_largest(values: &[f32], k: usize) -> f32 {
    let capacity = (2 * k).max(256);
    let mut buffer: Vec<f32> = Vec::with_capacity(capacity.min(values.len()));
    let mut bound = f32::NEG_INFINITY;
    for &value in values {
        if value > bound {
            buffer.push(value);
            if buffer.len() == capacity {
                bound = cut_to_largest(&mut buffer, k, bound);
            }
        }
    }
    cut_to_largest(&mut buffer, k, bound)
}

/// Keeps the `k` largest and returns the smallest of them, or `bound` when there are fewer than `k`.
fn cut_to_largest(buffer: &mut Vec<f32>, k: usize, bound: f32) -> f32 {
    if buffer.len() < k {
        return bound;
    }
    let (_, kth, _) = buffer.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let kth = *kth;
    buffer.truncate(k);
    kth
}

/// Keeps the most probable candidates until they hold `top_p` of the weight, best first, lower ids first among equals.
pub(super) fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let wanted = top_p * total;
    let mut held = 0.0;
    let mut sorted = 0;
    let mut block = 64;
    // Sort the head in growing blocks: the nucleus is usually a few dozen tokens of a quarter million.
    while sorted < candidates.len() {
        let Some(rest) = candidates.get_mut(sorted..) else {
            return;
        };
        let head = if block < rest.len() { rest.select_nth_unstable_by(block, best_first).0 } else { rest };
        head.sort_unstable_by(best_first);
        for (i, candidate) in head.iter().enumerate() {
            if held >= wanted {
                candidates.truncate(sorted + i);
                return;
            }
            held += f64::from(candidate.weight);
        }
        sorted += head.len();
        block *= 4;
    }
}

fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed, unordered sequence with repeats.
    fn scattered(n: u64) -> Vec<f32> {
        (0..n).map(|i| (i.wrapping_mul(2_654_435_761) % 1009) as f32 - 500.0).collect()
    }

    #[test]
    fn kth_largest_agrees_with_a_sort() {
        let values = scattered(5000);
        let mut sorted = values.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for k in [1, 2, 7, 64, 255, 256, 257, 2000, 4999, 5000] {
            assert_eq!(kth_largest(&values, k), sorted[k - 1], "k = {k}");
        }
    }

    #[test]
    fn kth_largest_of_equal_and_banned_values() {
        assert_eq!(kth_largest(&[3.0; 1000], 10), 3.0);
        let banned = f32::NEG_INFINITY;
        assert_eq!(kth_largest(&[banned, 1.0, banned], 2), banned);
    }

    #[test]
    fn top_p_agrees_with_a_sort() {
        let all: Vec<Candidate> =
            (0..).zip(scattered(3000)).map(|(id, v)| Candidate { id, weight: (v + 501.0) / 1000.0 }).collect();
        let total: f64 = all.iter().map(|c| f64::from(c.weight)).sum();
        for top_p in [1e-9, 0.01, 0.3, 0.9, 0.999, 1.0] {
            let mut plain = all.clone();
            plain.sort_by(best_first);
            let mut above = 0.0;
            plain.retain(|c| {
                let keep = above < top_p * total;
                above += f64::from(c.weight);
                keep
            });
            let mut fast = all.clone();
            keep_top_p(&mut fast, top_p);
            assert_eq!(fast, plain, "top_p = {top_p}");
        }
    }
}
