//! Linear layers for every storage: which kernel computes a product, and the products in f32 with a few rows of x.

use crate::check::check_len;
use crate::cpu::matmul::bf16;
use crate::cpu::matmul::dense::{self, DenseRows, DenseScales, Element};
use crate::cpu::matmul::dequantize::{Decode, NARROW2, NARROW4};
use crate::cpu::matmul::gemm::gemm;
use crate::cpu::matmul::int8;
use crate::cpu::matmul::packed::{MAX_COLUMNS, Order, PackedRows, PackedScales};
use crate::cpu::matmul::types::{InputRows, Product};
use crate::cpu::matmul::weight::{self, CodeBook4, Matrix};
use crate::cpu::pool::{Output, Region, with_scratch};
use crate::cpu::simd::launch;
use crate::cpu::{Level, Precision, Weight, level, precision};

/// `y = x Wᵀ + b`, in the arithmetic of [`precision`].
///
/// # Shapes
/// `x [m, k]`, `w [n, k]`, `bias [n]`, `y [m, n]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn linear(x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>, y: &mut [f32]) {
    linears(x, m, &mut [Product { weight: *w, bias, y }]);
}

/// [`linear`] of a head, whose results are compared with each other: rounded, x keeps 15 bits.
///
/// # Panics
/// If a slice does not have its shape.
pub fn head(x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>, y: &mut [f32]) {
    let products = &mut [Product { weight: *w, bias, y }];
    check(x, m, products);
    compute(x, m, int8::Input::Head, products);
}

/// Several [`linear`]s of the same x: it is prepared once, and the threads are called once.
///
/// # Panics
/// If a slice does not have its shape.
pub fn linears(x: &[f32], m: usize, products: &mut [Product]) {
    check(x, m, products);
    compute(x, m, int8::Input::Usual, products);
}

fn check(x: &[f32], m: usize, products: &[Product]) {
    for Product { weight: w, bias, y } in products {
        w.check();
        check_len("x", x.len(), &[m, w.k]);
        check_len("y", y.len(), &[m, w.n]);
        if let Some(bias) = bias {
            check_len("bias", bias.len(), &[w.n]);
        }
    }
}

/// The crossover of GEMV and GEMM in f32: up to so many rows of x, passes of [`MAX_COLUMNS`] are faster than tiles, whose vectors
/// would be mostly empty.
const GEMV_MAX_ROWS: usize = 2 * MAX_COLUMNS;

/// [`linears`] on lengths that were checked, of such an x.
pub(crate) fn compute(x: &[f32], m: usize, input: int8::Input, products: &mut [Product]) {
    let Some(k) = products.first().map(|product| product.weight.k).filter(|_| m > 0) else {
        return;
    };
    if k == 0 {
        for Product { weight, bias, y } in products {
            let rows = y.chunks_exact_mut(weight.n.max(1));
            rows.for_each(|y| y.iter_mut().enumerate().for_each(|(j, y)| *y = bias.map_or(0.0, |bias| bias[j])));
        }
        return;
    }
    let (level, precision) = (level(), precision());
    let products = products.iter_mut().filter(|product| product.weight.n > 0);
    let (halves, others): (Vec<_>, Vec<_>) =
        products.partition(|product| bf16::rounds(precision, level, &product.weight));
    if !halves.is_empty() && level.multiplies_bf16() {
        bf16::products(x, m, k, halves);
    } else if !halves.is_empty() {
        by_rows((&bf16::rounded(x, k), m, k), level, input, None, halves);
    }
    let kernels = match precision {
        Precision::Exact | Precision::Bf16Activations => None,
        Precision::Int8Activations | Precision::Auto => int8::kernels(level),
    };
    by_rows((x, m, k), level, input, kernels, others);
}

