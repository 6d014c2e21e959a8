//! The kernel of flash attention: a tile of query rows against a range of keys, with a running softmax.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cube::eight_bits::signed_byte;
use crate::cube::half::{high_half, low_half};
use crate::cube::launch::UNITS;
use crate::cube::reduce::{Lanes, max_of_lanes, sum_of_lanes};
use crate::cube::spans::{is_span, of_span, span_at};
use crate::types::{KV_BLOCK, KvFormat};

/// Keys of a tile.
pub(super) const TILE: usize = 64;

/// Below this a score was masked.
pub(super) const MASKED: f32 = -1e30;

/// What the kernel is compiled for: how its work is cut for a device and a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cut {
    /// Query rows of a cube.
    pub(super) rows: u32,
    /// Numbers of a key or value that a unit holds.
    pub(super) chunk: u32,
    /// Units that share a key or value.
    pub(super) lanes: u32,
    pub(super) key_dim: u32,
    pub(super) value_dim: u32,
    /// Of keys and of values.
    pub(super) formats: [KvFormat; 2],
    /// Results are not final: weighted sums, the highest score and the sum of weights, in F32.
    pub(super) split: bool,
    pub(super) plane: u32,
    /// Words can be read as halves.
    pub(super) native: bool,
}

impl Cut {
    fn keys(&self) -> Stored {
        let &Self { chunk, formats: [format, _], native, key_dim: width, .. } = self;
        Stored { format, width, chunk, native, first_scales: 0 }
    }

    /// Beside the keys of so many sequences.
    fn values(&self, sequences: usize) -> Stored {
        let &Self { chunk, formats: [keys, format], native, value_dim: width, .. } = self;
        let first_scales = if keys == KvFormat::Q8 { sequences } else { 0 };
        Stored { format, width, chunk, native, first_scales }
    }
}

/// How keys or values are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stored {
    format: KvFormat,
    width: u32,
    chunk: u32,
    native: bool,
    /// Where its scales begin among those of a launch.
    first_scales: usize,
}

/// What differs between the sequences of a launch.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Spans {
    /// The first cube of each.
    pub(super) cubes: Sequence<u32>,
    /// The first token of each among the queries.
    pub(super) tokens: Sequence<u32>,
    /// The first of its results, where they are not final.
    pub(super) parts: Sequence<u32>,
    /// New tokens.
    pub(super) seq: Sequence<u32>,
    /// Tokens before them.
    pub(super) past: Sequence<u32>,
    /// Over how many cubes the keys of a row are split.
    pub(super) splits: Sequence<u32>,
    /// How many keys each of them takes.
    pub(super) per_split: Sequence<u32>,
    pub(super) k: Strides,
    pub(super) v: Strides,
}

