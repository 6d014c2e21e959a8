//! Attention of prompts: many queries of one kv head against a range of positions.
//!
//! The lanes of a vector are queries. So no sum runs over lanes and keys need no transposing: with the queries of a panel as columns,
//! scores are `K Qᵀ`, softmax takes a vector of queries at a time, and the weighted sums are `Vᵀ Pᵀ`. A tile of keys and values becomes
//! floats once for all panels of a task, and what a panel needs meanwhile stays in the L1 cache.

use crate::cpu::attention::ahead::Ahead;
use crate::cpu::attention::hidden::TokenRows;
use crate::cpu::attention::products::floats;
use crate::cpu::attention::q8::Q8Rows;
use crate::cpu::attention::source::{FlashAttention, Source};
use crate::cpu::attention::tile::{FlashTask, tile_codes};
use crate::cpu::cache::CacheSlice;
use crate::cpu::matmul::dense;
use crate::cpu::matmul::gemm::{VECTORS, tile};
use crate::cpu::pool::Output;
use crate::cpu::simd::{Kernel, Simd, math};
use crate::types::KV_TILE as TILE;

/// Queries of a task: the more, the less it takes to make floats of a tile. Beside heads of 128 their panels and sums are 256 kB, which
/// the L2 cache holds.
pub(super) const ROWS: usize = 256;
/// Queries of a kv head from which they are lanes; fewer would leave too many of them empty.
pub(super) const MIN_ROWS: usize = 12;
/// The most queries of a panel.
const MAX_PANEL: usize = VECTORS * 16;

/// Floats of the panels of `rows` queries, of their weighted sums, of their running state, of the scores of a panel, and of a tile of keys
/// and one of values.
pub(super) fn scratch_lens(a: &FlashAttention, rows: usize) -> [usize; 6] {
    let (rows, wk, wv) = (rows.next_multiple_of(MAX_PANEL), a.keys.width(&a.p), a.values.width(&a.p));
    [rows * wk, rows * wv, rows * STATE, MAX_PANEL * TILE, TILE * wk, TILE * wv]
}

/// Vectors of running state of each vector of queries: the highest score so far, the sum of the weights, and what is added to every
/// score.
const STATE: usize = 3;

/// A task of one kv head.
pub(super) struct PromptTask<'a> {
    /// [`scratch_lens`] floats are its scratch.
    pub(super) task: FlashTask<'a>,
    /// Where its results go, `[b * s, heads * head_dim]`, where it has all positions: not to the partial results.
    pub(super) out: Option<Output<'a>>,
}

impl Kernel for PromptTask<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: `S` is enabled.
        unsafe { self.run::<S>() }
    }
}

