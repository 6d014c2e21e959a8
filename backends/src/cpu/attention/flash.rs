//! Flash attention: online softmax over tiles of the cache.
//!
//! A task is a few queries of one kv head (all query heads that share its keys, a few tokens) against a range of positions.
//! Per tile of positions: scores, the running maximum and sum of each query, then the weighted sum of values. Ranges of a
//! long cache are merged at the end, so that one decoded token keeps every thread busy.

use crate::check::elements;
use crate::cpu::Level;
use crate::cpu::attention::types::Attention;
use crate::cpu::cache::CacheSlice;
use crate::cpu::matmul::dense::{self, Element};
use crate::cpu::matmul::gemm::small;
use crate::cpu::pool::{Output, parallel, threads, with_scratch};
use crate::cpu::simd::{Kernel, Simd, launch, math};

/// Positions per tile.
const TILE: usize = 64;
/// About how many queries share a tile.
const ROWS: usize = 64;
/// Queries from which scores are a GEMM on the transposed tile of keys; fewer are a dot product (GEMV) per key.
const GEMM_MIN_ROWS: usize = 12;

/// Vectors per position: keys or values of each head, or the hidden codes that all heads share.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    data: CacheSlice<'a>,
    /// Elements per position.
    width: usize,
    /// Elements from one row of the batch to the next, and from one kv head to the next.
    batch_step: usize,
    head_step: usize,
}

impl<'a> Source<'a> {
    pub(crate) fn of_heads(data: CacheSlice<'a>, p: &Attention) -> Source<'a> {
        let head_step = p.capacity * p.head_dim;
        Source { data, width: p.head_dim, batch_step: p.kv_heads * head_step, head_step }
    }

    pub(crate) fn of_tokens(data: &'a [f32], width: usize, p: &Attention) -> Source<'a> {
        Source { data: CacheSlice::F32(data), width, batch_step: (p.past + p.seq) * width, head_step: 0 }
    }
}

/// One attention over grouped queries `[b, kv_heads, rows, keys.width]`, already scaled.
pub(crate) struct FlashAttention<'a> {
    pub(crate) q: &'a [f32],
    /// Added to the scores of each query.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) keys: Source<'a>,
    pub(crate) values: Source<'a>,
    pub(crate) p: Attention,
    /// Queries per kv head: tokens times heads of the group.
    pub(crate) rows: usize,
}

/// How one attention is cut into tasks.
struct Cut {
    /// Queries that share a tile.
    step: usize,
    /// Tasks of one kv head and one range of positions.
    tiles: usize,
    /// Ranges of positions, and positions of one.
    ranges: usize,
    range: usize,
}

impl FlashAttention<'_> {
    /// Positions that all queries see at most.
    fn positions(&self) -> usize {
        self.p.past + self.p.seq
    }

    /// Rows of the batch times kv heads.
    fn heads(&self) -> usize {
        self.p.batch * self.p.kv_heads
    }

    /// Queries.
    fn all(&self) -> usize {
        self.heads() * self.rows
    }

    /// Query heads per kv head.
    fn group(&self) -> usize {
        self.rows / self.p.seq.max(1)
    }

    fn step(&self) -> usize {
        let group = self.group().max(1);
        (ROWS / group).max(1) * group
    }

    /// Tiles of queries times positions: what it takes, in proportion to the others of its call.
    fn share(&self) -> usize {
        self.heads().saturating_mul(self.rows.div_ceil(self.step())).saturating_mul(self.positions())
    }

    /// Into about as many tasks as its share of the threads.
    fn cut(&self, shares: usize) -> Cut {
        let (t, step) = (self.positions(), self.step());
        let wanted = (4 * threads()).saturating_mul(t).div_ceil(shares.max(1));
        let ranges = wanted.min(t.div_ceil(4 * TILE)).max(1);
        Cut { step, tiles: self.rows.div_ceil(step), ranges, range: t.div_ceil(ranges).next_multiple_of(TILE) }
    }

