//! The sum of single precision numbers in PyTorch's order.
//!
//! bitsandbytes subtracts the mean of the block scales, and the Nano exporter sorts rows by their mean square: to
//! reproduce their bytes, the additions must happen in the order in which PyTorch's CPU kernel does them. That is a cascade
//! over 8 lanes (its AVX2 width, which it also uses on processors with AVX-512), unrolled four times; see `cascade_sum` in
//! PyTorch's `SumKernel.cpp`.
//!
//! Exactness ends at 32768 numbers: there PyTorch divides the sum of one long vector among its threads, so that the result
//! depends on their number. This is the sum of a single thread at every length.

/// Levels of the cascade.
const LEVELS: usize = 4;
/// Independent sums per lane.
const UNROLL: usize = 4;

/// The sum of `values`.
pub(super) fn sum(values: &[f32]) -> f32 {
    if values.len() < 8 { lanes_sum::<1>(values) } else { lanes_sum::<8>(values) }
}

/// The mean of `values`; 0 for none.
pub(super) fn mean(values: &[f32]) -> f32 {
    if values.is_empty() { 0.0 } else { sum(values) / values.len() as f32 }
}

type Group<const LANES: usize> = [[f32; LANES]; UNROLL];

fn lanes_sum<const LANES: usize>(values: &[f32]) -> f32 {
    let (vectors, tail) = values.as_chunks::<LANES>();
    let (groups, rest) = vectors.as_chunks::<UNROLL>();
    let [mut total, second, third, fourth] = cascade(groups);
    for vector in rest {
        add(&mut total, vector);
    }
    add(&mut total, &second);
    add(&mut total, &third);
    add(&mut total, &fourth);
    let tail = tail.iter().fold(0.0, |sum, v| sum + v);
    total.iter().fold(tail, |sum, v| sum + v)
}

/// Sums of sums: each level takes over from the one below after `2^power` additions, so that only numbers of similar
/// size meet.
fn cascade<const LANES: usize>(groups: &[Group<LANES>]) -> Group<LANES> {
    let power = (ceil_log2(groups.len()) / LEVELS).max(4);
    let step = 1 << power;
    let mut levels = [[[0.0; LANES]; UNROLL]; LEVELS];
    let mut chunks = groups.chunks_exact(step);
    let mut done = 0;
    for chunk in &mut chunks {
        for group in chunk {
            add_group(&mut levels[0], group);
        }
        done += step;
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; LANES]; UNROLL]);
            add_group(&mut levels[level], &below);
            if done & ((step - 1) << (level * power)) != 0 {
                break;
            }
        }
    }
    for group in chunks.remainder() {
        add_group(&mut levels[0], group);
    }
    let [mut total, upper @ ..] = levels;
    for level in &upper {
        add_group(&mut total, level);
    }
    total
}

fn ceil_log2(count: usize) -> usize {
    if count <= 2 { 1 } else { (usize::BITS - (count - 1).leading_zeros()) as usize }
}

fn add_group<const LANES: usize>(to: &mut Group<LANES>, from: &Group<LANES>) {
    for (to, from) in to.iter_mut().zip(from) {
        add(to, from);
    }
}

fn add<const LANES: usize>(to: &mut [f32; LANES], from: &[f32; LANES]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

#[cfg(test)]
mod tests {
    use super::sum;

    /// Numbers of very different sizes, so that every order of additions has another sum.
    fn values(length: usize) -> Vec<f32> {
        let hashes = (0..length as u32).map(|i| i.wrapping_mul(2_654_435_761) ^ (i << 7));
        hashes.map(|h| (h >> 8) as f32 * 0.5f32.powi((h & 15) as i32)).collect()
    }

    fn running(values: impl Iterator<Item = f32>) -> f32 {
        values.fold(0.0, |sum, v| sum + v)
    }

    /// The order written as index sets. Of the whole groups of 32, those before the last multiple of 16 are added up 16 at a
    /// time, then these sums; the remaining ones come first in the total.
    #[test]
    fn order_is_lane_by_lane() {
        for length in [8, 31, 32, 64, 100, 288, 511, 512, 1000, 1024, 5000] {
            let values = values(length);
            let groups = length / 32;
            let full = groups / 16 * 16;
            let cell = |part: usize, lane: usize, groups: std::ops::Range<usize>| {
                running(groups.map(|g| values[g * 32 + part * 8 + lane]))
            };
            let unrolled = |part, lane| {
                let upper = (0..full / 16).map(|chunk| cell(part, lane, chunk * 16..chunk * 16 + 16));
                cell(part, lane, full..groups) + running(upper)
            };
            let lane = |lane| {
                let rest = (groups * 4..length / 8).map(|vector| values[vector * 8 + lane]);
                let first = rest.fold(unrolled(0, lane), |sum, v| sum + v);
                (1..4).fold(first, |sum, part| sum + unrolled(part, lane))
            };
            let tail = running(values[length / 8 * 8..].iter().copied());
            let expected = (0..8).fold(tail, |sum, l| sum + lane(l));
            assert_eq!(sum(&values), expected, "{length}");
        }
    }

    /// Below 8 numbers there are no lanes, but still four sums.
    #[test]
    fn few_numbers_have_four_sums() {
        let v = [1.0, 1e8, 3.0, -1e8, 5.0, 7.0, 11.0];
        let expected = (((v[0] + v[4] + v[5] + v[6]) + v[1]) + v[2]) + v[3];
        assert_eq!(sum(&v), expected);
    }

    /// Integers add exactly in any order: every element is counted once.
    #[test]
    fn every_element_is_counted_once() {
        for length in (0..200).chain([511, 512, 513, 2047, 4096, 33_333, 70_001]) {
            let values: Vec<f32> = (0..length).map(|i| (i % 13) as f32).collect();
            let expected: u32 = (0..length as u32).map(|i| i % 13).sum();
            assert_eq!(sum(&values), expected as f32, "{length}");
        }
    }
}
