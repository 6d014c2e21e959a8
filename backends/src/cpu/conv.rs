//! The short causal convolution before the delta rule.

use super::level;
use super::simd::{Kernel, Simd, launch, math};
use super::spans::{ranges, total};
use crate::check::check_len;
use crate::cpu::pool::{MIN_WORK, Output, parallel};
use crate::types::ConvShape;
use std::ops::Range;

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
pub fn causal_conv1d_silu(u: &[f32], tail: &mut [f32], weight: &[f32], p: &ConvShape, y: &mut [f32]) {
    let &ConvShape { batch, seq, channels, width } = p;
    assert!(width > 0, "the convolution needs at least one tap");
    check_len("u", u.len(), &[batch, seq, channels]);
    check_len("y", y.len(), &[batch, seq, channels]);
    check_len("tail", tail.len(), &[batch, width - 1, channels]);
    check_len("weight", weight.len(), &[channels, width]);
    if u.is_empty() {
        return;
    }
    let row = |b: usize, tail| (b * seq..(b + 1) * seq, Output::new(tail, channels));
    let spans: Vec<ConvSpan> = match (width - 1) * channels {
        // The tails of all rows are the same nothing.
        0 => (0..batch).map(|b| row(b, &mut [])).collect(),
        kept => tail.chunks_exact_mut(kept).enumerate().map(|(b, tail)| row(b, tail)).collect(),
    };
    run(u, &spans, weight, p, y);
}

/// [`causal_conv1d_silu`] of several sequences at once: `tokens[i]` tokens belong to the one whose inputs before them are `tails[i]`.
///
/// # Shapes
/// `u`, `y`: `[n, c]`, the tokens of all sequences one after the other; each of `tails [w-1, c]`; `weight [c, w]`.
///
/// # Panics
/// If a slice does not have its shape, the shape is not that of one row with all tokens, or there is not a tail for each sequence.
pub fn causal_conv1d_silu_spans(
    u: &[f32],
    tokens: &[usize],
    tails: &mut [&mut [f32]],
    weight: &[f32],
    p: &ConvShape,
    y: &mut [f32],
) {
    let &ConvShape { batch, seq, channels, width } = p;
    assert!(width > 0, "the convolution needs at least one tap");
    assert!(batch == 1 && total(tokens) == seq, "sequences of {tokens:?} tokens are not {batch} times {seq}");
    check_len("u", u.len(), &[seq, channels]);
    check_len("y", y.len(), &[seq, channels]);
    assert!(tails.len() == tokens.len(), "{} tails for {} sequences", tails.len(), tokens.len());
    tails.iter().for_each(|tail| check_len("tail", tail.len(), &[width - 1, channels]));
    check_len("weight", weight.len(), &[channels, width]);
    if u.is_empty() {
        return;
    }
    let spans: Vec<ConvSpan> =
        ranges(tokens).zip(tails).map(|(tokens, tail)| (tokens, Output::new(tail, channels))).collect();
    run(u, &spans, weight, p, y);
}

/// Which tokens belong to a sequence, and its inputs before them, `[w-1, c]`.
type ConvSpan<'a> = (Range<usize>, Output<'a>);

/// What the functions above do when they have checked the shapes.
fn run(u: &[f32], spans: &[ConvSpan], weight: &[f32], p: &ConvShape, y: &mut [f32]) {
    let &ConvShape { channels, width, .. } = p;
    let level = level();
    let blocks = channels.div_ceil(BLOCK);
    let y = Output::new(y, channels);
    let task = |task: usize| {
        let ((tokens, tail), first) = (&spans[task / blocks], task % blocks * BLOCK);
        let (tokens, tail) = (tokens.clone(), *tail);
        let count = BLOCK.min(channels - first);
        launch(level, Channels { u, tokens, channels, first, count, tail, weight, width, y });
    };
    let tasks = spans.len() * blocks;
    if u.len().saturating_mul(width) < MIN_WORK {
        (0..tasks).for_each(task);
    } else {
        parallel(tasks, task);
    }
}

/// Channels per task: their weights and taps stay in the L1 cache.
const BLOCK: usize = 256;

/// All tokens of a few channels of one sequence.
struct Channels<'a> {
    u: &'a [f32],
    tokens: Range<usize>,
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
        let Channels { u, tokens, channels, first, count, tail, weight, width, y } = self;
        let kept = width - 1;
        // The weights of one tap side by side.
        let mut taps = vec![0.0; width * count];
        for c in 0..count {
            for j in 0..width {
                taps[j * count + c] = weight[(first + c) * width + j];
            }
        }
        // SAFETY: `S` is enabled. Rows and channels lie in `tail [kept, c]` and `y [n, c]`, whose lengths were checked;
        // tasks have different channels, or sequences with tails and tokens of their own. Two slices of one row of the tail never live at a time.
        unsafe {
            let before = |i: usize| tail.row(i, first, count);
            let input = |i: usize| {
                if i < kept { &*before(i) } else { &u[(tokens.start + i - kept) * channels + first..][..count] }
            };
            for t in 0..tokens.len() {
                let y = y.row(tokens.start + t, first, count);
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
                before(i).copy_from_slice(input(tokens.len() + i));
            }
        }
    }
}
