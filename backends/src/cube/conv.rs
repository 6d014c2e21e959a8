//! The short causal convolution before the delta rule.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{Buffer, UNITS, grid_of_units};

/// The shape of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct CausalConv1d {
    /// Rows of the batch.
    pub batch: usize,
    /// New tokens.
    pub seq: usize,
    /// Channels.
    pub channels: usize,
    /// Taps.
    pub width: usize,
}

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
    p: CausalConv1d,
) {
    let CausalConv1d { batch, seq, channels, width } = p;
    assert!(width > 0, "the convolution needs at least one tap");
    u.check("u", &[batch, seq, channels]);
    y.check("y", &[batch, seq, channels]);
    tail.check("tail", &[batch, width - 1, channels]);
    next_tail.check("next_tail", &[batch, width - 1, channels]);
    weight.check("weight", &[channels, width]);
    y.check_type("y", u.dtype);
    next_tail.check_type("next_tail", tail.dtype);
    // An output or an element of the tail.
    let items = u.len + tail.len;
    if items == 0 {
        return;
    }
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        conv_kernel::launch_unchecked::<R>(
            client,
            grid_of_units(items),
            CubeDim::new_1d(UNITS),
            u.arg(),
            tail.arg(),
            weight.arg(),
            y.arg(),
            next_tail.arg(),
            items as u32,
            seq as u32,
            channels as u32,
            width as u32,
            u.dtype,
            tail.dtype,
            weight.dtype,
        );
    }
}

/// A unit makes an output, or one element of the next tail: inputs `s..s + w - 1` of `tail` and `u` joined.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn conv_kernel<F: Float, T: Float, W: Float>(
    u: &Array<F>,
    tail: &Array<T>,
    weight: &Array<W>,
    y: &mut Array<F>,
    next_tail: &mut Array<T>,
    items: u32,
    seq: u32,
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
    let t = item / channels % (seq + past);
    let b = item / channels / (seq + past);
    if t < seq {
        let mut sum = 0.0f32;
        #[unroll]
        for j in 0..width {
            let input = joined::<F, T>(u, tail, b, t + j, c, seq, channels, past);
            sum += f32::cast_from(weight[(c * width + j) as usize]) * input;
        }
        let out = sum / (1.0 + f32::exp(-sum));
        y[((b * seq + t) * channels + c) as usize] = F::cast_from(out);
    } else {
        let input = joined::<F, T>(u, tail, b, t, c, seq, channels, past);
        next_tail[((b * past + t - seq) * channels + c) as usize] = T::cast_from(input);
    }
}

/// Element `i` of `tail` and `u` joined.
#[cube]
#[allow(clippy::too_many_arguments)]
fn joined<F: Float, T: Float>(
    u: &Array<F>,
    tail: &Array<T>,
    b: u32,
    i: u32,
    c: u32,
    seq: u32,
    channels: u32,
    #[comptime] past: u32,
) -> f32 {
    if i < past {
        f32::cast_from(tail[((b * past + i) * channels + c) as usize])
    } else {
        f32::cast_from(u[((b * seq + i - past) * channels + c) as usize])
    }
}
