//! Rows of a matrix in any storage as floats: embedding and dequantisation.

use crate::check::check_len;
use crate::cpu::level;
use crate::cpu::matmul::dequantize::Decode;
use crate::cpu::matmul::weight::Weight;
use crate::cpu::pool::for_each_chunk;
use crate::cpu::simd::launch;

/// Rows `first..first + count` as floats, row-major; each value is exactly the stored one (one f32 product).
///
/// # Panics
/// If the rows exceed the matrix, `out` is not `count * k` long, or the storage is too short.
pub fn dequantize_rows(w: &Weight, first: usize, count: usize, out: &mut [f32]) {
    w.check();
    let end = first.checked_add(count).expect("first + count overflows");
    assert!(end <= w.n, "rows {first}..{end} of {}", w.n);
    check_len("out", out.len(), &[count, w.k]);
    gather(w, count, |i| first + i, out);
}

/// Gathers rows: `y[i] = W[ids[i]]`.
///
/// # Shapes
/// `w [v, k]`, `y [ids, k]`.
///
/// # Panics
/// If an id is not below `v`, or a slice does not have its shape.
pub fn embed(ids: &[usize], w: &Weight, y: &mut [f32]) {
    w.check();
    check_len("y", y.len(), &[ids.len(), w.k]);
    if let Some(id) = ids.iter().find(|&&id| id >= w.n) {
        panic!("id {id} in a table of {} rows", w.n);
    }
    gather(w, ids.len(), |i| ids[i], y);
}

fn gather(w: &Weight, count: usize, row: impl Fn(usize) -> usize + Sync, y: &mut [f32]) {
    let level = level();
    if w.k > 0 && count > 0 {
        for_each_chunk(y, w.k, w.k, |i, out| {
            launch(level, Decode { w, row: row(i), first: 0, out });
        });
    }
}
