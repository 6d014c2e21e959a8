//! Linear layers, embeddings and dequantisation for every storage.

use super::{Weight, plain};

/// Rows `first..first + count` as floats, row-major; each value is exactly the stored one (one f32 product).
///
/// # Panics
/// If the rows exceed the matrix, `out` is not `count * k` long, or the storage is too short.
pub fn dequantize_rows(w: &Weight, first: usize, count: usize, out: &mut [f32]) {
    w.check();
    let end = first.checked_add(count).expect("first + count overflows");
    assert!(end <= w.n, "rows {first}..{end} of {}", w.n);
    assert!(
        out.len() == count * w.k,
        "out has {} elements, not {count} rows of {}",
        out.len(),
        w.k
    );
    plain::dequantize_rows(w, first, count, out);
}

/// `y = x Wᵀ + b`.
///
/// # Shapes
/// `x [m, k]`, `w [n, k]`, `bias [n]`, `y [m, n]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn linear(x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>, y: &mut [f32]) {
    w.check();
    assert!(
        x.len() == m * w.k,
        "x has {} elements, not [{m}, {}]",
        x.len(),
        w.k
    );
    assert!(
        y.len() == m * w.n,
        "y has {} elements, not [{m}, {}]",
        y.len(),
        w.n
    );
    assert!(
        bias.is_none_or(|bias| bias.len() == w.n),
        "bias does not have {} values",
        w.n
    );
    super::run(|| plain::linear(x, m, w, bias, y));
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
    assert!(
        y.len() == ids.len() * w.k,
        "y has {} elements, not [{}, {}]",
        y.len(),
        ids.len(),
        w.k
    );
    if let Some(id) = ids.iter().find(|&&id| id >= w.n) {
        panic!("id {id} in a table of {} rows", w.n);
    }
    for (i, &id) in ids.iter().enumerate() {
        plain::dequantize_rows(w, id, 1, &mut y[i * w.k..(i + 1) * w.k]);
    }
}