    fn task(&self, level: Level, cut: &Cut, task: usize, [values, state]: [Output<'_>; 2]) {
        let (r, rest) = (task % cut.ranges, task / cut.ranges);
        let (head, first) = (rest / cut.tiles, rest % cut.tiles * cut.step);
        let rows = cut.step.min(self.rows - first);
        let t = self.positions();
        with_scratch(rows * TILE + TILE * (self.keys.width + self.values.width), |scratch| {
            let task = FlashTask {
                a: self,
                b: head / self.p.kv_heads,
                head: head % self.p.kv_heads,
                first,
                rows,
                group: self.group(),
                positions: (r * cut.range).min(t)..((r + 1) * cut.range).min(t),
                row: r * self.all() + head * self.rows + first,
                values,
                state,
                scratch,
            };
            launch(level, task);
        });
    }

    /// The weighted values of all ranges together, in place of those of the first.
    fn merge(&self, ranges: usize, partial: &mut Vec<f32>, state: &[f32]) {
        let (all, width) = (self.all(), self.values.width);
        for row in 0..all {
            let state = |r: usize| (state[(r * all + row) * 2], state[(r * all + row) * 2 + 1]);
            let highest = (0..ranges).map(|r| state(r).0).fold(f32::NEG_INFINITY, f32::max);
            let share = |r: usize| {
                if state(r).1 == 0.0 { 0.0 } else { (state(r).0 - highest).exp() }
            };
            let total: f32 = (0..ranges).map(|r| share(r) * state(r).1).sum();
            for r in 0..ranges {
                let factor = share(r) / total;
                for d in 0..width {
                    let value = factor * partial[(r * all + row) * width + d];
                    let to = &mut partial[row * width + d];
                    *to = if r == 0 { value } else { *to + value };
                }
            }
        }
        partial.truncate(all * width);
    }
}

/// The weighted values `[b, kv_heads, rows, values.width]` of each of the calls, in one region.
pub(crate) fn run(calls: &[FlashAttention], level: Level) -> Vec<Vec<f32>> {
    let shares = calls.iter().fold(0usize, |sum, call| sum.saturating_add(call.share()));
    let cuts: Vec<Cut> = calls.iter().map(|call| call.cut(shares)).collect();
    // Per range and query: the values, then maximum and sum.
    let buffers = |of: fn(&FlashAttention) -> usize| -> Vec<Vec<f32>> {
        let sizes = calls.iter().zip(&cuts).map(|(call, cut)| [cut.ranges, call.all(), of(call)]);
        sizes.map(|size| vec![0.0; elements("the partial results", &size)]).collect()
    };
    let (mut partial, mut state) = (buffers(|call| call.values.width), buffers(|_| 2));
    let outputs: Vec<[Output; 2]> = (calls.iter().zip(&mut partial).zip(&mut state))
        .map(|((call, partial), state)| [Output::new(partial, call.values.width), Output::new(state, 2)])
        .collect();
    // Where the tasks of a call begin.
    let mut tasks = 0;
    let starts = calls.iter().zip(&cuts).map(|(call, cut)| {
        let start = tasks;
        tasks += call.heads() * cut.tiles * cut.ranges;
        start
    });
    let starts: Vec<usize> = starts.collect();
    let task = |task: usize| {
        let i = starts.partition_point(|&start| start <= task) - 1;
        calls[i].task(level, &cuts[i], task - starts[i], outputs[i]);
    };
    let work = |call: &FlashAttention| call.all().saturating_mul(call.positions()).saturating_mul(call.p.head_dim);
    if calls.iter().map(work).fold(0, usize::saturating_add) < crate::cpu::pool::MIN_WORK {
        (0..tasks).for_each(task);
    } else {
        parallel(tasks, task);
    }
    for (((call, cut), partial), state) in calls.iter().zip(&cuts).zip(&mut partial).zip(&state) {
        call.merge(cut.ranges, partial, state);
    }
    partial
}

struct FlashTask<'a> {
    a: &'a FlashAttention<'a>,
    b: usize,
    head: usize,
    first: usize,
    rows: usize,
    group: usize,
    positions: std::ops::Range<usize>,
    /// Where its rows are in the partial results.
    row: usize,
    values: Output<'a>,
    state: Output<'a>,
    /// Scores, a tile of keys and one of values.
    scratch: &'a mut [f32],
}

