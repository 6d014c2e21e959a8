//! Rotary position embedding.

use crate::check::check_len;
use crate::cpu::pool::for_each_chunk;

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
    check_len("x", x.len(), &[rows, heads, head_dim]);
    assert!(rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim, "rotary_dim {rotary_dim} of a head of {head_dim}");
    check_len("cos", cos.len(), &[seq, rotary_dim / 2]);
    check_len("sin", sin.len(), &[seq, rotary_dim / 2]);
    if x.is_empty() || rotary_dim == 0 {
        return;
    }
    assert!(seq > 0 && rows.is_multiple_of(seq), "{rows} rows are not a batch of {seq} tokens");
    let half = rotary_dim / 2;
    for_each_chunk(x, heads * head_dim, heads * rotary_dim, |row, x| {
        let at = row % seq * half;
        let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
        for head in x.chunks_exact_mut(head_dim) {
            // Plain loops over equal lengths: the compiler vectorises them.
            let (a, b) = head[..rotary_dim].split_at_mut(half);
            for ((a, b), (c, s)) in a.iter_mut().zip(b).zip(cos.iter().zip(sin)) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    });
}
