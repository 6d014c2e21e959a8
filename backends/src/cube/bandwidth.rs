//! How fast a device reads its memory: what a matrix-vector product is measured against.

use std::time::Instant;

use cubecl::prelude::*;

use super::launch::{MAX_ELEMENTS, UNITS};

/// Bytes per second of a plain read of `bytes` (best of several, launch and completion included).
///
/// # Panics
/// If they are more than 16 times [`MAX_ELEMENTS`].
pub fn read_bandwidth<R: Runtime>(client: &ComputeClient<R>, bytes: usize) -> f64 {
    let cubes = 2048;
    let vectors = bytes / 16;
    assert!(vectors <= MAX_ELEMENTS, "{bytes} bytes in one read");
    let (from, to) = (client.empty(vectors * 16), client.empty(cubes * UNITS as usize * 4));
    let wait = || {
        // An error shows in whatever is read next.
        let _ = cubecl::future::block_on(client.sync());
    };
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        wait();
        let start = Instant::now();
        // SAFETY: the two buffers were made for `vectors` vectors and one word per unit, and the kernel stays inside them.
        unsafe {
            read_kernel::launch_unchecked::<R>(
                client,
                CubeCount::Static(cubes as u32, 1, 1),
                CubeDim::new_1d(UNITS),
                4,
                ArrayArg::from_raw_parts(from.clone(), vectors),
                ArrayArg::from_raw_parts(to.clone(), cubes * UNITS as usize),
                vectors as u32,
            );
        }
        wait();
        best = best.min(start.elapsed().as_secs_f64());
    }
    (vectors * 16) as f64 / best
}

#[cube(launch_unchecked)]
fn read_kernel<N: Size>(from: &Array<Vector<u32, N>>, to: &mut Array<u32>, vectors: u32) {
    let step = CUBE_COUNT as u32 * UNITS;
    let mut at = ABSOLUTE_POS as u32;
    let mut sum = Vector::<u32, N>::new(0u32);
    while at < vectors {
        sum += from[at as usize];
        at += step;
    }
    to[ABSOLUTE_POS] = sum[0] + sum[1] + sum[2] + sum[3];
}
