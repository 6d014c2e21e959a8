//! Rotary position embedding.

use super::plain;

/// Rotates the two halves of the first `rotary_dim` elements of every head: `(a, b) -> (a cos - b sin, b cos + a sin)`.
///
/// # Shapes
/// `x [b, s, heads, head_dim]` with `rows = b * s`, `cos` and `sin` `[s, rotary_dim / 2]`.
///
/// # Panics
/// If a slice does not have its shape, `rotary_dim` is odd or above `head_dim`, or `seq` does not divide `rows`.
#[allow(clippy::too_many_arguments)]
pub fn rotary(
    x: &mut [f32],
    rows: usize,
    seq: usize,
    heads: usize,
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
    rotary_dim: usize,
) {
    assert!(x.len() == rows * heads * head_dim, "x has {} elements, not [b, s, heads, head_dim]", x.len());
    assert!(rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim, "rotary_dim {rotary_dim} of a head of {head_dim}");
    assert!(cos.len() == seq * rotary_dim / 2, "cos has {} elements, not [s, rotary_dim / 2]", cos.len());
    assert!(sin.len() == cos.len(), "sin has {} elements, cos {}", sin.len(), cos.len());
    if x.is_empty() || rotary_dim == 0 {
        return;
    }
    assert!(seq > 0 && rows.is_multiple_of(seq), "{rows} rows are not a batch of {seq} tokens");
    plain::rotary(x, rows, seq, heads, head_dim, cos, sin, rotary_dim);
}
