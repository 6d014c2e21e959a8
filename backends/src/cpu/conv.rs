//! The short causal convolution before the delta rule.

use super::plain;

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
    assert!(u.len() == batch * seq * channels, "u has {} elements, not [b, s, c]", u.len());
    assert!(y.len() == u.len(), "y has {} elements, u {}", y.len(), u.len());
    assert!(tail.len() == batch * (width - 1) * channels, "tail has {} elements, not [b, w-1, c]", tail.len());
    assert!(weight.len() == channels * width, "weight has {} elements, not [c, w]", weight.len());
    plain::causal_conv1d_silu(u, batch, seq, channels, tail, weight, width, y);
}
