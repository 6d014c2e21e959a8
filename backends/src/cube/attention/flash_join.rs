//! Joining the results of flash attention whose keys were split over several cubes.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::flash_kernel::MASKED;
use crate::cube::launch::UNITS;

/// Joins the parts of a row: `sum_i e^(m_i - m) s_i / sum_i e^(m_i - m) l_i`. A cube takes a row.
#[cube(launch_unchecked)]
pub(super) fn join_kernel<O: Float>(
    parts: &Array<f32>,
    out: &mut Array<O>,
    rows: u32,
    splits: u32,
    value_dim: u32,
    #[define(O)] _out_type: StorageType,
) {
    let row = CUBE_POS as u32;
    if row >= rows {
        terminate!();
    }
    let stride = value_dim + 2;
    let start = row * splits * stride;
    let mut highest = f32::new(MASKED);
    for i in 0..splits {
        highest = max(highest, parts[(start + i * stride + value_dim + 1) as usize]);
    }
    let mut d = UNIT_POS;
    while d < value_dim {
        let mut total = 0.0f32;
        let mut sum = 0.0f32;
        for i in 0..splits {
            let part = start + i * stride;
            let factor = f32::exp(parts[(part + value_dim + 1) as usize] - highest);
            total += factor * parts[(part + value_dim) as usize];
            sum += factor * parts[(part + d) as usize];
        }
        let mut result = 0.0f32;
        if total > 0.0 {
            result = sum / total;
        }
        out[(row * value_dim + d) as usize] = O::cast_from(result);
        d += UNITS;
    }
}
