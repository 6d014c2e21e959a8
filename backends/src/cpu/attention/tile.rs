//! One task of flash attention: its queries against a range of positions, tile by tile.

use crate::cpu::attention::ahead::{Ahead, LINE, Next};
#[cfg(target_arch = "x86_64")]
use crate::cpu::attention::bf16;
use crate::cpu::attention::hidden::{HiddenLayer, TokenRows};
use crate::cpu::attention::parts::Parts;
use crate::cpu::attention::q8::{self, Q8Rows};
use crate::cpu::attention::softmax::{Ends, TileSoftmax};
use crate::cpu::attention::source::{FlashAttention, Queries, Source};
use crate::cpu::cache::CacheSlice;
use crate::cpu::matmul::dense::{self, Element};
use crate::cpu::matmul::gemm::{VECTORS, small};
use crate::cpu::pool::Output;
use crate::cpu::simd::{Kernel, Simd};
use crate::types::{KV_BLOCK, KV_TILE as TILE};
use std::ops::Range;

/// Queries from which scores are a GEMM on the transposed tile of keys; fewer are dot products, a few keys at a time.
const GEMM_MIN_ROWS: usize = 12;
/// Keys whose dot products are summed at the same time.
const KEYS: usize = 4;
/// Positions after which a line is asked for again.
const AGAIN: usize = 16;

/// Floats of the scores of `rows` queries, a tile of keys, one of values, codes as columns, and what is stored in 8 bits as floats.
pub(super) fn scratch_lens(a: &FlashAttention, rows: usize) -> [usize; 5] {
    let codes = match &a.keys {
        Source::Codes { layer, .. } => layer.r,
        _ => 0,
    };
    let floats = if a.keys.has_8_bits() || a.values.has_8_bits() { a.p.head_dim } else { 0 };
    [rows, a.keys.width(&a.p), a.values.width(&a.p), codes, floats].map(|width| width * TILE)
}

