//! The short causal convolution before the delta rule.

use super::level;
use super::simd::{Kernel, Simd, launch, math};
use crate::check::check_len;
use crate::cpu::pool::{MIN_WORK, Output, parallel};

/// Depthwise causal convolution and SiLU: `y_t = silu(sum_j W[:, j] u_{t - (w-1) + j})`.
///
/// `tail` holds the `w - 1` inputs before `u`, oldest first, and is left holding the last `w - 1` inputs of all, so any
/// split of a sequence gives the same result.
///
/// # Shapes
/// `u`, `y`: `[b, s, c]`; `tail [b, w-1, c]`; `weight [c, w]`.
///
/// # Panics
/// If a slice does not have its shape.
#[allow(clippy::too_many_arguments)]
pub fn causal_conv1d_silu(
    u: &[f32],
    batch: usize,
    seq: usize,
    channels: usize,
    tail: &mut [f32],
    weight: &[f32],
    width: usize,
    y: &mut [f32],
) {
    assert!(width > 0, "the convolution needs at least one tap");
    check_len("u", u.len(), &[batch, seq, channels]);
    check_len("y", y.len(), &[batch, seq, channels]);
    check_len("tail", tail.len(), &[batch, width - 1, channels]);
    check_len("weight", weight.len(), &[channels, width]);
    if u.is_empty() {
        return;
    }
    let level = level();
    let blocks = channels.div_ceil(BLOCK);
    let (tail, y) = (Output::new(tail, channels), Output::new(y, channels));
    let task = |task: usize| {
        let (b, first) = (task / blocks, task % blocks * BLOCK);
        let count = BLOCK.min(channels - first);
        let u = &u[b * seq * channels..(b + 1) * seq * channels];
        launch(level, Channels { u, b, seq, channels, first, count, tail, weight, width, y });
    };
    if u.len().saturating_mul(width) < MIN_WORK {
        (0..batch * blocks).for_each(task);
    } else {
        parallel(batch * blocks, task);
    }
}

/// Channels per task: their weights and taps stay in the L1 cache.
const BLOCK: usize = 256;

/// All tokens of a few channels of one row of the batch.
struct Channels<'a> {
    u: &'a [f32],
    b: usize,
    seq: usize,
    channels: usize,
    first: usize,
    count: usize,
    tail: Output<'a>,
    weight: &'a [f32],
    width: usize,
    y: Output<'a>,
}

impl Kernel for Channels<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let Channels { u, b, seq, channels, first, count, tail, weight, width, y } = self;
        let kept = width - 1;
        // The weights of one tap side by side.
        let mut taps = vec![0.0; width * count];
        for c in 0..count {
            for j in 0..width {
                taps[j * count + c] = weight[(first + c) * width + j];
            }
        }
        // SAFETY: `S` is enabled. Rows and channels lie in `tail [b * kept, c]` and `y [b * s, c]`, whose lengths were checked;
        // tasks have different channels or rows of the batch. Two slices of one row of the tail never live at a time.
        unsafe {
            let before = |i: usize| tail.row(b * kept + i, first, count);
            let input = |i: usize| {
                if i < kept { &*before(i) } else { &u[(i - kept) * channels + first..][..count] }
            };
            for t in 0..seq {
                let y = y.row(b * seq + t, first, count);
                y.fill(0.0);
                for j in 0..width {
                    let input = input(t + j);
                    for ((y, &w), &u) in y.iter_mut().zip(&taps[j * count..(j + 1) * count]).zip(input) {
                        *y += w * u;
                    }
                }
                math::map::<S, _>(y, math::Silu);
            }
            // Each comes from further on, so none is overwritten before it is read.
            for i in 0..kept {
                before(i).copy_from_slice(input(seq + i));
            }
        }
    }
}
