//! Flash attention with grouped queries over a KV cache, for one new token or many.
//!
//! A cube takes a tile of query rows that share a key head, and walks over the keys in tiles with a running softmax. Within a
//! tile of keys, neighbouring units read neighbouring numbers of a row, and groups of units take different rows. When rows
//! are too few to fill the device, the keys are split over several cubes, and a second launch joins their results.

use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::*;

use crate::check::elements;
use crate::cube::half::{high_half, low_half, reads_halves};
use crate::cube::instructions::plane_size;
use crate::cube::launch::{Buffer, MAX_ELEMENTS, UNITS, grid};
use crate::cube::reduce::{max_of_lanes, sum_of_lanes};

/// Keys of a tile.
const TILE: usize = 64;

/// Below this a score was masked.
const MASKED: f32 = -1e30;

/// The shape of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Rows of the batch.
    pub batch: usize,
    /// New tokens, whose keys and values are among the stored ones.
    pub seq: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head `h` reads head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of a query and a key.
    pub key_dim: usize,
    /// Elements of a value and a result.
    pub value_dim: usize,
    /// Tokens before the new ones.
    pub past: usize,
    /// Multiplies every score.
    pub scale: f32,
}

/// Stored keys or values: `width` numbers from `b * batch + head * heads + token * tokens` on.
#[derive(Clone, Debug)]
pub struct KvRows {
    /// F32 numbers, or U32 words of two F16.
    pub buffer: Buffer,
    /// Whether the buffer holds F16.
    pub halves: bool,
    /// Numbers from a row of the batch to the next.
    pub batch_stride: usize,
    /// Numbers from a head to the next.
    pub head_stride: usize,
    /// Numbers from a token to the next.
    pub token_stride: usize,
}

impl KvRows {
    /// A store `[b, heads, capacity, width]`.
    pub fn of_store(buffer: Buffer, halves: bool, heads: usize, capacity: usize, width: usize) -> Self {
        let head_stride = capacity.saturating_mul(width);
        Self { buffer, halves, batch_stride: heads.saturating_mul(head_stride), head_stride, token_stride: width }
    }

    /// Rows `[b, t, heads, width]`.
    pub fn of_tokens(buffer: Buffer, tokens: usize, heads: usize, width: usize) -> Self {
        let token_stride = heads.saturating_mul(width);
        let batch_stride = tokens.saturating_mul(token_stride);
        Self { buffer, halves: false, batch_stride, head_stride: width, token_stride }
    }

    /// Of a call that has rows, heads and tokens.
    fn check(&self, name: &str, p: &Attention, width: usize) {
        let places = [
            (p.batch - 1, self.batch_stride),
            (p.kv_heads - 1, self.head_stride),
            (p.past.saturating_add(p.seq - 1), self.token_stride),
        ];
        let end = places.iter().try_fold(width, |sum, &(i, stride)| sum.checked_add(i.checked_mul(stride)?));
        let held = self.buffer.len * if self.halves { 2 } else { 1 };
        assert!(end.is_some_and(|end| end <= held), "{name} holds {held} numbers, attention reads {end:?}");
        // Strides of what has one place are not bounded by that.
        assert!(places.iter().all(|&(_, stride)| stride <= MAX_ELEMENTS), "{name} is {self:?}");
        self.buffer.check_words(name);
    }

    /// Whether every row starts at a multiple of `chunk` numbers and is a multiple of it long.
    fn divides_into(&self, chunk: usize, width: usize) -> bool {
        [self.batch_stride, self.head_stride, self.token_stride, width].iter().all(|n| n % chunk == 0)
    }

    /// How many U32 words so many numbers take: a word holds two halves, or one float.
    fn words(&self, numbers: usize) -> u32 {
        (if self.halves { numbers / 2 } else { numbers }) as u32
    }
}

/// How the kernel is cut for a device and a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cut {
    /// Query rows of a cube.
    rows: u32,
    /// Numbers of a key or value that a unit holds.
    chunk: u32,
    /// Units that share a key or value.
    lanes: u32,
    key_dim: u32,
    value_dim: u32,
    key_halves: bool,
    value_halves: bool,
    padded: bool,
    /// Results are not final: weighted sums, the highest score and the sum of weights, in F32.
    split: bool,
    plane: u32,
    /// Words can be read as halves.
    native: bool,
}