/// Queries `first..first + rows` of each of the kv heads `head..head + heads` of one row of the batch; of several heads all queries.
pub(super) struct FlashTask<'a> {
    pub(super) a: &'a FlashAttention<'a>,
    pub(super) b: usize,
    pub(super) head: usize,
    pub(super) heads: usize,
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) positions: Range<usize>,
    /// Where its rows are in the partial results.
    pub(super) row: usize,
    pub(super) values: Output<'a>,
    pub(super) state: Output<'a>,
    /// [`scratch_lens`] floats.
    pub(super) scratch: &'a mut [f32],
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
        let [scores, key_tile, value_tile, codes, _] = scratch_lens(self.a, self.heads * self.rows);
        let (a, p) = (self.a, &self.a.p);
        let (wk, wv) = (a.keys.width(p), a.values.width(p));
        let (scores, rest) = self.scratch.split_at_mut(scores);
        let (key_tile, rest) = rest.split_at_mut(key_tile);
        let (value_tile, rest) = rest.split_at_mut(value_tile);
        let (code_columns, numbers) = rest.split_at_mut(codes);
        let (heads, rows, group) = (self.heads, self.rows, a.group());
        let total = heads * rows;
        let first = (self.b * p.kv_heads + self.head) * a.rows + self.first;
        let Queries::Grouped(q) = a.q else { unreachable!("queries of these tasks are grouped") };
        let q = &q[first * wk..(first + total) * wk];
        let ends = Ends { past: p.past, first: self.first, rows, group };
        let stop = self.positions.end.min(ends.of(rows - 1));
        // Where the keys or values of a head begin, and bytes of a position; none where they are not of heads, or there is no such tile.
        let place = |source: &Source, head: usize, at: usize| match source {
            Source::Heads(parts) if at < stop => {
                let part = parts.at(at);
                let from = part.row(self.b * p.kv_heads + self.head + head, at) * p.head_dim;
                let (start, size): (*const u8, usize) = match part.data {
                    CacheSlice::F32(cache) => (cache.as_ptr().cast(), 4),
                    CacheSlice::F16(cache) => (cache.as_ptr().cast(), 2),
                    CacheSlice::Q8 { codes, .. } => (codes.as_ptr().cast(), 1),
                };
                Some((start.wrapping_add(size * from), size * p.head_dim))
            }
            _ => None,
        };
        let address = |source: &Source, head: usize, at: usize| {
            let (start, bytes) = place(source, head, at)?;
            let far = place(source, head, at + TILE).map_or(start, |(far, _)| far);
            Some(Next { at: start, far, bytes })
        };
        // With hidden values to compute, memory would wait meanwhile: half of the next tile's keys is left for that time.
        let halved = matches!((&a.keys, &a.values), (Source::Heads(_), Source::Codes { .. }));
        // SAFETY: `S` is enabled. Queries and tiles of keys and values are taken by checked slices; the scratch has the sizes of
        // `scratch_lens`; rows `row..row + total` lie in the outputs, and tasks have different ones.
        unsafe {
            let out = self.values.row(self.row, 0, total * wv);
            let state = self.state.row(self.row, 0, total * 2);
            state.chunks_exact_mut(2).for_each(|state| state[0] = f32::NEG_INFINITY);
            for at in (self.positions.start..stop).step_by(TILE) {
                let count = TILE.min(stop - at);
                let shape = (total, wk, count);
                match &a.keys {
                    Source::Heads(parts) => {
                        let part = parts.at(at);
                        for head in 0..heads {
                            let from = part.row(self.b * p.kv_heads + self.head + head, at) * wk;
                            let q = &q[head * rows * wk..(head + 1) * rows * wk];
                            let scores = &mut scores[head * rows * TILE..(head + 1) * rows * TILE];
                            // The values of this tile, or a part of the keys of the next one.
                            let next = address(&a.values, head, at).or_else(|| {
                                let next = address(&a.keys, head, at + TILE)?;
                                Some(Next { bytes: if halved { next.bytes / 2 } else { next.bytes }, ..next })
                            });
                            match part.data {
                                CacheSlice::F32(data) => {
                                    let data = &data[from..from + count * wk];
                                    tile_scores::<S, f32>(q, wk, data, key_tile, scores, next);
                                }
                                CacheSlice::F16(data) => {
                                    let data = &dense::f16(data)[from..from + count * wk];
                                    tile_scores::<S, _>(q, wk, data, key_tile, scores, next);
                                }
                                CacheSlice::Q8 { codes, scales } => {
                                    let keys = Q8Rows::new(codes, scales, wk, from / wk, count);
                                    if let Some(queries) = a.byte_queries {
                                        queries.scores(first + head * rows, rows, keys, scores, next);
                                        continue;
                                    }
                                    if rows < GEMM_MIN_ROWS && wk.is_multiple_of(KV_BLOCK) {
                                        q8::scores::<S>(q, keys, scores, next);
                                        continue;
                                    }
                                    keys.floats::<S>(numbers);
                                    let data = &numbers[..count * wk];
                                    tile_scores::<S, f32>(q, wk, data, key_tile, scores, next);
                                }
                            }
                        }
                    }
                    Source::Tokens { parts, .. } => {
                        let part = parts.at(at);
                        let data = &part.data[part.row(self.b, at) * wk..][..count * wk];
                        tile_scores::<S, f32>(q, wk, data, key_tile, scores, None);
                    }
                    Source::Codes { parts, layer } => {
                        let codes = tile_codes(parts, layer, self.b, at, count);
                        layer.columns::<S>(codes, TILE, code_columns, key_tile);
                        let (x, to) = (key_tile.as_ptr(), scores.as_mut_ptr());
                        small::<S>(shape, q.as_ptr(), wk, x, TILE, to, TILE, true);
                    }
                }
                let bias = a.bias.map(|bias| &bias[first..first + total]);
                let scores_of_tile = &mut scores[..total * TILE];
                let (state, sums) = (&mut *state, &mut *out);
                S::apart(TileSoftmax { scores: scores_of_tile, bias, at, count, ends, state, sums, width: wv });
                match &a.values {
                    Source::Heads(parts) => {
                        let part = parts.at(at);
                        for head in 0..heads {
                            let from = part.row(self.b * p.kv_heads + self.head + head, at) * wv;
                            let scores = &scores[head * rows * TILE..(head + 1) * rows * TILE];
                            let out = &mut out[head * rows * wv..(head + 1) * rows * wv];
                            let next =
                                address(&a.keys, head, at + TILE).or_else(|| address(&a.values, head, at + TILE));
                            match part.data {
                                CacheSlice::F32(data) => {
                                    weigh::<S, f32>(scores, &data[from..from + count * wv], wv, value_tile, out, next);
                                }
                                CacheSlice::F16(data) => {
                                    let data = &dense::f16(data)[from..from + count * wv];
                                    weigh::<S, _>(scores, data, wv, value_tile, out, next);
                                }
                                CacheSlice::Q8 { codes, scales } => {
                                    let values = Q8Rows::new(codes, scales, wv, from / wv, count);
                                    if let Some(sums) = a.byte_sums {
                                        sums.weigh(scores, rows, values, out, next);
                                        continue;
                                    }
                                    if rows < GEMM_MIN_ROWS && wv.is_multiple_of(KV_BLOCK) {
                                        q8::weigh::<S>(scores, values, out, next);
                                        continue;
                                    }
                                    values.floats::<S>(numbers);
                                    let data = &numbers[..count * wv];
                                    weigh::<S, f32>(scores, data, wv, value_tile, out, next);
                                }
                            }
                        }
                    }
                    Source::Tokens { parts, .. } => {
                        let part = parts.at(at);
                        let data = &part.data[part.row(self.b, at) * wv..][..count * wv];
                        weigh::<S, f32>(scores, data, wv, value_tile, out, None);
                    }
                    Source::Codes { parts, layer } => {
                        let codes = tile_codes(parts, layer, self.b, at, count);
                        let ahead = match (address(&a.keys, 0, at + TILE), &a.keys) {
                            (Some(next), Source::Heads(keys)) if halved => {
                                let (half, head_step) =
                                    (TILE * (next.bytes / 2), keys.at(at + TILE).slots * next.bytes);
                                Ahead::new(next.at.wrapping_add(half), TILE * next.bytes - half, head_step, heads)
                            }
                            _ => Ahead::nothing(),
                        };
                        #[cfg(target_arch = "x86_64")]
                        if a.bf16_sums {
                            S::apart(TokenRows { layer, codes, u: value_tile, strip: wv, ahead });
                            bf16::weigh(scores, value_tile, count, wv, out);
                            continue;
                        }
                        let strip = if total < GEMM_MIN_ROWS { wv } else { layer.strip::<S>() };
                        S::apart(TokenRows { layer, codes, u: value_tile, strip, ahead });
                        if strip == wv {
                            weigh::<S, f32>(scores, &value_tile[..count * wv], wv, &mut [], out, None);
                            continue;
                        }
                        for (i, values) in value_tile.chunks_exact(TILE * strip).enumerate() {
                            let (weights, values, out) = (scores.as_ptr(), values.as_ptr(), out.as_mut_ptr());
                            let out = out.add(i * strip);
                            small::<S>((total, count, strip), weights, TILE, values, strip, out, wv, false);
                        }
                    }
                }
            }
        }
    }
}