/// Products in f32, or in 8 bits by these kernels where the matrix fits them.
fn by_rows(
    (x, m, k): (&[f32], usize, usize),
    level: Level,
    input: int8::Input,
    kernels: Option<int8::Kernels>,
    products: Vec<&mut Product>,
) {
    let (mut by_gemv, mut by_gemm) = (Vec::new(), Vec::new());
    for product in products {
        let rounded = kernels.filter(|_| int8::fits(&product.weight));
        if rounded == Some(int8::Kernels::Vnni) && m > int8::GEMV_MAX_ROWS {
            by_gemm.push(product);
            continue;
        }
        if rounded.is_none() && m > GEMV_MAX_ROWS {
            gemm(level, x, m, &product.weight, product.bias, Output::new(product.y, product.weight.n));
        } else {
            by_gemv.push((product, rounded));
        }
    }
    if !by_gemm.is_empty() {
        int8::gemm(x, m, input, &mut by_gemm);
    }
    let columns = |rounded: Option<int8::Kernels>| rounded.map_or(m.min(MAX_COLUMNS), |kernels| kernels.columns(m));
    while let Some(&(_, rounded)) = by_gemv.first() {
        let columns_of_first = columns(rounded);
        let (mut these, rest): (Vec<_>, Vec<_>) =
            by_gemv.into_iter().partition(|(_, rounded)| columns(*rounded) == columns_of_first);
        passes((x, m, k), level, input, columns_of_first, &mut these);
        by_gemv = rest;
    }
}

/// Products with rows of k, so many at a time, each pass in one region.
fn passes(
    (x, m, k): (&[f32], usize, usize),
    level: Level,
    input: int8::Input,
    columns: usize,
    products: &mut [(&mut Product, Option<int8::Kernels>)],
) {
    for first in (0..m).step_by(columns) {
        let count = columns.min(m - first);
        let rounded_x = int8::Rounded::default();
        let x = InputRows::new(&x[first * k..(first + count) * k], count, k, level, input);
        // Rows that are not stored in order are computed as they are, then put where they belong.
        let mut stored: Vec<Vec<f32>> = products
            .iter()
            .map(|(product, _)| vec![0.0; if slots(&product.weight).is_some() { count * product.weight.n } else { 0 }])
            .collect();
        let mut region = Region::default();
        for ((product, rounded), stored) in products.iter_mut().zip(&mut stored) {
            let (w, n) = (product.weight, product.weight.n);
            let (bias, y) = match slots(&w) {
                Some(_) => (None, &mut stored[..]),
                None => (product.bias, &mut product.y[first * n..(first + count) * n]),
            };
            let y = Output::new(y, n);
            match *rounded {
                Some(kernels) => int8::add_gemv(kernels, &x, &rounded_x, w, bias, y, &mut region),
                None => add(&x, w, bias, y, &mut region),
            }
        }
        region.run();
        for ((product, _), stored) in products.iter_mut().zip(&stored) {
            let n = product.weight.n;
            let Some(slots) = slots(&product.weight) else { continue };
            for (y, stored) in product.y[first * n..].chunks_exact_mut(n).zip(stored.chunks_exact(n)) {
                for (j, (y, &slot)) in y.iter_mut().zip(slots).enumerate() {
                    *y = stored[slot as usize] + product.bias.map_or(0.0, |bias| bias[j]);
                }
            }
        }
    }
}

/// One of [`compute`].
pub(crate) fn product(x: &[f32], m: usize, weight: &Weight, bias: Option<&[f32]>, y: &mut [f32]) {
    compute(x, m, int8::Input::Usual, &mut [Product { weight: *weight, bias, y }]);
}

/// The stored row of each output, when they are not in order.
fn slots<'a>(w: &Weight<'a>) -> Option<&'a [u32]> {
    match w.data {
        Matrix::IntegerRows(rows) => rows.slots,
        _ => None,
    }
}

