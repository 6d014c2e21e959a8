//! Linear layers, embeddings and dequantisation for every storage.

use super::dense::{self, DenseRows, Element};
use super::dequantize::{Decode, NARROW2, NARROW4};
use super::gemm::gemm;
use super::packed::{MAX_COLUMNS, Order, PackedRows, PermutedX, Scales};
use super::simd::{self, launch};
use super::threads::{MIN_WORK, Output, parallel, with_scratch};
use super::weight::{CodeBook4, Matrix, Rows};
use super::{Level, Precision, Weight, int8, level, precision, threads};

/// Rows `first..first + count` as floats, row-major; each value is exactly the stored one (one f32 product).
///
/// # Panics
/// If the rows exceed the matrix, `out` is not `count * k` long, or the storage is too short.
pub fn dequantize_rows(w: &Weight, first: usize, count: usize, out: &mut [f32]) {
    w.check();
    let end = first.checked_add(count).expect("first + count overflows");
    assert!(end <= w.n, "rows {first}..{end} of {}", w.n);
    assert!(out.len() == count * w.k, "out has {} elements, not {count} rows of {}", out.len(), w.k);
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
    assert!(y.len() == ids.len() * w.k, "y has {} elements, not [{}, {}]", y.len(), ids.len(), w.k);
    if let Some(id) = ids.iter().find(|&&id| id >= w.n) {
        panic!("id {id} in a table of {} rows", w.n);
    }
    gather(w, ids.len(), |i| ids[i], y);
}

fn gather(w: &Weight, count: usize, row: impl Fn(usize) -> usize + Sync, y: &mut [f32]) {
    let level = level();
    if w.k > 0 && count > 0 {
        super::threads::for_each_chunk(y, w.k, w.k, |i, out| {
            launch(level, Decode { w, row: row(i), first: 0, out });
        });
    }
}

/// `y = x Wᵀ + b`, in the arithmetic of [`precision`].
///
/// # Shapes
/// `x [m, k]`, `w [n, k]`, `bias [n]`, `y [m, n]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn linear(x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>, y: &mut [f32]) {
    w.check();
    assert!(x.len() == m * w.k, "x has {} elements, not [{m}, {}]", x.len(), w.k);
    assert!(y.len() == m * w.n, "y has {} elements, not [{m}, {}]", y.len(), w.n);
    assert!(bias.is_none_or(|bias| bias.len() == w.n), "bias does not have {} values", w.n);
    product(x, m, w, bias, y);
}

/// [`linear`] on lengths that were checked.
pub(crate) fn product(x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>, y: &mut [f32]) {
    if m == 0 || w.n == 0 {
        return;
    }
    if w.k == 0 {
        for y in y.chunks_exact_mut(w.n) {
            y.iter_mut().enumerate().for_each(|(j, y)| *y = bias.map_or(0.0, |bias| bias[j]));
        }
        return;
    }
    let level = level();
    if precision() == Precision::Int8Activations && int8::available(level) && int8::fits(w) {
        return int8::product(x, m, w, bias, y);
    }
    if m > FEW {
        return gemm(level, x, m, w, bias, Output::new(y, w.n));
    }
    for (x, y) in x.chunks(MAX_COLUMNS * w.k).zip(y.chunks_mut(MAX_COLUMNS * w.n)) {
        few(level, x, x.len() / w.k, w, bias, y);
    }
}

/// Rows of x up to which passes of [`MAX_COLUMNS`] are faster than tiles, whose vectors would be mostly empty.
const FEW: usize = 2 * MAX_COLUMNS;

/// A product with at most [`MAX_COLUMNS`] rows of x.
fn few(level: Level, x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>, y: &mut [f32]) {
    match &w.data {
        Matrix::F32(data) => dense_product(level, data, None, x, m, (w.n, w.k), bias, Output::new(y, w.n)),
        Matrix::F16(data) => {
            dense_product(level, dense::f16(data), None, x, m, (w.n, w.k), bias, Output::new(y, w.n));
        }
        Matrix::Bf16(data) => {
            dense_product(level, dense::bf16(data), None, x, m, (w.n, w.k), bias, Output::new(y, w.n));
        }
        Matrix::CodeBook4(data) if w.k.is_multiple_of(64) && data.block.is_multiple_of(64) => {
            code_book_product(level, data, x, m, (w.n, w.k), bias, Output::new(y, w.n));
        }
        Matrix::CodeBook4(_) => decoded_product(level, x, m, w, bias, Output::new(y, w.n)),
        Matrix::Rows(data) => rows_product(level, data, x, m, (w.n, w.k), bias, y),
    }
}

