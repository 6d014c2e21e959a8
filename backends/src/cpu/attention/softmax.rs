//! Softmax of one tile after the other: scores become weights relative to the highest score so far.

use crate::cpu::simd::{Kernel, Simd, math};
use crate::types::KV_TILE as TILE;

/// The scores of a tile.
pub(super) struct TileSoftmax<'a> {
    /// Rows of `TILE`, overwritten with weights, which are 0 from what a row sees on.
    pub(super) scores: &'a mut [f32],
    /// Added to the scores of each row.
    pub(super) bias: Option<&'a [f32]>,
    /// Where the tile begins, and its positions.
    pub(super) at: usize,
    pub(super) count: usize,
    pub(super) ends: Ends,
    /// Of each row the highest score so far, and the sum of its weights.
    pub(super) state: &'a mut [f32],
    /// The weighted sums of the tiles before, `width` of each row.
    pub(super) sums: &'a mut [f32],
    pub(super) width: usize,
}

/// What the rows of a task see: the positions that are not after their token.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    /// Tokens before the first query of a kv head.
    pub(super) past: usize,
    /// The first row of the task among those of its kv head, and how many it has of each.
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Rows of one token.
    pub(super) group: usize,
}

impl Ends {
    /// One past the last position of a row.
    pub(super) fn of(&self, row: usize) -> usize {
        self.past + (self.first + row % self.rows) / self.group + 1
    }
}

impl Kernel for TileSoftmax<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // The first row sees least.
        let all = self.at + self.count <= self.ends.of(0);
        let rows = self.scores.chunks_exact_mut(TILE).zip(self.state.chunks_exact_mut(2)).enumerate();
        for (r, (row, state)) in rows {
            let seen = if all { self.count } else { self.count.min(self.ends.of(r).saturating_sub(self.at)) };
            let bias = self.bias.map_or(0.0, |bias| bias[r]);
            // SAFETY: `S` is enabled.
            let factor = unsafe {
                // Mostly a whole tile, whose loops have an end that the compiler knows.
                match <&mut [f32; TILE]>::try_from(&mut row[..seen]) {
                    Ok(row) => weights::<S>(row, bias, state),
                    Err(_) => {
                        row[seen..].fill(0.0);
                        if seen == 0 { 1.0 } else { weights::<S>(&mut row[..seen], bias, state) }
                    }
                }
            };
            if factor != 1.0 {
                let sums = &mut self.sums[r * self.width..(r + 1) * self.width];
                // SAFETY: `S` is enabled.
                unsafe { math::map::<S, _>(sums, math::Scale(factor)) };
            }
        }
    }
}

/// Turns at least one score into weights relative to the highest so far, and returns the factor for what was summed before.
#[inline(always)]
unsafe fn weights<S: Simd>(scores: &mut [f32], bias: f32, state: &mut [f32]) -> f32 {
    let [highest, sum] = state else { unreachable!("two numbers of each row") };
    // SAFETY: `S` is enabled.
    unsafe {
        let new = highest.max(math::highest::<S>(scores) + bias);
        math::map::<S, _>(scores, math::ExpOffset(bias - new));
        // Before the first score there is nothing to rescale, and mostly nothing changes.
        let factor = if *sum == 0.0 || new == *highest { 1.0 } else { (*highest - new).exp() };
        *sum = *sum * factor + math::total::<S>(scores);
        *highest = new;
        factor
    }
}
