//! Memory speed, the yardstick of every kernel that reads weights once.

use rayon::prelude::*;
use std::time::Instant;

/// Bytes per second (in GB/s) at which the pool reads a buffer of `bytes`; the best of `passes`.
///
/// Choose `bytes` well above the last-level cache, or the result is the speed of that cache.
pub fn read_bandwidth(bytes: usize, passes: usize) -> f64 {
    let buffer = vec![1u64; bytes.div_ceil(8).max(1)];
    let mut best = f64::INFINITY;
    for _ in 0..passes.max(1) {
        let start = Instant::now();
        std::hint::black_box(read(&buffer));
        best = best.min(start.elapsed().as_secs_f64());
    }
    buffer.len() as f64 * 8.0 / best / 1e9
}

/// Reads all of `buffer` on the kernels' threads. The sum is there so that no read is left out.
pub fn read(buffer: &[u64]) -> u64 {
    super::run(|| {
        let chunk = buffer.len().div_ceil(16 * rayon::current_num_threads()).max(1);
        buffer.par_chunks(chunk).map(sum).sum()
    })
}

/// 32 independent sums, so that the loop waits for memory and not for additions.
fn sum(values: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    let chunks = values.chunks_exact(32);
    let rest: u64 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().fold(rest, |total, sum| total.wrapping_add(*sum))
}