/// Splits `n` rows of `row_bytes` over the threads: `f(first, last)`.
pub(crate) fn split_rows(n: usize, row_bytes: usize, work: usize, f: impl Fn(usize, usize) + Sync) {
    if n.saturating_mul(work) < MIN_WORK {
        return f(0, n);
    }
    // Small enough to even out the threads, large enough that each reads long runs of rows.
    let pieces = 8 * threads();
    let rows = (n.div_ceil(pieces)).max((16 << 10) / row_bytes.max(1)).next_multiple_of(4);
    parallel(n.div_ceil(rows), |task| f(task * rows, n.min((task + 1) * rows)));
}

#[allow(clippy::too_many_arguments)]
fn dense_product<E: Element>(
    level: Level,
    w: &[E],
    scales: Option<&[f32]>,
    x: &[f32],
    m: usize,
    (n, k): (usize, usize),
    bias: Option<&[f32]>,
    y: Output,
) {
    split_rows(n, k * E::SIZE, m * k, |first, last| {
        launch(level, DenseRows { w, k, scales, x, m, first, last, bias, y });
    });
}

fn code_book_product(
    level: Level,
    w: &CodeBook4,
    x: &[f32],
    m: usize,
    (n, k): (usize, usize),
    bias: Option<&[f32]>,
    y: Output,
) {
    let x = &PermutedX::new(x, m, k, simd::lanes(level), 4, Order::HighFirst);
    let stride = k / 2;
    split_rows(n, stride, m * k, |first, last| {
        let scales = Scales::Blocks(w, k);
        let (codes, book) = (w.codes, w.code_book);
        let (row_bytes, bits, column) = (stride, 4, 0);
        launch(level, PackedRows { codes, stride, row_bytes, bits, book, scales, x, m, first, last, column, bias, y });
    });
}

/// Any code book matrix: rows are decoded into the cache a few at a time.
fn decoded_product(level: Level, x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>, y: Output) {
    const ROWS: usize = 4;
    split_rows(w.n, w.k.div_ceil(2), m * w.k, |first, last| {
        with_scratch(ROWS * w.k, |rows| {
            for first in (first..last).step_by(ROWS) {
                let count = ROWS.min(last - first);
                for (i, out) in rows.chunks_exact_mut(w.k).enumerate().take(count) {
                    launch(level, Decode { w, row: first + i, first: 0, out });
                }
                let bias = bias.map(|bias| &bias[first..]);
                let y = y.columns_from(first);
                launch(level, DenseRows { w: &*rows, k: w.k, scales: None, x, m, first: 0, last: count, bias, y });
            }
        });
    });
}

fn rows_product(
    level: Level,
    w: &Rows,
    x: &[f32],
    m: usize,
    (n, k): (usize, usize),
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let wide = w.wide_rows;
    let stored_product = |bias: Option<&[f32]>, y: Output| {
        if wide > 0 {
            dense_product(level, dense::i8(w.wide), Some(w.scales), x, m, (wide, k), bias, y);
        }
        if wide < n {
            let bits = w.narrow_bits as usize;
            let book = if bits == 2 { &NARROW2 } else { &NARROW4 };
            let x = &PermutedX::new(x, m, k, simd::lanes(level), bits, Order::LowFirst);
            let (stride, row_bytes) = (w.narrow_stride, (k * bits).div_ceil(8));
            split_rows(n - wide, row_bytes, m * k, |first, last| {
                let scales = Scales::Rows(&w.scales[wide..]);
                let (codes, column) = (w.narrow, wide);
                launch(
                    level,
                    PackedRows { codes, stride, row_bytes, bits, book, scales, x, m, first, last, column, bias, y },
                );
            });
        }
    };
    let Some(slots) = w.slots else {
        return stored_product(bias, Output::new(y, n));
    };
    // Rows are computed in the order they are stored, then put where they belong.
    with_scratch(m * n, |stored| {
        stored_product(None, Output::new(stored, n));
        for (y, stored) in y.chunks_exact_mut(n).zip(stored.chunks_exact(n)) {
            for (j, (y, &slot)) in y.iter_mut().zip(slots).enumerate() {
                *y = stored[slot as usize] + bias.map_or(0.0, |bias| bias[j]);
            }
        }
    });
}
