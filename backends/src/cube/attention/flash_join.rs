//! Joining the results of flash attention whose keys were split over several cubes.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::flash_kernel::MASKED;
use crate::cube::launch::UNITS;
use crate::cube::spans::{of_span, span_at};

/// What differs between the sequences of a launch.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Joined {
    /// The first row of each in the launch.
    pub(super) rows: Sequence<u32>,
    /// The first row of each in the result.
    pub(super) targets: Sequence<u32>,
    /// The first part of each.
    pub(super) parts: Sequence<u32>,
    /// Parts of a row.
    pub(super) splits: Sequence<u32>,
}

/// Joins the parts of a row: `sum_i e^(m_i - m) s_i / sum_i e^(m_i - m) l_i`. A cube takes a row.
#[cube(launch_unchecked)]
pub(super) fn join_kernel<O: Float>(
    parts: &Array<f32>,
    out: &mut Array<O>,
    spans: &Joined,
    rows: u32,
    value_dim: u32,
    #[define(O)] _out_type: StorageType,
) {
    let row = CUBE_POS as u32;
    if row >= rows {
        terminate!();
    }
    let span = span_at(&spans.rows, row);
    let own = row - of_span(&spans.rows, span);
    let splits = of_span(&spans.splits, span);
    let stride = value_dim + 2;
    let start = (of_span(&spans.parts, span) + own * splits) * stride;
    let target = (of_span(&spans.targets, span) + own) * value_dim;
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
        out[(target + d) as usize] = O::cast_from(result);
        d += UNITS;
    }
}