/// The codes of `count` positions from `at` on of a row of the batch.
pub(super) fn tile_codes<'a>(
    parts: &Parts<&'a [f32]>,
    layer: &HiddenLayer,
    batch: usize,
    at: usize,
    count: usize,
) -> &'a [f32] {
    let part = parts.at(at);
    &part.data[part.row(batch, at) * layer.r..][..count * layer.r]
}

/// Cache lines to ask for in equal steps, some at each. In bursts many would be lost: the processor drops a prefetch that finds no free
/// buffer.
#[derive(Clone, Copy)]
struct Spread {
    at: *const u8,
    /// Bytes from one step to the next.
    step: usize,
}

impl Spread {
    /// Nothing new: the line at `at`, which is at hand, again and again. A branch in the inner loops would cost more.
    #[inline(always)]
    fn nothing(at: *const u8) -> Spread {
        Spread { at, step: 0 }
    }

    /// The lines of `bytes` at `at` in `steps` steps.
    #[inline(always)]
    fn new(at: *const u8, bytes: usize, steps: usize) -> Spread {
        Spread { at, step: bytes / steps.max(1) }
    }

    /// Asks for `lines` lines of step `i`.
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, i: usize, lines: usize) {
        for line in 0..lines {
            // SAFETY: `S` is enabled; the address need not be readable.
            unsafe { S::prefetch(self.at.wrapping_add(i * self.step + line * LINE)) };
        }
    }
}

/// What each pass over the columns of a tile asks for: its part of what comes next, and once more the part of the pass before, of which
/// some may have been dropped.
struct Passes {
    next: Option<Next>,
    positions: usize,
    passes: usize,
    done: usize,
}

impl Passes {
    #[inline(always)]
    fn new(next: Option<Next>, positions: usize, passes: usize) -> Passes {
        Passes { next, positions, passes: passes.max(1), done: 0 }
    }

    #[inline(always)]
    fn next(&mut self, idle: *const f32) -> [Spread; 2] {
        let idle = Spread::nothing(idle.cast());
        let Some(next) = self.next else { return [idle; 2] };
        let part = self.positions * next.bytes / self.passes;
        let spread = |pass: usize| Spread::new(next.at.wrapping_add(pass * part), part, self.positions);
        let spreads = [spread(self.done), self.done.checked_sub(1).map_or(idle, spread)];
        self.done += 1;
        spreads
    }
}