/// Adds a product with at most [`MAX_COLUMNS`] rows of x, in f32. Rows go where they are stored.
fn add<'a>(x: &InputRows<'a>, w: Weight<'a>, bias: Option<&'a [f32]>, y: Output<'a>, region: &mut Region<'a>) {
    match w.data {
        Matrix::F32(data) => dense_product(x, data, DenseScales::None, w.n, bias, y, region),
        Matrix::F16(data) => dense_product(x, dense::f16(data), DenseScales::None, w.n, bias, y, region),
        Matrix::Bf16(data) => dense_product(x, dense::bf16(data), DenseScales::None, w.n, bias, y, region),
        Matrix::CodeBook4(data) if w.k.is_multiple_of(64) && data.block.is_multiple_of(64) => {
            code_book_product(x, data, w.n, bias, y, region);
        }
        Matrix::CodeBook4(data) => decoded_product(x, w, data.codes, bias, y, region),
        Matrix::Int8(data) => {
            dense_product(x, dense::i8(data.codes), DenseScales::PerBlock(data), w.n, bias, y, region);
        }
        Matrix::IntegerRows(data) => rows_product(x, data, w.n, bias, y, region),
    }
}

fn dense_product<'a, E: Element>(
    rows: &InputRows<'a>,
    w: &'a [E],
    scales: DenseScales<'a>,
    n: usize,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    let &InputRows { x, m, k, level, .. } = rows;
    region.add(w.as_ptr().cast(), (n, k * E::SIZE), m * k, move |first, last| {
        launch(level, DenseRows { w, k, scales, x, m, first, last, bias, y });
    });
}

fn code_book_product<'a>(
    rows: &InputRows<'a>,
    w: CodeBook4<'a>,
    n: usize,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    let &InputRows { m, k, level, .. } = rows;
    let x = rows.permuted(4, Order::HighFirst);
    let stride = k / 2;
    region.add(w.codes.as_ptr(), (n, stride), m * k, move |first, last| {
        let scales = PackedScales::PerBlock(&w, k);
        let (codes, book) = (w.codes, w.code_book);
        let (x, row_bytes, bits, column) = (&*x, stride, 4, 0);
        launch(level, PackedRows { codes, stride, row_bytes, bits, book, scales, x, m, first, last, column, bias, y });
    });
}

/// Any code book matrix: rows are decoded into the cache a few at a time.
fn decoded_product<'a>(
    rows: &InputRows<'a>,
    w: Weight<'a>,
    codes: &'a [u8],
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    const ROWS: usize = 4;
    let &InputRows { x, m, level, .. } = rows;
    region.add(codes.as_ptr(), (w.n, w.k.div_ceil(2)), m * w.k, move |first, last| {
        with_scratch(ROWS * w.k, |rows| {
            for first in (first..last).step_by(ROWS) {
                let count = ROWS.min(last - first);
                for (i, out) in rows.chunks_exact_mut(w.k).enumerate().take(count) {
                    launch(level, Decode { w: &w, row: first + i, first: 0, out });
                }
                let bias = bias.map(|bias| &bias[first..]);
                let y = y.columns_from(first);
                launch(
                    level,
                    DenseRows { w: &*rows, k: w.k, scales: DenseScales::None, x, m, first: 0, last: count, bias, y },
                );
            }
        });
    });
}

fn rows_product<'a>(
    rows: &InputRows<'a>,
    w: weight::IntegerRows<'a>,
    n: usize,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    let &InputRows { m, k, level, .. } = rows;
    let wide = w.wide_rows;
    if wide > 0 {
        dense_product(rows, dense::i8(w.wide), DenseScales::PerRow(w.scales), wide, bias, y, region);
    }
    if wide < n {
        let bits = w.narrow_bits as usize;
        let book = if bits == 2 { &NARROW2 } else { &NARROW4 };
        let x = rows.permuted(bits, Order::LowFirst);
        let (stride, row_bytes) = (w.narrow_stride, (k * bits).div_ceil(8));
        region.add(w.narrow.as_ptr(), (n - wide, row_bytes), m * k, move |first, last| {
            let scales = PackedScales::PerRow(&w.scales[wide..]);
            let (x, codes, column) = (&*x, w.narrow, wide);
            launch(
                level,
                PackedRows { codes, stride, row_bytes, bits, book, scales, x, m, first, last, column, bias, y },
            );
        });
    }
}