impl Kernel for FlashTask<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: `S` is enabled.
        unsafe { self.run::<S>() }
    }
}

impl FlashTask<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (a, p) = (self.a, &self.a.p);
        let (wk, wv) = (a.keys.width, a.values.width);
        let (scores, rest) = self.scratch.split_at_mut(self.rows * TILE);
        let (key_tile, value_tile) = rest.split_at_mut(TILE * wk);
        let first = (self.b * p.kv_heads + self.head) * a.rows + self.first;
        let q = &a.q[first * wk..(first + self.rows) * wk];
        // One past the last position of row `r`.
        let end = |r: usize| p.past + (self.first + r) / self.group + 1;
        let mut at = self.positions.start;
        let stop = self.positions.end.min(end(self.rows - 1));
        // SAFETY: `S` is enabled. Queries and tiles of keys and values are taken by checked slices; the scratch has the sizes that
        // `FlashAttention::task` gave it; rows `row..row + rows` lie in the outputs, and tasks have different ones.
        unsafe {
            let out = self.values.row(self.row, 0, self.rows * wv);
            let state = self.state.row(self.row, 0, self.rows * 2);
            state.chunks_exact_mut(2).for_each(|state| state[0] = f32::NEG_INFINITY);
            while at < stop {
                let count = TILE.min(stop - at);
                let keys = &a.keys;
                let from = self.b * keys.batch_step + self.head * keys.head_step + at * wk;
                match keys.data {
                    CacheSlice::F32(data) => {
                        tile_scores::<S, f32>(q, wk, &data[from..from + count * wk], key_tile, scores);
                    }
                    CacheSlice::F16(data) => {
                        let data = &dense::f16(data)[from..from + count * wk];
                        tile_scores::<S, _>(q, wk, data, key_tile, scores);
                    }
                }
                if self.rows >= GEMM_MIN_ROWS {
                    let (x, to) = (key_tile.as_ptr(), scores.as_mut_ptr());
                    small::<S>((self.rows, wk, count), q.as_ptr(), wk, x, TILE, to, TILE, true);
                }
                for r in 0..self.rows {
                    let bias = a.bias.map_or(0.0, |bias| bias[first + r]);
                    let valid = count.min(end(r).saturating_sub(at));
                    let [highest, sum] = &mut state[2 * r..2 * r + 2] else {
                        return;
                    };
                    let row = &mut scores[r * TILE..r * TILE + count];
                    let factor = softmax::<S>(row, valid, bias, highest, sum);
                    if factor != 1.0 {
                        let out = &mut out[r * wv..(r + 1) * wv];
                        math::map::<S, _>(out, math::Scale(factor));
                    }
                }
                let values = &a.values;
                let from = self.b * values.batch_step + self.head * values.head_step + at * wv;
                let x = match values.data {
                    CacheSlice::F32(data) => data[from..from + count * wv].as_ptr(),
                    CacheSlice::F16(data) => {
                        floats::<S, _>(&dense::f16(data)[from..from + count * wv], value_tile);
                        value_tile.as_ptr()
                    }
                };
                let shape = (self.rows, count, wv);
                small::<S>(shape, scores.as_ptr(), TILE, x, wv, out.as_mut_ptr(), wv, false);
                at += count;
            }
        }
    }
}