impl PromptTask<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let FlashTask { a, b, head, first, rows, ref positions, row, values: partial, state, .. } = self.task;
        let (p, group) = (&a.p, a.group());
        let (wk, wv, width) = (a.keys.width(p), a.values.width(p), VECTORS * S::LANES);
        let [queries, sums, running, scores, keys, _] = scratch_lens(a, rows);
        let (queries, rest) = self.task.scratch.split_at_mut(queries);
        let (sums, rest) = rest.split_at_mut(sums);
        let (running, rest) = rest.split_at_mut(running);
        let (scores, rest) = rest.split_at_mut(scores);
        let (keys, values) = rest.split_at_mut(keys);
        let panels = rows.div_ceil(width);
        // Queries of a panel, and one past the last position of one of them.
        let of_panel = |panel: usize| panel * width..rows.min((panel + 1) * width);
        let end = |row: usize| p.past + (first + row) / group + 1;
        queries.fill(0.0);
        sums[..panels * width * wv].fill(0.0);
        for panel in 0..panels {
            let running = &mut running[panel * width * STATE..(panel + 1) * width * STATE];
            let (highest, rest) = running.split_at_mut(width);
            let (sum, bias) = rest.split_at_mut(width);
            // So low that the first score leaves nothing of it, and finite, so that what no position was seen for stays 0.
            highest.fill(f32::MIN);
            sum.fill(0.0);
            bias.fill(0.0);
            for (lane, row) in of_panel(panel).enumerate() {
                let query = a.q.row(a, b, head, first + row);
                for (to, q) in queries[panel * width * wk + lane..].iter_mut().step_by(width).zip(query) {
                    *to = q * a.q.scale(p);
                }
                if let Some(biases) = a.bias {
                    bias[lane] = biases[(b * p.kv_heads + head) * a.rows + first + row];
                }
            }
        }
        let stop = positions.end.min(end(rows - 1));
        // SAFETY: `S` is enabled; the scratch has the sizes of `scratch_lens`, and a tile holds `count` rows.
        unsafe {
            for at in (positions.start..stop).step_by(TILE) {
                let count = TILE.min(stop - at);
                load::<S>(&a.keys, a, [b, head, at, count], keys);
                load::<S>(&a.values, a, [b, head, at, count], values);
                for panel in 0..panels {
                    let lanes = of_panel(panel);
                    let ends = [end(lanes.start), end(lanes.end - 1)].map(|end| end.saturating_sub(at).min(count));
                    let panel = Panel {
                        queries: queries[panel * width * wk..(panel + 1) * width * wk].as_ptr(),
                        sums: sums[panel * width * wv..(panel + 1) * width * wv].as_mut_ptr(),
                        running: running[panel * width * STATE..(panel + 1) * width * STATE].as_mut_ptr(),
                        scores: scores.as_mut_ptr(),
                        keys: keys.as_ptr(),
                        values: values.as_ptr(),
                        widths: [wk, wv],
                    };
                    let valid = |lane: usize| end(lanes.start + lane).saturating_sub(at);
                    if lanes.len() <= S::LANES {
                        panel.tile::<S, 1>(ends, lanes.len(), valid);
                    } else {
                        panel.tile::<S, VECTORS>(ends, lanes.len(), valid);
                    }
                }
            }
        }
        for panel in 0..panels {
            let running = &running[panel * width * STATE..(panel + 1) * width * STATE];
            for (lane, own) in of_panel(panel).enumerate() {
                let sums = sums[panel * width * wv + lane..].iter().step_by(width);
                let (highest, sum) = (running[lane], running[width + lane]);
                // SAFETY: each query has a row of its own in the results, which no other task has.
                unsafe {
                    if let Some(out) = &self.out {
                        let token = b * p.seq + (first + own) / group;
                        let to = out.row(token, (head * group + (first + own) % group) * wv, wv);
                        let factor = 1.0 / sum;
                        to.iter_mut().zip(sums).for_each(|(to, value)| *to = value * factor);
                    } else {
                        let to = partial.row(row + own, 0, wv);
                        to.iter_mut().zip(sums).for_each(|(to, value)| *to = *value);
                        state.row(row + own, 0, 2).copy_from_slice(&[highest, sum]);
                    }
                }
            }
        }
    }
}

/// A panel of queries beside a tile of keys and values.
struct Panel {
    /// `[width of a key, queries]`.
    queries: *const f32,
    /// `[width of a value, queries]`.
    sums: *mut f32,
    /// `[STATE, queries]`.
    running: *mut f32,
    /// `[TILE, queries]`.
    scores: *mut f32,
    /// `[count, width of a key]`.
    keys: *const f32,
    /// `[count, width of a value]`.
    values: *const f32,
    /// Of a key and of a value.
    widths: [usize; 2],
}

impl Panel {
    /// Takes up to `seen[1]` positions of the tile into account, of which every query sees `seen[0]` and query `lane` `valid(lane)`.
    ///
    /// # Safety
    /// `S` is enabled, the pointers are valid for their shapes, and `V` vectors hold the `lanes` queries.
    #[inline(always)]
    unsafe fn tile<S: Simd, const V: usize>(&self, seen: [usize; 2], lanes: usize, valid: impl Fn(usize) -> usize) {
        let ([all, count], [wk, wv], width) = (seen, self.widths, VECTORS * S::LANES);
        if count == 0 {
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            product::<S, V>((count, wk), self.keys, [wk, 1], self.queries, self.scores, true);
            if all < count {
                for lane in 0..lanes {
                    for i in valid(lane).min(count)..count {
                        *self.scores.add(i * width + lane) = f32::NEG_INFINITY;
                    }
                }
            }
            self.softmax::<S, V>(count);
            product::<S, V>((wv, count), self.values, [1, wv], self.scores, self.sums, false);
        }
    }

