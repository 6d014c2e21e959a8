//! Passes over a large vocabulary: the largest logit, the k-th largest, sums, and the nucleus of a distribution.
//!
//! Nothing is sorted whole. Sums and maxima run in lanes, which the compiler turns into vector instructions, in an order that is
//! the same everywhere.

use std::cmp::Ordering;

use super::candidates::Candidate;

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

/// Keeps the heaviest candidates until they hold the weight `wanted`: a candidate stays when those before it, heavier or as
/// heavy with a lower id, hold less; the heaviest always does. The order of the candidates does not change; `scratch` is room for a copy.
pub(super) fn keep_heaviest(candidates: &mut Vec<Candidate>, scratch: &mut Vec<Candidate>, wanted: f64) {
    scratch.clear();
    scratch.extend_from_slice(candidates);
    let mut open = scratch.as_mut_slice();
    let mut held = 0.0;
    // The nucleus is usually a few dozen tokens of a quarter million, so try small heads first.
    let mut size = 64;
    while open.len() > 64 {
        size = size.min(open.len() / 2);
        let (head, _, _) = open.select_nth_unstable_by(size, best_first);
        let head_weight: f64 = head.iter().map(|c| f64::from(c.weight)).sum();
        if held + head_weight >= wanted {
            open = open.get_mut(..size).unwrap_or_default();
        } else {
            held += head_weight;
            open = open.get_mut(size..).unwrap_or_default();
            size *= 4;
        }
    }
    open.sort_unstable_by(best_first);
    for candidate in open.iter() {
        if held >= wanted && held > 0.0 {
            let first_out = *candidate;
            candidates.retain(|c| best_first(c, &first_out).is_lt());
            return;
        }
        held += f64::from(candidate.weight);
    }
    // Everything up to the end of the open part is kept; what lies behind it was cut off as too light.
    if let Some(&last) = open.last() {
        candidates.retain(|c| best_first(c, &last).is_le());
    }
}

const LANES: usize = 16;

/// The largest value, passing over NaN, and whether there is a NaN.
pub(super) fn largest(values: &[f32]) -> (f32, bool) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut nans = [false; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for ((lane, nan), &value) in lanes.iter_mut().zip(&mut nans).zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
            *nan |= value.is_nan();
        }
    }
    let all = lanes.iter().chain(rest);
    let largest = all.fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let nan = nans.contains(&true) || rest.iter().any(|v| v.is_nan());
    (largest, nan)
}

/// The sum in f64.
pub(super) fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value);
        }
    }
    let rest: f64 = rest.iter().map(|&v| f64::from(v)).sum();
    lanes.iter().sum::<f64>() + rest
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
    fn the_nucleus_agrees_with_a_sort() {
        for n in [1, 63, 64, 65, 3000, 20_000] {
            let all: Vec<Candidate> =
                (0..).zip(scattered(n)).map(|(id, v)| Candidate::new(id, (v + 501.0) / 1000.0)).collect();
            let total: f64 = all.iter().map(|c| f64::from(c.weight)).sum();
            for top_p in [1e-9, 0.01, 0.3, 0.5, 0.9, 0.999, 0.999_999] {
                let mut sorted = all.clone();
                sorted.sort_by(best_first);
                let mut above = 0.0;
                sorted.retain(|c| {
                    let keep = above < top_p * total;
                    above += f64::from(c.weight);
                    keep
                });
                sorted.sort_by_key(|c| c.id);
                let mut fast = all.clone();
                keep_heaviest(&mut fast, &mut Vec::new(), top_p * total);
                assert_eq!(fast, sorted, "{n} tokens, top_p = {top_p}");
            }
        }
    }

    #[test]
    fn a_nucleus_of_every_size() {
        // Weights 1 and wanted k - 1/2 keep exactly the k lowest ids.
        let all: Vec<Candidate> = (0..300).map(|id| Candidate::new(id, 1.0)).collect();
        for k in 1..=300 {
            let mut kept = all.clone();
            keep_heaviest(&mut kept, &mut Vec::new(), k as f64 - 0.5);
            assert_eq!(kept, all[..k], "k = {k}");
        }
    }

    #[test]
    fn lanes_and_rest_count() {
        for n in [0, 1, 15, 16, 17, 40] {
            let values: Vec<f32> = (0..n).map(|i| i as f32 * 0.5 - 3.0).collect();
            let plain: f64 = values.iter().map(|&v| f64::from(v)).sum();
            assert_eq!(sum(&values), plain);
            let expected = values.last().copied().unwrap_or(f32::NEG_INFINITY);
            assert_eq!(largest(&values), (expected, false));
            for i in 0..n {
                let mut broken = values.clone();
                broken[i] = f32::NAN;
                assert!(largest(&broken).1, "NaN at {i} of {n}");
                broken[i] = 99.0;
                assert_eq!(largest(&broken).0, 99.0);
            }
        }
    }
}
