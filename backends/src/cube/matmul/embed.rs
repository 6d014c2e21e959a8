//! Rows of a table.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cube::launch::{Buffer, UNITS, grid_of_units};
use crate::cube::matmul::weight::{Packed, Weight, eight, row_factor, shared_code_book, stored_row, unit_factor};

/// Row `ids[i]` of the weight at row `i` of `y`. Where there is no such row, NaN.
///
/// # Shapes
/// `ids [m]` I32, `weight [n, k]`, `y [m, k]`
///
/// # Panics
/// If a buffer does not have its shape, or ids do not have 32 bits.
pub fn embed<R: Runtime>(client: &ComputeClient<R>, ids: &Buffer, weight: &Weight, y: &Buffer) {
    weight.check();
    let (m, n, k) = (ids.len, weight.n, weight.k);
    ids.check_words("ids");
    y.check("y", &[m, k]);
    if y.len == 0 {
        return;
    }
    assert!(n > 0, "a table without rows");
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        embed_kernel::launch_unchecked::<R>(
            client,
            grid_of_units(m * k.div_ceil(8)),
            CubeDim::new_1d(UNITS),
            weight.vector(),
            ids.arg(),
            weight.arg(),
            y.arg(),
            m as u32,
            y.dtype,
        );
    }
}

#[cube(launch_unchecked)]
fn embed_kernel<F: Float, W: Size>(
    ids: &Array<i32>,
    weight: &Packed<W>,
    y: &mut Array<F>,
    m: u32,
    #[define(F)] _y_type: StorageType,
) {
    let (n, k) = (weight.n, weight.k);
    let book = shared_code_book(weight);
    let units = k.div_ceil(8);
    let i = ABSOLUTE_POS as u32 / units;
    let unit = ABSOLUTE_POS as u32 % units;
    if i < m {
        // Below 0 is beyond, too.
        let id = u32::reinterpret(ids[i as usize]);
        let row = stored_row(weight, min(id, n - 1));
        let values = eight(weight, &book, row, unit, k);
        // 1 or NaN. CUDA has no reinterpretation of a constant.
        let known = f32::reinterpret(select(id < n, 0x3f80_0000u32, 0x7fc0_0000u32));
        let factor = unit_factor(weight, row, unit, k) * row_factor(weight, row) * known;
        let at = i * k + unit * 8;
        #[unroll]
        for j in 0..4u32 {
            if unit * 8 + j < k {
                y[(at + j) as usize] = F::cast_from(values.low[j as usize] * factor);
            }
            if unit * 8 + j + 4 < k {
                y[(at + j + 4) as usize] = F::cast_from(values.high[j as usize] * factor);
            }
        }
    }
}