/// `scores[r][i] = q[r] · keys[i]`, rows of `TILE` scores; for many queries only the keys transposed to `tile`.
#[inline(always)]
unsafe fn tile_scores<S: Simd, E: Element>(q: &[f32], width: usize, keys: &[E], tile: &mut [f32], scores: &mut [f32]) {
    let (rows, count) = (q.len() / width.max(1), keys.len() / width.max(1));
    // SAFETY: `S` is enabled. Queries `r..r + step` and key `i` lie in their slices, which are whole rows of `width`; the caller's
    // scores have `TILE` places for each of `rows` queries, and `count` is at most `TILE`.
    unsafe {
        if rows >= GEMM_MIN_ROWS {
            // Positions become lanes: `[width, TILE]`.
            let mut lanes = [0.0f32; 16];
            for (i, key) in keys.chunks_exact(width).enumerate() {
                for (c, piece) in key.chunks(S::LANES).enumerate() {
                    floats::<S, E>(piece, &mut lanes[..piece.len()]);
                    for (l, &value) in lanes[..piece.len()].iter().enumerate() {
                        tile[(c * S::LANES + l) * TILE + i] = value;
                    }
                }
            }
            return;
        }
        let mut r = 0;
        while r < rows {
            let step = if rows - r >= 4 { 4 } else { 1 };
            for i in 0..count {
                let key = keys.as_ptr().add(i * width);
                let q = q.as_ptr().add(r * width);
                let to = scores.as_mut_ptr().add(r * TILE + i);
                if step == 4 { dots::<S, E, 4>(q, key, width, to) } else { dots::<S, E, 1>(q, key, width, to) }
            }
            r += step;
        }
    }
}

/// The products of `R` queries with one key.
#[inline(always)]
unsafe fn dots<S: Simd, E: Element, const R: usize>(q: *const f32, key: *const E, width: usize, to: *mut f32) {
    // SAFETY: `R` queries and the key have `width` elements; `S` is enabled.
    unsafe {
        let mut sums = [S::splat(0.0); R];
        let mut d = 0;
        while d + S::LANES <= width {
            let key = E::load::<S>(key.add(d));
            for r in 0..R {
                sums[r] = S::fma(S::load(q.add(r * width + d)), key, sums[r]);
            }
            d += S::LANES;
        }
        for r in 0..R {
            let mut sum = S::sum(sums[r]);
            for d in d..width {
                sum += *q.add(r * width + d) * (*key.add(d)).value();
            }
            *to.add(r * TILE) = sum;
        }
    }
}

/// Turns the first `valid` scores into weights relative to the running maximum, the others into 0, and returns the factor
/// for what was summed before.
#[inline(always)]
unsafe fn softmax<S: Simd>(scores: &mut [f32], valid: usize, bias: f32, highest: &mut f32, sum: &mut f32) -> f32 {
    let (scores, masked) = scores.split_at_mut(valid);
    masked.fill(0.0);
    if scores.is_empty() {
        return 1.0;
    }
    // SAFETY: `S` is enabled.
    unsafe {
        let new = highest.max(math::highest::<S>(scores) + bias);
        math::map::<S, _>(scores, math::ExpOffset(bias - new));
        // Before the first score there is nothing to rescale.
        let factor = if *sum == 0.0 { 1.0 } else { (*highest - new).exp() };
        *sum = *sum * factor + math::total::<S>(scores);
        *highest = new;
        factor
    }
}

/// Elements as floats.
#[inline(always)]
unsafe fn floats<S: Simd, E: Element>(from: &[E], to: &mut [f32]) {
    let whole = from.len() / S::LANES * S::LANES;
    // SAFETY: `S` is enabled, every access is inside the slices.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            S::store(to.as_mut_ptr().add(i), E::load::<S>(from.as_ptr().add(i)));
        }
    }
    for (to, from) in to[whole..].iter_mut().zip(&from[whole..]) {
        *to = from.value();
    }
}