    /// Turns `count` scores of each query into weights relative to the highest so far, and rescales what was summed before.
    ///
    /// # Safety
    /// As for `tile`.
    #[inline(always)]
    unsafe fn softmax<S: Simd, const V: usize>(&self, count: usize) {
        let (wv, width) = (self.widths[1], VECTORS * S::LANES);
        // SAFETY: the caller's promise; vector `v` is one of the panel's `VECTORS`.
        unsafe {
            let mut changed = false;
            let mut factors = [S::splat(1.0); V];
            for v in 0..V {
                let scores = self.scores.add(v * S::LANES);
                let state = self.running.add(v * S::LANES);
                let (bias, before) = (S::load(state.add(2 * width)), S::load(state));
                // Two maxima, so that one does not wait for the other.
                let mut highest = [S::splat(f32::NEG_INFINITY); 2];
                for i in 0..count {
                    highest[i % 2] = S::max(S::load(scores.add(i * width)), highest[i % 2]);
                }
                let new = S::max(S::add(S::max(highest[0], highest[1]), bias), before);
                let offset = S::sub(bias, new);
                let mut sum = S::splat(0.0);
                for i in 0..count {
                    let at = scores.add(i * width);
                    let weight = math::exp::<S>(S::add(S::load(at), offset));
                    S::store(at, weight);
                    sum = S::add(sum, weight);
                }
                factors[v] = math::exp::<S>(S::sub(before, new));
                S::store(state, new);
                let total = state.add(width);
                S::store(total, S::fma(S::load(total), factors[v], sum));
                let mut lanes = [1.0f32; 16];
                S::store(lanes.as_mut_ptr(), factors[v]);
                changed |= lanes != [1.0; 16];
            }
            // Mostly nothing changes.
            if changed {
                for d in 0..wv {
                    for v in 0..V {
                        let at = self.sums.add(d * width + v * S::LANES);
                        S::store(at, S::mul(S::load(at), factors[v]));
                    }
                }
            }
        }
    }
}

/// `c[rows, queries] (+)= w[rows, depth] x[depth, queries]` for `V` vectors of queries; element `(r, i)` of w is at `r * steps[0] + i * steps[1]`.
///
/// # Safety
/// `S` is enabled, and the pointers are valid for these shapes, x and c with rows of a panel.
#[inline(always)]
unsafe fn product<S: Simd, const V: usize>(
    (rows, depth): (usize, usize),
    w: *const f32,
    steps: [usize; 2],
    x: *const f32,
    c: *mut f32,
    overwrite: bool,
) {
    let width = VECTORS * S::LANES;
    let mut row = 0;
    while row < rows {
        // SAFETY: the caller's promise; each step stays inside the rows.
        unsafe {
            let (w, c) = (w.add(row * steps[0]), c.add(row * width));
            row += match rows - row {
                8.. if S::REGISTERS >= 32 => {
                    tile::<S, 8, V>(depth, w, steps[0], steps[1], x, width, c, width, overwrite);
                    8
                }
                4.. => {
                    tile::<S, 4, V>(depth, w, steps[0], steps[1], x, width, c, width, overwrite);
                    4
                }
                _ => {
                    tile::<S, 1, V>(depth, w, steps[0], steps[1], x, width, c, width, overwrite);
                    1
                }
            }
        }
    }
}

/// Keys or values of `count` positions from `at` on as floats.
///
/// # Safety
/// `S` is enabled.
#[inline(always)]
unsafe fn load<S: Simd>(source: &Source, a: &FlashAttention, [b, head, at, count]: [usize; 4], to: &mut [f32]) {
    let width = source.width(&a.p);
    let to = &mut to[..count * width];
    // SAFETY: `S` is enabled; everything is taken by checked slices.
    unsafe {
        match source {
            Source::Heads(parts) | Source::Tokens { parts, .. } => {
                let part = parts.at(at);
                let group = if matches!(source, Source::Heads(_)) { b * a.p.kv_heads + head } else { b };
                let from = part.row(group, at) * width;
                match part.data {
                    CacheSlice::F32(data) => to.copy_from_slice(&data[from..from + count * width]),
                    CacheSlice::F16(data) => floats::<S, _>(&dense::f16(data)[from..from + count * width], to),
                    CacheSlice::Q8 { codes, scales } => {
                        Q8Rows::new(codes, scales, width, from / width, count).floats::<S>(to);
                    }
                }
            }
            Source::Codes { parts, layer } => {
                let codes = tile_codes(parts, layer, b, at, count);
                S::apart(TokenRows { layer, codes, u: to, strip: layer.h, ahead: Ahead::nothing() });
            }
        }
    }
}
