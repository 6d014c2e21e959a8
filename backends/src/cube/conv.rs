//! The short causal convolution before the delta rule.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{Buffer, UNITS, grid_of_units};
use super::spans::{Places, PlacesLaunch, buffers, numbers, of_span, read, span_at, spans_per_launch, starts, write};
use crate::check::elements;
use crate::types::ConvShape;

/// Depthwise causal convolution and SiLU: `y_t = silu(sum_j W[:, j] u_{t - (w-1) + j})`, with the `w - 1` inputs before
/// `u` in `tail`; `next_tail` gets the last `w - 1` of all. The tails may not be one buffer.
///
/// # Shapes
/// `u, y [b, s, c]` of one type; `tail, next_tail [b, w-1, c]` of one type; `weight [c, w]`.
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn causal_conv1d_silu<R: Runtime>(
    client: &ComputeClient<R>,
    u: &Buffer,
    tail: &Buffer,
    weight: &Buffer,
    y: &Buffer,
    next_tail: &Buffer,
    p: ConvShape,
) {
    causal_conv1d_silu_spans(client, u, &[ConvSpan { tail, next_tail, shape: p }], weight, y);
}

/// One sequence of a call over several.
#[derive(Clone, Copy, Debug)]
pub struct ConvSpan<'a> {
    /// The inputs before its new ones.
    pub tail: &'a Buffer,
    /// As `tail`, written.
    pub next_tail: &'a Buffer,
    /// The shape of this sequence alone.
    pub shape: ConvShape,
}

/// [`causal_conv1d_silu`] of several sequences, whose tokens follow one another, in one launch for as many as the device has
/// arguments for.
///
/// # Shapes
/// `u, y [n, c]` of one type, `n` the tokens of all batches of all sequences; all tails of one type; `weight [c, w]`.
///
/// # Panics
/// As [`causal_conv1d_silu`], or if sequences have other channels or taps.
pub fn causal_conv1d_silu_spans<R: Runtime>(
    client: &ComputeClient<R>,
    u: &Buffer,
    spans: &[ConvSpan<'_>],
    weight: &Buffer,
    y: &Buffer,
) {
    let Some(&ConvSpan { tail: first, shape: ConvShape { channels, width, .. }, .. }) = spans.first() else {
        return;
    };
    assert!(width > 0, "the convolution needs at least one tap");
    let mut tokens = 0usize;
    for ConvSpan { tail, next_tail, shape: p } in spans {
        assert!(
            (p.channels, p.width) == (channels, width),
            "sequences of {p:?} and of {:?} in one call",
            spans[0].shape
        );
        tokens = tokens.saturating_add(elements("the tokens of a sequence", &[p.batch, p.seq]));
        for (name, tail) in [("tail", tail), ("next_tail", next_tail)] {
            tail.check(name, &[p.batch, width - 1, channels]);
            tail.check_type(name, first.dtype);
        }
    }
    u.check("u", &[tokens, channels]);
    y.check("y", &[tokens, channels]);
    weight.check("weight", &[channels, width]);
    y.check_type("y", u.dtype);
    if channels == 0 {
        return;
    }
    let mut before = 0;
    // Inputs, results and taps are of all.
    for spans in spans.chunks(spans_per_launch(client, 2, 3)) {
        // An output or an element of the tail.
        let rows = |span: &ConvSpan<'_>| span.shape.batch.saturating_mul(span.shape.seq.saturating_add(width - 1));
        let items = elements("outputs and tails", &[spans.iter().map(rows).sum(), channels]);
        let places = PlacesLaunch::new(
            starts(spans.iter().map(rows)),
            starts(spans.iter().map(|span| span.shape.batch * span.shape.seq)),
            numbers(spans.iter().map(|span| span.shape.seq)),
        );
        if items > 0 {
            // SAFETY: the lengths were checked, and the kernel stays inside them.
            unsafe {
                conv_kernel::launch_unchecked::<R>(
                    client,
                    grid_of_units(items),
                    CubeDim::new_1d(UNITS),
                    u.arg(),
                    buffers(spans.iter().map(|span| span.tail)),
                    weight.arg(),
                    y.arg(),
                    buffers(spans.iter().map(|span| span.next_tail)),
                    places,
                    items as u32,
                    before as u32,
                    channels as u32,
                    width as u32,
                    u.dtype,
                    first.dtype,
                    weight.dtype,
                );
            }
        }
        before += spans.iter().map(|span| span.shape.batch * span.shape.seq).sum::<usize>();
    }
}

/// A unit makes an output, or one element of the next tail: inputs `s..s + w - 1` of `tail` and `u` joined. A sequence has the outputs
/// from its start on, for the inputs from its first token on, after `before` of earlier launches.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn conv_kernel<F: Float, T: Float, W: Float>(
    u: &Array<F>,
    tails: &Sequence<Array<T>>,
    weight: &Array<W>,
    y: &mut Array<F>,
    next_tails: &mut Sequence<Array<T>>,
    places: &Places,
    items: u32,
    before: u32,
    channels: u32,
    #[comptime] width: u32,
    #[define(F)] _u_type: StorageType,
    #[define(T)] _tail_type: StorageType,
    #[define(W)] _weight_type: StorageType,
) {
    let item = CUBE_POS as u32 * UNITS + UNIT_POS;
    if item >= items {
        terminate!();
    }
    let past = comptime!(width - 1);
    let c = item % channels;
    let row = item / channels;
    let span = span_at(&places.starts, row);
    let own = row - of_span(&places.starts, span);
    let seq = of_span(&places.seq, span);
    let t = own % (seq + past);
    let b = own / (seq + past);
    let first = before + of_span(&places.tokens, span) + b * seq;
    if t < seq {
        let mut sum = 0.0f32;
        #[unroll]
        for j in 0..width {
            let input = joined::<F, T>(u, tails, span, b, first, t + j, c, channels, past);
            sum += f32::cast_from(weight[(c * width + j) as usize]) * input;
        }
        let out = sum / (1.0 + f32::exp(-sum));
        y[((first + t) * channels + c) as usize] = F::cast_from(out);
    } else {
        let input = joined::<F, T>(u, tails, span, b, first, t, c, channels, past);
        write::<T>(next_tails, span, (b * past + t - seq) * channels + c, T::cast_from(input));
    }
}

/// Element `i` of the tail and `u` of one row of a batch joined.
#[cube]
#[allow(clippy::too_many_arguments)]
fn joined<F: Float, T: Float>(
    u: &Array<F>,
    tails: &Sequence<Array<T>>,
    span: u32,
    b: u32,
    first: u32,
    i: u32,
    c: u32,
    channels: u32,
    #[comptime] past: u32,
) -> f32 {
    if i < past {
        f32::cast_from(read::<T>(tails, span, (b * past + i) * channels + c))
    } else {
        f32::cast_from(u[((first + i - past) * channels + c) as usize])
    }
}
