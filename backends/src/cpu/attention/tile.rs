//! One task of flash attention: its queries against a range of positions, tile by tile.

use crate::cpu::attention::ahead::{Ahead, Next};
#[cfg(target_arch = "x86_64")]
use crate::cpu::attention::bf16;
use crate::cpu::attention::byte_sums::ByteQueries;
use crate::cpu::attention::hidden::{HiddenLayer, TokenRows};
use crate::cpu::attention::parts::Parts;
use crate::cpu::attention::products::{GEMM_MIN_ROWS, tile_scores, weigh};
use crate::cpu::attention::q8::{self, Q8Rows};
use crate::cpu::attention::softmax::{Ends, TileSoftmax};
use crate::cpu::attention::source::{FlashAttention, Queries, Source};
use crate::cpu::attention::tokens::{TokenTile, strip_of, weigh_strips};
use crate::cpu::cache::CacheSlice;
use crate::cpu::matmul::dense;
use crate::cpu::matmul::gemm::small;
use crate::cpu::pool::Output;
use crate::cpu::simd::{Kernel, Simd};
use crate::types::{KV_BLOCK, KV_TILE as TILE};
use std::ops::Range;

/// Floats of the scores of `rows` queries, a tile of keys, one of values, codes as columns, and what is stored in 8 bits as floats.
pub(super) fn scratch_lens(a: &FlashAttention, rows: usize) -> [usize; 5] {
    let codes = match &a.keys {
        Source::Codes { layer, .. } => layer.r,
        _ => 0,
    };
    let (wk, wv) = (a.keys.width(&a.p), a.values.width(&a.p));
    let floats = if a.keys.has_8_bits() || a.values.has_8_bits() { wk.max(wv) } else { 0 };
    [rows, wk, wv, codes, floats].map(|width| width * TILE)
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
        let places = Places { batch: self.b, head: self.b * p.kv_heads + self.head, head_dim: p.head_dim, stop };
        // Prefetched where kv heads share values: the keys of the next head, and those a tile later into a cache that is farther away, where scores ask for
        // both; otherwise those of the same head in the next tile. With hidden values to compute from codes, half of the latter is left for that time,
        // when memory would wait.
        let by_head = a.byte_queries.is_some_and(ByteQueries::fetches_far);
        let halved = !by_head && matches!((&a.keys, &a.values), (Source::Heads(_), Source::Codes { .. }));
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
                            let next = match &a.values {
                                Source::Heads(_) => places.next(&a.values, head, at),
                                _ if by_head && head + 1 < heads => places.next(&a.keys, head + 1, at),
                                _ if by_head => places.next(&a.keys, 0, at + TILE),
                                _ => places.next(&a.keys, head, at + TILE).map(|next| Next {
                                    bytes: if halved { next.bytes / 2 } else { next.bytes },
                                    ..next
                                }),
                            };
                            // Values that all heads share, where their sums ask for nothing: each head for a part.
                            let beside = match &a.values {
                                Source::Tokens { .. } if a.byte_sums.is_none() => places.next(&a.values, 0, at + TILE),
                                _ => None,
                            };
                            let next = [next, beside.map(|values| values.share(head, heads, TILE))];
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
                                        queries.scores(first + head * rows, rows, keys, scores, next[0]);
                                        continue;
                                    }
                                    if rows < GEMM_MIN_ROWS && wk.is_multiple_of(KV_BLOCK) {
                                        q8::scores::<S>(q, keys, scores, next[0]);
                                        continue;
                                    }
                                    keys.floats::<S>(numbers);
                                    let data = &numbers[..count * wk];
                                    tile_scores::<S, f32>(q, wk, data, key_tile, scores, next);
                                }
                            }
                        }
                    }
                    Source::Tokens { parts, .. } => match TokenTile::new(parts, wk, self.b, at, count) {
                        TokenTile::Q8(keys) if let Some(queries) = a.byte_queries => {
                            queries.scores(first, total, keys, scores, places.next(&a.keys, 0, at + TILE));
                        }
                        TokenTile::F16(data) => tile_scores::<S, _>(q, wk, data, key_tile, scores, [None; 2]),
                        tile => tile_scores::<S, f32>(q, wk, tile.floats::<S>(numbers), key_tile, scores, [None; 2]),
                    },
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
                            let next = match &a.keys {
                                Source::Heads(_) => places.next(&a.keys, head, at + TILE),
                                _ => places.next(&a.values, head, at + TILE),
                            };
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
                    Source::Tokens { parts, .. } => match TokenTile::new(parts, wv, self.b, at, count) {
                        TokenTile::Q8(values) if let Some(sums) = a.byte_sums => {
                            sums.weigh(scores, total, values, out, places.next(&a.values, 0, at + TILE));
                        }
                        tile => tile.weigh::<S>((total, wv), scores, [value_tile, numbers], out),
                    },
                    Source::Codes { parts, layer } => {
                        let codes = tile_codes(parts, layer, self.b, at, count);
                        let ahead = match (places.next(&a.keys, 0, at + TILE), &a.keys) {
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
                        let strip = if total < GEMM_MIN_ROWS { wv } else { strip_of::<S>(wv) };
                        S::apart(TokenRows { layer, codes, u: value_tile, strip, ahead });
                        if strip == wv {
                            weigh::<S, f32>(scores, &value_tile[..count * wv], wv, &mut [], out, None);
                        } else {
                            weigh_strips::<S>((total, count), scores, value_tile, [strip, wv], out);
                        }
                    }
                }
            }
        }
    }
}

/// Where what a task reads is stored.
struct Places {
    /// Rows of the batch, and of heads, before its first.
    batch: usize,
    head: usize,
    head_dim: usize,
    /// The first position after its last.
    stop: usize,
}

impl Places {
    /// Where a tile of a head begins, or of what all heads share, and bytes of a position; none of codes, or where there is no such tile.
    #[inline(always)]
    fn of(&self, source: &Source, head: usize, at: usize) -> Option<(*const u8, usize)> {
        let (parts, row, width) = match source {
            Source::Heads(parts) => (parts, self.head + head, self.head_dim),
            Source::Tokens { parts, width } => (parts, self.batch, *width),
            Source::Codes { .. } => return None,
        };
        if at >= self.stop {
            return None;
        }
        let part = parts.at(at);
        let from = part.row(row, at) * width;
        let (start, size): (*const u8, usize) = match part.data {
            CacheSlice::F32(cache) => (cache.as_ptr().cast(), 4),
            CacheSlice::F16(cache) => (cache.as_ptr().cast(), 2),
            CacheSlice::Q8 { codes, .. } => (codes.as_ptr().cast(), 1),
        };
        Some((start.wrapping_add(size * from), size * width))
    }

    /// That tile, to be prefetched.
    #[inline(always)]
    fn next(&self, source: &Source, head: usize, at: usize) -> Option<Next> {
        let (start, bytes) = self.of(source, head, at)?;
        let far = self.of(source, head, at + TILE).map_or(start, |(far, _)| far);
        Some(Next { at: start, far, bytes })
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
