//! More rows of x than [`blocks`](super::blocks) is best for, on AVX2: octets or tiles, whichever is faster beside the rows of a matrix.

use super::blocks::{CODES_MAX_COLUMNS, MAX_COLUMNS, VALUES_MAX_COLUMNS};
use super::gemv::{Packing, for_stored_rows, stay_codes};
use super::octets;
use super::pairs::Panel;
use super::panels::Panels;
use super::tiles;
use crate::cpu::Level;
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::types::InputRows;
use crate::cpu::matmul::weight::{Matrix, Weight};
use crate::cpu::pool::{Output, Region};
use crate::cpu::simd::bytes::avx2::Instruction;

/// The crossover of blocks and octets.
pub(super) fn blocks_max_rows(w: &Weight, level: Level) -> usize {
    match w.data {
        // Octets multiply outliers for less.
        Matrix::Int8(_) if Instruction::of(level).is_vnni() => 1,
        Matrix::Int8(_) => MAX_COLUMNS,
        Matrix::CodeBook4(_) => VALUES_MAX_COLUMNS,
        // Wide rows are bytes, most are codes.
        _ => CODES_MAX_COLUMNS,
    }
}

/// The crossover of octets and tiles: up to so many rows of x octets are faster, at the last about as fast, beside weights with this offset.
fn octets_max_rows(offset: i32) -> usize {
    if stay_codes(offset) { 24 } else { 16 }
}

/// Adds a product with any number of rows of x. Rows go where they are stored.
pub(super) fn add<'a>(
    rows: &InputRows<'a>,
    memo: &Memo<Packing, Panels<Panel>>,
    w: Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    let &InputRows { x, m, k, level, .. } = rows;
    let instruction = Instruction::of(level);
    let pack = |packing: Packing| {
        let pack = if m <= octets_max_rows(packing.offset) { octets::pack } else { tiles::pack };
        // SAFETY: `kernels` has found the features.
        unsafe { pack(x, (m, k), packing, instruction) }
    };
    for_stored_rows(rows, memo, &w, bias, y, pack, |gemv| {
        let octets = m <= octets_max_rows(gemv.w.offset);
        let at_once = if octets { octets::ROWS } else { tiles::STRIP };
        let (data, stride, count) = (gemv.w.data.as_ptr(), gemv.w.stride, gemv.w.rows);
        region.add_tiles(at_once, (data, stride), count, m * k, move |first, last| {
            // SAFETY: `kernels` has found the features, the matrix was checked, and tasks have different rows.
            unsafe { if octets { gemv.octets(first, last, instruction) } else { gemv.tiles(first, last, instruction) } }
        });
    });
}