/// Words from one to the next.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Strides {
    pub(super) batch: Sequence<u32>,
    pub(super) head: Sequence<u32>,
    pub(super) token: Sequence<u32>,
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn attention_kernel<F: Float, O: Float, NK: Size, NV: Size>(
    q: &Array<F>,
    k: &Sequence<Array<Vector<u32, NK>>>,
    v: &Sequence<Array<Vector<u32, NV>>>,
    scales: &Sequence<Array<f32>>,
    out: &mut Array<O>,
    spans: &Spans,
    cubes: u32,
    kv_heads: u32,
    group: u32,
    scale: f32,
    #[comptime] cut: Cut,
    #[define(F)] _q_type: StorageType,
    #[define(O)] _out_type: StorageType,
) {
    let cube = CUBE_POS as u32;
    if cube >= cubes {
        terminate!();
    }
    let span = span_at(&spans.cubes, cube);
    let cube = cube - of_span(&spans.cubes, span);
    let (seq, past) = (of_span(&spans.seq, span), of_span(&spans.past, span));
    let (splits, per_split) = (of_span(&spans.splits, span), of_span(&spans.per_split, span));
    let first_token = of_span(&spans.tokens, span);
    let (k_token, v_token) = (of_span(&spans.k.token, span), of_span(&spans.v.token, span));
    let keys = comptime!(cut.keys());
    let values = comptime!(cut.values(k.len()));
    let rows = comptime!(cut.rows);
    let chunk = comptime!(cut.chunk);
    let lanes = comptime!(cut.lanes);
    let slots = comptime!(UNITS / lanes); // keys that the cube reads at once
    let tile = comptime!(TILE as u32);
    let rounds = comptime!(tile / slots);
    let plane = comptime!(cut.plane);
    let by_plane = comptime!(plane > 0 && lanes <= plane);
    let row_lanes = comptime!(UNITS / 8); // units per row in the softmax
    let of_row = comptime!(Lanes { count: row_lanes, plane });

    let mut scratch = SharedMemory::<f32>::new(comptime!((UNITS * Ord::max(rows, chunk)) as usize));
    let mut scores = SharedMemory::<f32>::new(comptime!((rows * tile) as usize));
    let mut factors = SharedMemory::<f32>::new(rows as usize);

    // Of a sequence, cube = ((b * kv_heads + head) * tiles + row tile) * splits + split
    let all_rows = seq * group;
    let tiles = all_rows.div_ceil(rows);
    let split = cube % splits;
    let first_row = cube / splits % tiles * rows;
    let head = cube / splits / tiles % kv_heads;
    let b = cube / splits / tiles / kv_heads;
    let last_row = min(first_row + rows, all_rows) - 1;

    let begin = split * per_split;
    let end = min(past + last_row / group + 1, (split + 1) * per_split);

    let slot = UNIT_POS / lanes;
    let lane = UNIT_POS % lanes;
    let key_lane = lane * chunk < comptime!(cut.key_dim);
    let value_lane = lane * chunk < comptime!(cut.value_dim);
    let k_start = b * of_span(&spans.k.batch, span) + head * of_span(&spans.k.head, span);
    let v_start = b * of_span(&spans.v.batch, span) + head * of_span(&spans.v.head, span);

    // This unit's share of the queries.
    let mut queries = Array::<f32>::new(comptime!((rows * chunk) as usize));
    let mut sums = Array::<f32>::new(comptime!((rows * chunk) as usize));
    #[unroll]
    for r in 0..rows {
        let row = first_row + r;
        let known = key_lane && row < all_rows;
        let token = first_token + b * seq + row / group;
        let at = ((token * kv_heads + head) * group + row % group) * comptime!(cut.key_dim);
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
                load_of::<NK>(k, scales, span, at, lane, &mut numbers, keys);
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
        let best = max(highest, max_of_lanes(best, &mut scratch, of_row));
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
        let weights = sum_of_lanes(weights, &mut scratch, of_row);
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
                load_of::<NV>(v, scales, span, at, lane, &mut numbers, values);
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
            let own = ((b * seq + row / group) * kv_heads + head) * group + row % group;
            let at = first_token * kv_heads * group + own;
            let part = (of_span(&spans.parts, span) + own * splits + split) * comptime!(cut.value_dim + 2);
            let total = scores[comptime!((2 * r) as usize)];
            let mut d = UNIT_POS;
            while d < comptime!(cut.value_dim) {
                let mut sum = 0.0f32;
                for s in 0..slots {
                    sum += scratch[(s * width + d) as usize];
                }
                if comptime!(cut.split) {
                    out[(part + d) as usize] = O::cast_from(sum);
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
                    let to = part + comptime!(cut.value_dim) + UNIT_POS;
                    out[to as usize] = O::cast_from(scores[(2 * r + UNIT_POS) as usize]);
                }
            }
        }
        sync_cube();
    }
}

/// [`load`] from the rows of one sequence.
#[cube]
fn load_of<N: Size>(
    rows: &Sequence<Array<Vector<u32, N>>>,
    scales: &Sequence<Array<f32>>,
    span: u32,
    at: u32,
    lane: u32,
    numbers: &mut Array<f32>,
    #[comptime] stored: Stored,
) {
    #[unroll]
    for i in 0..comptime!(rows.len()) {
        if is_span(span, i, comptime!(rows.len())) {
            let mut scale = 1.0f32;
            if comptime!(stored.format == KvFormat::Q8) {
                let row = at / comptime!(stored.width / 4);
                let block = lane * comptime!(stored.chunk) / comptime!(KV_BLOCK as u32);
                let of_row = comptime!(stored.width.div_ceil(KV_BLOCK as u32));
                scale = scales[comptime!(stored.first_scales + i)][(row * of_row + block) as usize];
            }
            load::<N>(&rows[i], at, lane, scale, numbers, stored);
        }
    }
}

/// The `lane`th chunk of the row at word `at`; of 8 bits, all of which are of one block, with its scale.
#[cube]
fn load<N: Size>(
    rows: &Array<Vector<u32, N>>,
    at: u32,
    lane: u32,
    scale: f32,
    numbers: &mut Array<f32>,
    #[comptime] stored: Stored,
) {
    let words = comptime!(stored.chunk / stored.format.per_word() as u32);
    let vector = comptime!(Ord::min(words, 4));
    let from = (at + lane * words) / vector;
    #[unroll]
    for l in 0..comptime!(words / vector) {
        let loaded = rows[(from + l) as usize];
        #[unroll]
        for i in 0..vector {
            let word = loaded[i as usize];
            let to = comptime!((l * vector + i) as usize);
            match comptime!(stored.format) {
                KvFormat::F32 => {
                    numbers[to] = f32::reinterpret(word);
                }
                KvFormat::F16 => {
                    numbers[comptime!(2 * to)] = low_half(word, comptime!(stored.native));
                    numbers[comptime!(2 * to + 1)] = high_half(word, comptime!(stored.native));
                }
                KvFormat::Q8 =>
                {
                    #[unroll]
                    for byte in 0..4u32 {
                        numbers[comptime!(4 * to + byte as usize)] = signed_byte(word, byte) * scale;
                    }
                }
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
