//! Rotary position embedding.

use crate::check::check_len;
use crate::cpu::pool::for_each_chunk;
use crate::types::RotaryShape;

/// Rotates the two halves of the first `2 half` elements of every head: `(a, b) -> (a cos - b sin, b cos + a sin)`.
///
/// # Shapes
/// `x [b, s, heads, head_dim]`, `cos` and `sin` `[s, half]`.
///
/// # Panics
/// If a slice does not have its shape, or `2 half` exceeds the head.
pub fn rotary(x: &mut [f32], cos: &[f32], sin: &[f32], p: &RotaryShape) {
    let &RotaryShape { batch, seq, heads, head_dim, half } = p;
    check_len("x", x.len(), &[batch, seq, heads, head_dim]);
    assert!(half <= head_dim / 2, "{half} pairs in a head of {head_dim}");
    check_len("cos", cos.len(), &[seq, half]);
    check_len("sin", sin.len(), &[seq, half]);
    if x.is_empty() || half == 0 {
        return;
    }
    let rotary_dim = 2 * half;
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