/// Asks for the whole cache lines of `bytes` at `at`.
#[inline(always)]
unsafe fn prefetch<S: Simd>(at: *const u8, bytes: usize) {
    for line in 0..bytes / LINE {
        // SAFETY: `S` is enabled; the address need not be readable.
        unsafe { S::prefetch(at.wrapping_add(line * LINE)) };
    }
}

/// `scores[r][i] = q[r] · keys[i]`, rows of `TILE` scores; for many queries by way of the keys transposed in `tile`. `next` is prefetched
/// meanwhile.
#[inline(always)]
unsafe fn tile_scores<S: Simd, E: Element>(
    q: &[f32],
    width: usize,
    keys: &[E],
    tile: &mut [f32],
    scores: &mut [f32],
    next: Option<Next>,
) {
    let (rows, count) = (q.len() / width, keys.len() / width);
    debug_assert!(scores.len() >= rows * TILE && count <= TILE);
    // SAFETY: `S` is enabled. Queries `r..r + step` and key `i` lie in their slices, which are whole rows of `width`; the caller's
    // scores have `TILE` places, a multiple of `KEYS`, for each of `rows` queries, and `count` is at most `TILE`.
    unsafe {
        if rows >= GEMM_MIN_ROWS {
            if let Some(next) = next {
                prefetch::<S>(next.at, count * next.bytes);
            }
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
            let (x, to) = (tile.as_ptr(), scores.as_mut_ptr());
            small::<S>((rows, width, count), q.as_ptr(), width, x, TILE, to, TILE, true);
            return;
        }
        for i in (0..count).step_by(KEYS) {
            let idle = Spread::nothing(q.as_ptr().cast());
            let mut spread = idle;
            if let Some(next) = next {
                let at = next.skip(i).at;
                spread = Spread::new(at, KEYS * next.bytes, width / S::LANES);
                // Once more what was asked for a while ago and may have been dropped.
                if i >= AGAIN {
                    prefetch::<S>(at.wrapping_sub(AGAIN * next.bytes), KEYS * next.bytes);
                }
            }
            // Keys beyond the last are the last again.
            let keys: [*const E; KEYS] = std::array::from_fn(|j| keys.as_ptr().add((i + j).min(count - 1) * width));
            let mut r = 0;
            while r < rows {
                let (q, to) = (q.as_ptr().add(r * width), scores.as_mut_ptr().add(r * TILE + i));
                r += match rows - r {
                    4.. if S::REGISTERS >= 32 => dots::<S, E, 4>(q, keys, width, to, spread),
                    2.. if S::REGISTERS >= 16 => dots::<S, E, 2>(q, keys, width, to, spread),
                    _ => dots::<S, E, 1>(q, keys, width, to, spread),
                };
                spread = idle;
            }
        }
    }
}

/// The products of `R` queries with some keys, a row of `TILE` for each query; `R`.
#[inline(always)]
unsafe fn dots<S: Simd, E: Element, const R: usize>(
    q: *const f32,
    keys: [*const E; KEYS],
    width: usize,
    to: *mut f32,
    next: Spread,
) -> usize {
    // SAFETY: `R` queries and the keys have `width` elements; `S` is enabled.
    unsafe {
        let mut sums = [[S::splat(0.0); KEYS]; R];
        let mut d = 0;
        while d + S::LANES <= width {
            next.step::<S>(d / S::LANES, KEYS * E::SIZE * S::LANES / LINE);
            let mut key = [S::splat(0.0); KEYS];
            for j in 0..KEYS {
                key[j] = E::load::<S>(keys[j].add(d));
            }
            for r in 0..R {
                let q = S::load(q.add(r * width + d));
                for j in 0..KEYS {
                    sums[r][j] = S::fma(q, key[j], sums[r][j]);
                }
            }
            d += S::LANES;
        }
        // A loop of its own: with the other inside, the compiler would keep the sums in memory.
        for r in 0..R {
            S::store_sums(to.add(r * TILE), sums[r]);
        }
        for d in d..width {
            for r in 0..R {
                for j in 0..KEYS {
                    *to.add(r * TILE + j) += *q.add(r * width + d) * (*keys[j].add(d)).value();
                }
            }
        }
        R
    }
}