/// Causal attention of the new tokens over all stored ones, softmax in f32. Query `i` sees tokens from the padding of its
/// row up to `past + i`; one that sees none gives 0.
///
/// # Shapes
/// `q [b, s, heads, key_dim]`, `left_pad [b]` I32, `out [b, s, heads, value_dim]`.
///
/// # Panics
/// If a buffer does not have its shape, `kv_heads` does not divide `heads`, or keys and values are wider than
/// [they may be](fits_attention), or differ in width so that units share both in smaller pieces, or are odd and stored as F16.
pub fn attention<R: Runtime>(
    client: &ComputeClient<R>,
    q: &Buffer,
    k: &KvRows,
    v: &KvRows,
    left_pad: Option<&Buffer>,
    out: &Buffer,
    p: Attention,
) {
    let Attention { batch, seq, heads, kv_heads, key_dim, value_dim, past, scale } = p;
    assert!(kv_heads > 0 && heads % kv_heads == 0, "{kv_heads} key heads do not divide {heads} query heads");
    q.check("q", &[batch, seq, heads, key_dim]);
    out.check("out", &[batch, seq, heads, value_dim]);
    if out.len == 0 || q.len == 0 {
        return;
    }
    k.check("k", &p, key_dim);
    v.check("v", &p, value_dim);
    if let Some(pad) = left_pad {
        pad.check("left_pad", &[batch]);
        pad.check_words("left_pad");
    }

    let group = heads / kv_heads;
    let rows = (seq * group).next_power_of_two().min(8);
    let widest = key_dim.max(value_dim);
    let chunk = chunk(k, v, &p, rows);
    let lanes = widest.div_ceil(chunk).next_power_of_two().max(4);
    assert!(lanes <= UNITS as usize, "rows of {widest} numbers are too wide for attention");

    let tiles = (seq * group).div_ceil(rows);
    let cubes = batch * kv_heads * tiles;
    let (splits, per_split) = splits(client, cubes, past + seq);
    let cut = Cut {
        rows: rows as u32,
        chunk: chunk as u32,
        lanes: lanes as u32,
        key_dim: key_dim as u32,
        value_dim: value_dim as u32,
        key_halves: k.halves,
        value_halves: v.halves,
        padded: left_pad.is_some(),
        split: splits > 1,
        plane: plane_size(client),
        native: reads_halves(client),
    };
    let f32 = StorageType::from(ElemType::Float(FloatKind::F32));
    let parts = (splits > 1).then(|| {
        let len = elements("the parts of attention", &[batch, seq, heads, splits, value_dim + 2]);
        Buffer::new(client.empty(len * size_of::<f32>()), len, f32)
    });
    let target = parts.as_ref().unwrap_or(out);
    let vector = |halves: bool| (if halves { chunk / 2 } else { chunk }).min(4);
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        attention_kernel::launch_unchecked::<R>(
            client,
            grid(cubes * splits),
            CubeDim::new_1d(UNITS),
            vector(k.halves),
            vector(v.halves),
            q.arg(),
            k.buffer.arg(),
            v.buffer.arg(),
            left_pad.unwrap_or(q).arg(),
            target.arg(),
            (cubes * splits) as u32,
            seq as u32,
            kv_heads as u32,
            group as u32,
            past as u32,
            splits as u32,
            per_split as u32,
            scale,
            k.words(k.batch_stride),
            k.words(k.head_stride),
            k.words(k.token_stride),
            v.words(v.batch_stride),
            v.words(v.head_stride),
            v.words(v.token_stride),
            cut,
            q.dtype,
            target.dtype,
        );
        if let Some(parts) = &parts {
            let rows = batch * seq * heads;
            join_kernel::launch_unchecked::<R>(
                client,
                grid(rows),
                CubeDim::new_1d(UNITS),
                parts.arg(),
                out.arg(),
                rows as u32,
                splits as u32,
                value_dim as u32,
                out.dtype,
            );
        }
    }
}

