//! Products in which x is rounded to 8 bits.
//!
//! Every 64 elements of x become signed bytes and a step, and outliers a second byte (`round`). For VNNI weights become unsigned
//! bytes, 128 (or the offset of the storage) too large, because the instruction multiplies unsigned by signed; the sum of the integers
//! of x, known before the first weight is read, takes that back. In `octets` and `tiles` they are as large, as 16-bit integers. In `blocks`,
//! `one_row` and `neon` they are signed. Codes of integers stay codes in `blocks`, `octets` and `tiles`. Sums under one step are exact integers; they are
//! added in f32.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod blocks;
mod book;
mod columns;
#[cfg(target_arch = "aarch64")]
mod dot;
#[cfg(target_arch = "x86_64")]
mod gemm;
mod gemv;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod next;
#[cfg(target_arch = "x86_64")]
mod octets;
mod one_row;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(target_arch = "x86_64")]
mod panel;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod panels;
mod round;
#[cfg(target_arch = "x86_64")]
mod row_scales;
#[cfg(target_arch = "x86_64")]
mod rows;
#[cfg(target_arch = "x86_64")]
mod strip_scales;
#[cfg(target_arch = "x86_64")]
mod strips;
#[cfg(target_arch = "x86_64")]
mod tiles;

use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::types::{InputRows, Product};
use crate::cpu::pool::Output;
use crate::cpu::pool::Region;
use crate::cpu::simd::bytes;
use crate::cpu::{Level, Matrix, Weight};

/// What unsigned bytes of weights exceed them by.
const OFFSET: i32 = 128;

/// The kernels of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// AVX-512 with VNNI and VBMI.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Vnni,
    /// AVX2 with VNNI or without, or NEON with the dot product.
    Blocks,
}

/// What products can use at `level` on this machine, for any number of rows of x.
pub(crate) fn kernels(level: Level) -> Option<Kernels> {
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512 && is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vbmi") {
        return Some(Kernels::Vnni);
    }
    bytes::available(level).then_some(Kernels::Blocks)
}

/// Whether this matrix can take part.
pub(crate) fn fits(w: &Weight) -> bool {
    w.k.is_multiple_of(BLOCK)
        && match &w.data {
            Matrix::CodeBook4(w) => w.block.is_multiple_of(BLOCK) && w.code_book.iter().all(|value| value.is_finite()),
            Matrix::Int8(_) | Matrix::IntegerRows(_) => true,
            _ => false,
        }
}

pub(crate) use round::{BLOCK, Input};

impl Kernels {
    /// How many of `m` rows of x [`add_gemv`] takes in one pass over a matrix.
    pub(crate) fn columns(self, m: usize) -> usize {
        match self {
            Kernels::Vnni => m.min(GEMV_MAX_ROWS),
            Kernels::Blocks => m,
        }
    }
}

/// The crossover of GEMV and GEMM on [`Kernels::Vnni`]: the most rows of x in one pass of [`add_gemv`]; with more [`gemm`] is faster.
pub(crate) const GEMV_MAX_ROWS: usize = 32;

/// x as the kernels of a region want it.
#[derive(Default)]
pub(crate) struct Rounded {
    blocks: Memo<gemv::Packing, columns::Columns>,
    #[cfg(target_arch = "x86_64")]
    row: Memo<gemv::Packing, rows::Row>,
    #[cfg(target_arch = "x86_64")]
    tokens: Memo<gemv::Packing, strips::Tokens>,
    #[cfg(target_arch = "x86_64")]
    pairs: Memo<gemv::Packing, panels::Panels<pairs::Panel>>,
    #[cfg(target_arch = "aarch64")]
    chunks: Memo<neon::Packing, panels::Panels<neon::Panel>>,
}

/// Adds a product with at most [`Kernels::columns`] rows of x, of a matrix that fits. Rows go where they are stored.
pub(crate) fn add_gemv<'a>(
    kernels: Kernels,
    rows: &InputRows<'a>,
    rounded: &Rounded,
    w: Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    match kernels {
        #[cfg(target_arch = "x86_64")]
        Kernels::Vnni if rows.m == 1 => rows::add_gemv(rows, &rounded.row, w, bias, y, region),
        #[cfg(target_arch = "x86_64")]
        Kernels::Vnni => strips::add(rows, &rounded.tokens, w, bias, y, region),
        #[cfg(target_arch = "x86_64")]
        Kernels::Blocks if rows.m > avx2::blocks_max_rows(&w, rows.level) => {
            avx2::add(rows, &rounded.pairs, w, bias, y, region);
        }
        #[cfg(target_arch = "aarch64")]
        Kernels::Blocks if rows.m > blocks::MAX_COLUMNS => {
            neon::add(neon::Instruction::best(), rows, &rounded.chunks, w, bias, y, region);
        }
        _ => blocks::add_gemv(rows, &rounded.blocks, w, bias, y, region),
    }
}

/// Products with more than [`GEMV_MAX_ROWS`] rows of x, of matrices that fit, for [`Kernels::Vnni`].
#[cfg(target_arch = "x86_64")]
pub(crate) fn gemm(x: &[f32], m: usize, input: Input, products: &mut [&mut Product]) {
    gemm::gemm(x, m, input, products);
}

/// The other processors have no [`Kernels::Vnni`].
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn gemm(_: &[f32], _: usize, _: Input, _: &mut [&mut Product]) {
    unreachable!("no kernels for VNNI")
}