/// `out[r] += Σ scores[r][i] values[i]`; for many queries by way of the values as floats in `tile`. `next` is prefetched
/// meanwhile.
#[inline(always)]
unsafe fn weigh<S: Simd, E: Element>(
    scores: &[f32],
    values: &[E],
    width: usize,
    tile: &mut [f32],
    out: &mut [f32],
    next: Option<Next>,
) {
    let (rows, count) = (out.len() / width, values.len() / width);
    debug_assert!(scores.len() >= rows * TILE);
    // SAFETY: `S` is enabled. Each of `rows` rows has `TILE` scores and `width` results, each of `count` values `width` elements; the
    // columns of each call end at `width`.
    unsafe {
        let (scores, out) = (scores.as_ptr(), out.as_mut_ptr());
        if rows >= GEMM_MIN_ROWS {
            if let Some(next) = next {
                prefetch::<S>(next.at, count * next.bytes);
            }
            let x = match E::as_floats(values) {
                Some(values) => values.as_ptr(),
                None => {
                    floats::<S, E>(values, tile);
                    tile.as_ptr()
                }
            };
            // A strip of columns stays in the L1 cache for all rows.
            let strip = VECTORS * S::LANES;
            for column in (0..width).step_by(strip) {
                let shape = (rows, count, strip.min(width - column));
                small::<S>(shape, scores, TILE, x.add(column), width, out.add(column), width, false);
            }
            return;
        }
        let mut next = next;
        let mut r = 0;
        while r < rows {
            let (values, scores, out) = (values.as_ptr(), scores.add(r * TILE), out.add(r * width));
            let shape = (count, width);
            r += match rows - r {
                8.. if S::REGISTERS >= 32 => weigh_rows::<S, E, 8, 2>(shape, scores, values, out, &mut next),
                4.. if S::REGISTERS >= 32 => weigh_rows::<S, E, 4, 4>(shape, scores, values, out, &mut next),
                4.. if S::REGISTERS >= 16 => weigh_rows::<S, E, 4, 2>(shape, scores, values, out, &mut next),
                _ if S::REGISTERS >= 16 => weigh_rows::<S, E, 1, 8>(shape, scores, values, out, &mut next),
                _ => weigh_rows::<S, E, 1, 2>(shape, scores, values, out, &mut next),
            };
        }
    }
}

/// `R` rows of [`weigh`], `V` vectors of columns at a time; `R`. `next` is prefetched evenly, and all but the last part a second time.
#[inline(always)]
unsafe fn weigh_rows<S: Simd, E: Element, const R: usize, const V: usize>(
    (count, width): (usize, usize),
    scores: *const f32,
    values: *const E,
    out: *mut f32,
    next: &mut Option<Next>,
) -> usize {
    // SAFETY: as for `weigh`.
    unsafe {
        let mut column = 0;
        let mut ahead = Passes::new(next.take(), count, width.div_ceil(V * S::LANES));
        while column + V * S::LANES <= width {
            let next = ahead.next(scores);
            weigh_columns::<S, E, R, V>((count, width), scores, values.add(column), out.add(column), next);
            column += V * S::LANES;
        }
        while column + S::LANES <= width {
            let next = ahead.next(scores);
            weigh_columns::<S, E, R, 1>((count, width), scores, values.add(column), out.add(column), next);
            column += S::LANES;
        }
        for column in column..width {
            for r in 0..R {
                let mut sum = *out.add(r * width + column);
                for i in 0..count {
                    sum += *scores.add(r * TILE + i) * (*values.add(i * width + column)).value();
                }
                *out.add(r * width + column) = sum;
            }
        }
        R
    }
}

/// `V` vectors of `R` rows.
#[inline(always)]
unsafe fn weigh_columns<S: Simd, E: Element, const R: usize, const V: usize>(
    (count, width): (usize, usize),
    scores: *const f32,
    values: *const E,
    out: *mut f32,
    next: [Spread; 2],
) {
    // SAFETY: as for `weigh`.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; R];
        for r in 0..R {
            for v in 0..V {
                sums[r][v] = S::load(out.add(r * width + v * S::LANES));
            }
        }
        for i in 0..count {
            next[0].step::<S>(i, V * E::SIZE * S::LANES / LINE);
            next[1].step::<S>(i, V * E::SIZE * S::LANES / LINE);
            let mut value = [S::splat(0.0); V];
            for v in 0..V {
                value[v] = E::load::<S>(values.add(i * width + v * S::LANES));
            }
            for r in 0..R {
                let weight = S::splat(*scores.add(r * TILE + i));
                for v in 0..V {
                    sums[r][v] = S::fma(weight, value[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                S::store(out.add(r * width + v * S::LANES), sums[r][v]);
            }
        }
    }
}

/// Elements as floats.
#[inline(always)]
pub(super) unsafe fn floats<S: Simd, E: Element>(from: &[E], to: &mut [f32]) {
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