/// Whether [`attention`] takes keys and values of this width: the units of a cube share a row, each with as many numbers as one
/// load brings of it.
pub fn fits_attention(width: usize) -> bool {
    let chunk = [4, 2, 1].into_iter().find(|&chunk| width % chunk == 0).unwrap_or(1);
    (1..=UNITS as usize).contains(&width.div_ceil(chunk))
}

/// Numbers of a row that a unit holds: as many as a wide load brings, but few enough for registers.
fn chunk(k: &KvRows, v: &KvRows, p: &Attention, rows: usize) -> usize {
    let fits = |chunk: &usize| {
        let whole = k.divides_into(*chunk, p.key_dim) && v.divides_into(*chunk, p.value_dim);
        whole && (*chunk > 1 || !(k.halves || v.halves))
    };
    let most = if rows > 4 { 4 } else { 8 };
    [8, 4, 2, 1].into_iter().filter(|&c| c <= most).find(fits).expect("halves come in pairs")
}

/// Over how many cubes the keys of a row are split, and how many keys each takes.
fn splits<R: Runtime>(client: &ComputeClient<R>, cubes: usize, tokens: usize) -> (usize, usize) {
    let processors = client.properties().hardware.num_streaming_multiprocessors.unwrap_or(64) as usize;
    let tiles = tokens.div_ceil(TILE);
    // A split of one tile or two costs more in the second launch than it saves.
    let wanted = if tiles <= 2 { 1 } else { (2 * processors).div_ceil(cubes).min(tiles) };
    let per_split = tiles.div_ceil(wanted) * TILE;
    (tokens.div_ceil(per_split), per_split)
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn attention_kernel<F: Float, O: Float, NK: Size, NV: Size>(
    q: &Array<F>,
    k: &Array<Vector<u32, NK>>,
    v: &Array<Vector<u32, NV>>,
    left_pad: &Array<i32>,
    out: &mut Array<O>,
    cubes: u32,
    seq: u32,
    kv_heads: u32,
    group: u32,
    past: u32,
    splits: u32,
    per_split: u32,
    scale: f32,
    k_batch: u32,
    k_head: u32,
    k_token: u32,
    v_batch: u32,
    v_head: u32,
    v_token: u32,
    #[comptime] cut: Cut,
    #[define(F)] _q_type: StorageType,
    #[define(O)] _out_type: StorageType,
) {
    let cube = CUBE_POS as u32;
    if cube >= cubes {
        terminate!();
    }
    let rows = comptime!(cut.rows);
    let chunk = comptime!(cut.chunk);
    let lanes = comptime!(cut.lanes);
    let slots = comptime!(UNITS / lanes); // keys that the cube reads at once
    let tile = comptime!(TILE as u32);
    let rounds = comptime!(tile / slots);
    let plane = comptime!(cut.plane);
    let by_plane = comptime!(plane > 0 && lanes <= plane);
    let row_lanes = comptime!(UNITS / 8); // units per row in the softmax

    let mut scratch = SharedMemory::<f32>::new(comptime!((UNITS * Ord::max(rows, chunk)) as usize));
    let mut scores = SharedMemory::<f32>::new(comptime!((rows * tile) as usize));
    let mut factors = SharedMemory::<f32>::new(rows as usize);

    // cube = ((b * kv_heads + head) * tiles + row tile) * splits + split
    let all_rows = seq * group;
    let tiles = all_rows.div_ceil(rows);
    let split = cube % splits;
    let first_row = cube / splits % tiles * rows;
    let head = cube / splits / tiles % kv_heads;
    let b = cube / splits / tiles / kv_heads;
    let last_row = min(first_row + rows, all_rows) - 1;

    let mut pad = 0u32;
    if comptime!(cut.padded) {
        pad = u32::cast_from(left_pad[b as usize]);
    }
    let begin = max(pad, split * per_split);
    let end = min(past + last_row / group + 1, (split + 1) * per_split);

    let slot = UNIT_POS / lanes;
    let lane = UNIT_POS % lanes;
    let key_lane = lane * chunk < comptime!(cut.key_dim);
    let value_lane = lane * chunk < comptime!(cut.value_dim);
    let k_start = b * k_batch + head * k_head;
    let v_start = b * v_batch + head * v_head;

    // This unit's share of the queries.
    let mut queries = Array::<f32>::new(comptime!((rows * chunk) as usize));
    let mut sums = Array::<f32>::new(comptime!((rows * chunk) as usize));
    #[unroll]
    for r in 0..rows {
        let row = first_row + r;
        let known = key_lane && row < all_rows;
        let at = (((b * seq + row / group) * kv_heads + head) * group + row % group) * comptime!(cut.key_dim);
        // An unknown row reads the first numbers instead, times 0: less code than a branch.
        let at = select(known, at + lane * chunk, 0u32);
        let factor = select(known, scale, 0.0f32);
        #[unroll]
        for e in 0..chunk {
            queries[comptime!((r * chunk + e) as usize)] = f32::cast_from(q[(at + e) as usize]) * factor;
            sums[comptime!((r * chunk + e) as usize)] = 0.0f32;
        }
    }

    // In the softmax `row_lanes` units keep the statistics of a row.
    let own_row = UNIT_POS / row_lanes;
    let own_lane = UNIT_POS % row_lanes;
    let mut highest = f32::new(MASKED);
    let mut total = 0.0f32;

    let mut first = begin;
    while first < end {
        // Scores.
        for round in 0..rounds {
            let in_tile = round * slots + slot;
            let key = first + in_tile;
            let mut numbers = Array::<f32>::new(chunk as usize);
            if key_lane && key < end {
                let at = k_start + key * k_token;
                load::<NK>(k, at, lane, &mut numbers, chunk, comptime!(cut.key_halves), comptime!(cut.native));
            } else {
                clear(&mut numbers, chunk);
            }
            #[unroll]
            for r in 0..rows {
                let mut dot = 0.0f32;
                #[unroll]
                for e in 0..chunk {
                    dot += queries[comptime!((r * chunk + e) as usize)] * numbers[e as usize];
                }
                if by_plane {
                    #[unroll]
                    for step in 0..comptime!(lanes.ilog2()) {
                        dot += plane_shuffle_xor(dot, comptime!(1u32 << step));
                    }
                    if lane == 0 {
                        scores[(r * tile + in_tile) as usize] = dot;
                    }
                } else {
                    scratch[(r * UNITS + UNIT_POS) as usize] = dot;
                }
            }
            if comptime!(!by_plane) {
                sync_cube();
                let mut pair = UNIT_POS; // one of rows * slots sums
                while pair < comptime!(rows * slots) {
                    let r = pair / slots;
                    let s = pair % slots;
                    let mut dot = 0.0f32;
                    for i in 0..lanes {
                        dot += scratch[(r * UNITS + s * lanes + i) as usize];
                    }
                    scores[(r * tile + round * slots + s) as usize] = dot;
                    pair += UNITS;
                }
                sync_cube();
            }
        }
        sync_cube();

        // Running softmax: scores become weights.
        let row = first_row + own_row;
        let seen = past + row / group + 1; // keys before this
        let mut best = f32::new(MASKED);
        if own_row < rows {
            let mut i = own_lane;
            while i < tile {
                let visible = first + i < min(seen, end) && row < all_rows;
                let score = scores[(own_row * tile + i) as usize];
                if visible {
                    best = max(best, score);
                }
                i += row_lanes;
            }
        }
        let best = max(highest, max_of_lanes(best, &mut scratch, row_lanes, plane));
        let mut weights = 0.0f32;
        if own_row < rows {
            let mut i = own_lane;
            while i < tile {
                let visible = first + i < min(seen, end) && row < all_rows;
                let score = scores[(own_row * tile + i) as usize];
                let mut weight = 0.0f32;
                if visible {
                    weight = f32::exp(score - best);
                }
                weights += weight;
                scores[(own_row * tile + i) as usize] = weight;
                i += row_lanes;
            }
        }
        let weights = sum_of_lanes(weights, &mut scratch, row_lanes, plane);
        let factor = f32::exp(highest - best);
        total = total * factor + weights;
        highest = best;
        if own_lane == 0 && own_row < rows {
            factors[own_row as usize] = factor;
        }
        sync_cube();

        // Weighted values.
        #[unroll]
        for r in 0..rows {
            let factor = factors[r as usize];
            #[unroll]
            for e in 0..chunk {
                sums[comptime!((r * chunk + e) as usize)] *= factor;
            }
        }
        for round in 0..rounds {
            let in_tile = round * slots + slot;
            let key = first + in_tile;
            let mut numbers = Array::<f32>::new(chunk as usize);
            if value_lane && key < end {
                let at = v_start + key * v_token;
                load::<NV>(v, at, lane, &mut numbers, chunk, comptime!(cut.value_halves), comptime!(cut.native));
            } else {
                clear(&mut numbers, chunk);
            }
            #[unroll]
            for r in 0..rows {
                let weight = scores[(r * tile + in_tile) as usize];
                #[unroll]
                for e in 0..chunk {
                    sums[comptime!((r * chunk + e) as usize)] += weight * numbers[e as usize];
                }
            }
        }
        sync_cube();
        first += tile;
    }

    // Sums of all slots, row by row. The statistics go through the scores' memory.
    if own_lane == 0 && own_row < rows {
        scores[(2 * own_row) as usize] = total;
        scores[(2 * own_row + 1) as usize] = highest;
    }
    let width = comptime!(lanes * chunk);
    #[unroll]
    for r in 0..rows {
        #[unroll]
        for e in 0..chunk {
            scratch[(slot * width + lane * chunk + e) as usize] = sums[comptime!((r * chunk + e) as usize)];
        }
        sync_cube();
        let row = first_row + r;
        if row < all_rows {
            let at = ((b * seq + row / group) * kv_heads + head) * group + row % group;
            let total = scores[comptime!((2 * r) as usize)];
            let mut d = UNIT_POS;
            while d < comptime!(cut.value_dim) {
                let mut sum = 0.0f32;
                for s in 0..slots {
                    sum += scratch[(s * width + d) as usize];
                }
                if comptime!(cut.split) {
                    out[((at * splits + split) * comptime!(cut.value_dim + 2) + d) as usize] = O::cast_from(sum);
                } else {
                    let mut result = 0.0f32;
                    if total > 0.0 {
                        result = sum / total;
                    }
                    out[(at * comptime!(cut.value_dim) + d) as usize] = O::cast_from(result);
                }
                d += UNITS;
            }
            if comptime!(cut.split) {
                if UNIT_POS < 2 {
                    let to = (at * splits + split) * comptime!(cut.value_dim + 2) + comptime!(cut.value_dim) + UNIT_POS;
                    out[to as usize] = O::cast_from(scores[(2 * r + UNIT_POS) as usize]);
                }
            }
        }
        sync_cube();
    }
}

/// The `lane`th chunk of the row at word `at`.
#[cube]
fn load<N: Size>(
    rows: &Array<Vector<u32, N>>,
    at: u32,
    lane: u32,
    numbers: &mut Array<f32>,
    #[comptime] chunk: u32,
    #[comptime] halves: bool,
    #[comptime] native: bool,
) {
    let words = comptime!(if halves { chunk / 2 } else { chunk });
    let vector = comptime!(Ord::min(words, 4));
    let from = (at + lane * words) / vector;
    #[unroll]
    for l in 0..comptime!(words / vector) {
        let loaded = rows[(from + l) as usize];
        #[unroll]
        for i in 0..vector {
            let word = loaded[i as usize];
            let to = comptime!(l * vector + i);
            if comptime!(halves) {
                numbers[comptime!((2 * to) as usize)] = low_half(word, native);
                numbers[comptime!((2 * to + 1) as usize)] = high_half(word, native);
            } else {
                numbers[comptime!(to as usize)] = f32::reinterpret(word);
            }
        }
    }
}

#[cube]
fn clear(numbers: &mut Array<f32>, #[comptime] chunk: u32) {
    #[unroll]
    for e in 0..chunk {
        numbers[e as usize] = 0.0f32;
    }
}

/// Joins the parts of a row: `sum_i e^(m_i - m) s_i / sum_i e^(m_i - m) l_i`. A cube takes a row.
#[cube(launch_unchecked)]
fn join_kernel<O: Float>(
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
