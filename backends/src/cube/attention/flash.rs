//! Flash attention with grouped queries over a KV cache, for one new token or many.
//!
//! A cube takes a tile of query rows that share a key head, and walks over the keys in tiles with a running softmax. Within a
//! tile of keys, neighbouring units read neighbouring numbers of a row, and groups of units take different rows. When rows
//! are too few to fill the device, the keys are split over several cubes, and a second launch joins their results.

use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::*;

use super::flash_join::join_kernel;
use super::flash_kernel::{Cut, TILE, attention_kernel};
use super::types::{Attention, KvRows};
use crate::check::elements;
use crate::cube::half::reads_halves;
use crate::cube::instructions::plane_size;
use crate::cube::launch::{Buffer, UNITS, grid};

/// Causal attention of the new tokens over all stored ones, softmax in f32. Query `i` sees tokens up to
/// `past + i`.
///
/// # Shapes
/// `q [b, s, heads, key_dim]`, `out [b, s, heads, value_dim]`.
///
/// # Panics
/// If a buffer does not have its shape, `kv_heads` does not divide `heads`, or keys and values are wider than
/// [they may be](fits_attention), or differ in width so that units share both in smaller pieces, or are odd and stored as F16.
pub fn attention<R: Runtime>(
    client: &ComputeClient<R>,
    q: &Buffer,
    k: &KvRows,
    v: &KvRows,
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
