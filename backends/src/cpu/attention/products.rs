//! Products of some queries with the keys of a tile, and sums of its values, each times its weight.

use crate::cpu::attention::ahead::{LINE, Next};
use crate::cpu::matmul::dense::Element;
use crate::cpu::matmul::gemm::{VECTORS, small};
use crate::cpu::simd::Simd;
use crate::types::KV_TILE as TILE;

/// Queries from which scores are a GEMM on the transposed tile of keys; fewer are dot products, a few keys at a time.
pub(super) const GEMM_MIN_ROWS: usize = 12;
/// Keys whose dot products are summed at the same time.
const KEYS: usize = 4;
/// Positions after which a line is asked for again.
const AGAIN: usize = 16;

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

    /// The lines of steps `i..i + steps_per_line(bytes)`, of which each is about `bytes`.
    #[inline(always)]
    fn lines(self, i: usize, bytes: usize) -> impl Iterator<Item = *const u8> {
        (0..bytes.div_ceil(LINE)).map(move |line| self.at.wrapping_add(i * self.step + line * LINE))
    }

    /// Asks for them.
    #[inline(always)]
    unsafe fn step<S: Simd>(self, i: usize, bytes: usize) {
        for line in self.lines(i, bytes) {
            // SAFETY: `S` is enabled; the address need not be readable.
            unsafe { S::prefetch(line) };
        }
    }
}

/// Steps of `bytes` that a line is asked for at once: more than one where they are shorter than a line.
const fn steps_per_line(bytes: usize) -> usize {
    if bytes < LINE { LINE / bytes } else { 1 }
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

/// `scores[r][i] = q[r] · keys[i]`, rows of `TILE` scores; for many queries by way of the keys transposed in `tile`. `next` and what is
/// `beside` it are prefetched meanwhile.
#[inline(always)]
pub(super) unsafe fn tile_scores<S: Simd, E: Element>(
    q: &[f32],
    width: usize,
    keys: &[E],
    tile: &mut [f32],
    scores: &mut [f32],
    [next, beside]: [Option<Next>; 2],
) {
    let (rows, count) = (q.len() / width, keys.len() / width);
    debug_assert!(scores.len() >= rows * TILE && count <= TILE);
    // SAFETY: `S` is enabled. Queries `r..r + step` and key `i` lie in their slices, which are whole rows of `width`; the caller's
    // scores have `TILE` places, a multiple of `KEYS`, for each of `rows` queries, and `count` is at most `TILE`.
    unsafe {
        if rows >= GEMM_MIN_ROWS {
            for next in [next, beside].into_iter().flatten() {
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
            if let Some(beside) = beside {
                prefetch::<S>(beside.skip(i).at, KEYS * beside.bytes);
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
        let bytes = KEYS * E::SIZE * S::LANES;
        let mut d = 0;
        while d + S::LANES <= width {
            if (d / S::LANES).is_multiple_of(steps_per_line(bytes)) {
                next.step::<S>(d / S::LANES, bytes);
            }
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
pub(super) unsafe fn weigh<S: Simd, E: Element>(
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
        macro_rules! add {
            ($i:expr) => {
                let mut value = [S::splat(0.0); V];
                for v in 0..V {
                    value[v] = E::load::<S>(values.add($i * width + v * S::LANES));
                }
                for r in 0..R {
                    let weight = S::splat(*scores.add(r * TILE + $i));
                    for v in 0..V {
                        sums[r][v] = S::fma(weight, value[v], sums[r][v]);
                    }
                }
            };
        }
        let bytes = V * E::SIZE * S::LANES;
        let together = steps_per_line(bytes);
        let whole = count / together * together;
        for i in (0..whole).step_by(together) {
            next[0].step::<S>(i, bytes);
            next[1].step::<S>(i, bytes);
            for i in i..i + together {
                add!(i);
            }
        }
        for i in whole..count {
            add!(i);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Also where a step is less than a line, as it is on registers of 256 bits and fewer.
    #[test]
    fn every_line_is_asked_for() {
        for bytes in [8, 16, 32, 64, 128, 256] {
            let start = 0x4000 as *const u8;
            let spread = Spread::new(start, TILE * bytes, TILE);
            let lines = (0..TILE).step_by(steps_per_line(bytes)).flat_map(|i| spread.lines(i, bytes));
            let asked: Vec<usize> = lines.map(|line| line.addr() / LINE).collect();
            let lines = start.addr() / LINE..(start.addr() + TILE * bytes) / LINE;
            assert_eq!(asked.iter().copied().collect::<BTreeSet<_>>(), lines.collect(), "steps of {bytes} bytes");
            assert_eq!(asked.len(), TILE * bytes / LINE, "steps of {bytes} bytes: once each");
        }
    }
}
