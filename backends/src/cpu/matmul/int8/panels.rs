//! x packed in panels of tokens, and the scales of tiles of the matrix: what the tiles of AVX2 and NEON share.

use super::BLOCK;
use super::gemv::WeightScales;
use crate::cpu::matmul::packed::block_scales;
use crate::cpu::pool::for_each_chunk;

/// All tokens of x, in panels of a few.
pub(crate) struct Panels<P>(pub(super) Vec<P>);

impl<P: Default + Send> Panels<P> {
    /// Of the `m` rows of x, up to `width` to a panel, each filled from its rows of `k`.
    pub(super) fn new(x: &[f32], (m, k): (usize, usize), width: usize, fill: impl Fn(&mut P, &[f32]) + Sync) -> Self {
        let mut panels: Vec<P> = Vec::new();
        panels.resize_with(m.div_ceil(width), P::default);
        for_each_chunk(&mut panels, 1, width * k, |p, panel| {
            fill(&mut panel[0], &x[p * width * k..m.min((p + 1) * width) * k]);
        });
        Self(panels)
    }
}

impl WeightScales<'_> {
    /// Those of the blocks of a row of `k` elements from block `from` on.
    #[inline(always)]
    pub(super) fn of_row(&self, k: usize, row: usize, from: usize, scales: &mut [f32]) {
        match self {
            WeightScales::PerRow(stored) => scales.fill(stored[row]),
            WeightScales::Int8(w) => w.scales(k, row, from, scales),
            WeightScales::CodeBook(w, _) => block_scales(w, row * k + from * BLOCK, scales),
        }
    }

    /// What sums over rows are multiplied by in the end.
    #[inline(always)]
    pub(super) fn factor(&self) -> f32 {
        match self {
            WeightScales::CodeBook(_, factor) => *factor,
            _ => 1.0,
        }
    }
}
