//! What the kernels of linear layers share: their arguments, and how they read `x`.

use cubecl::prelude::*;

use crate::cube::launch::Buffer;
use crate::cube::matmul::weight::{Eight, Four, Weight, eight_of_values};

/// What a linear layer does beside the product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linear<'a> {
    /// `[n]`, added.
    pub bias: Option<&'a Buffer>,
    /// `[m]` U32: rows that are 0 here give 0; where no row of a call is active no weight is read.
    pub active: Option<&'a Buffer>,
}

/// One product: `y = x Wᵀ`.
pub(super) struct Product<'a> {
    /// `[m, k]`
    pub x: &'a Buffer,
    pub m: usize,
    /// `[n, k]`
    pub weight: &'a Weight,
    /// `[m, n]`: the result is multiplied by its silu.
    pub gate: Option<&'a Buffer>,
    /// `[m, n]`
    pub y: &'a Buffer,
    /// `[n]`, added.
    pub bias: Option<&'a Buffer>,
    /// Only these rows of `x` and `y`: how many, then which.
    pub rows: Option<&'a Buffer>,
}

/// How many rows there are: all, or those of the list, which begins with its length.
#[cube]
pub(super) fn count_of(rows: &Array<u32>, m: u32, #[comptime] is_list: bool) -> u32 {
    if comptime!(is_list) { rows[0] } else { m }
}

/// The row at place `listed` of the list, or of all.
#[cube]
pub(super) fn row_of(rows: &Array<u32>, listed: u32, #[comptime] is_list: bool) -> u32 {
    if comptime!(is_list) { rows[(listed + 1) as usize] } else { listed }
}

/// Unit `unit` of row `row` of `x`; elements past the row are 0.
#[cube]
pub(super) fn eight_of_x<F: Float, V: Size>(
    x: &Array<Vector<F, V>>,
    row: u32,
    unit: u32,
    k: u32,
    #[comptime] aligned: bool,
) -> Eight {
    if comptime!(aligned) {
        let at = (row * (k / 8) + unit) * 2;
        Eight { low: Four::cast_from(x[at as usize]), high: Four::cast_from(x[(at + 1) as usize]) }
    } else {
        let mut values = Array::<f32>::new(8usize);
        for i in 0..8u32 {
            values[i as usize] = 0.0;
            if unit * 8 + i < k {
                values[i as usize] = f32::cast_from(x[(row * k + unit * 8 + i) as usize]);
            }
        }
        eight_of_values(&values)
    }
}
