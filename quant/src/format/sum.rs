//! The sum of single precision numbers in PyTorch's order.
//!
//! bitsandbytes subtracts the mean of the block scales, and the Nano exporter sorts rows by their mean square: to
//! reproduce their bytes, the additions must happen in the order in which PyTorch's CPU kernel does them. That is a cascade
//! over 8 lanes (its AVX2 width, which it also uses on processors with AVX-512), unrolled four times.
//!
//! Exactness ends at 32768 numbers: there PyTorch divides the sum of one long vector among its threads, so that the result
//! depends on their number. This is the sum of a single thread at every length.

/// Levels of the cascade.
const LEVELS: usize = 4;
/// Independent sums per lane.
const UNROLL: usize = 4;

/// The sum of `values`.
pub(super) fn sum(values: &[f32]) -> f32 {
    if values.len() < 8 {
        lanes_sum::<1>(values)
    } else {
        lanes_sum::<8>(values)
    }
}

/// The mean of `values`; 0 for none.
pub(super) fn mean(values: &[f32]) -> f32 {
    if values.is_empty() {
        0.0
    } else {
        sum(values) / values.len() as f32
    }
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
    if count <= 2 {
        1
    } else {
        (usize::BITS - (count - 1).leading_zeros()) as usize
    }
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
