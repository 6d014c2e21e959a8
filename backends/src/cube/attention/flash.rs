//! Flash attention with grouped queries over a KV cache, for one new token or many.
//!
//! A cube takes a tile of query rows that share a key head, and walks over the keys in tiles with a running softmax. Within a
//! tile of keys, neighbouring units read neighbouring numbers of a row, and groups of units take different rows. When rows
//! are too few to fill the device, the keys are split over several cubes, and a second launch joins their results.

use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::*;

use super::flash_join::{JoinedLaunch, join_kernel};
use super::flash_kernel::{Cut, SpansLaunch, StridesLaunch, TILE, attention_kernel};
use super::types::{Attention, AttentionSpan, KvRows};
use crate::check::elements;
use crate::cube::cache::CacheBuffer;
use crate::cube::half::reads_halves;
use crate::cube::instructions::plane_size;
use crate::cube::launch::{Buffer, UNITS, grid};
use crate::cube::spans::{buffers, numbers, spans_per_launch, starts};
use crate::types::KvFormat;

/// Causal attention of the new tokens over all stored ones, softmax in f32. Query `i` sees tokens up to
/// `past + i`.
///
/// # Shapes
/// `q [b, s, heads, key_dim]`, `out [b, s, heads, value_dim]`.
///
/// # Panics
/// If a buffer does not have its shape, `kv_heads` does not divide `heads`, or keys and values are wider than
/// [they may be](fits_attention), or differ in width so that units share both in smaller pieces, or do not fill words.
pub fn attention<R: Runtime>(
    client: &ComputeClient<R>,
    q: &Buffer,
    k: &KvRows,
    v: &KvRows,
    out: &Buffer,
    p: Attention,
) {
    attention_spans(client, q, &[AttentionSpan { k, v, shape: p }], out);
}

/// [`attention`] of several sequences, whose tokens follow one another, to the last bit: in one launch for as many as the device has
/// arguments for and are cut alike.
///
/// # Shapes
/// `q [n, heads, key_dim]`, `out [n, heads, value_dim]`, `n` the tokens of all batches of all sequences.
///
/// # Panics
/// As [`attention`], or if sequences differ in more than their tokens and what is stored of them.
pub fn attention_spans<R: Runtime>(client: &ComputeClient<R>, q: &Buffer, spans: &[AttentionSpan<'_>], out: &Buffer) {
    let Some(AttentionSpan { shape, .. }) = spans.first() else { return };
    let &Attention { heads, kv_heads, key_dim, value_dim, scale, .. } = shape;
    assert!(kv_heads > 0 && heads % kv_heads == 0, "{kv_heads} key heads do not divide {heads} query heads");
    let mut tokens = 0usize;
    let firsts = spans.iter().map(|AttentionSpan { shape: p, .. }| {
        let same = (p.heads, p.kv_heads, p.key_dim, p.value_dim) == (heads, kv_heads, key_dim, value_dim);
        assert!(same && p.scale == scale, "sequences of {p:?} and of {shape:?} in one call");
        let first = tokens;
        tokens = tokens.saturating_add(elements("the tokens of a sequence", &[p.batch, p.seq]));
        first
    });
    let firsts: Vec<usize> = firsts.collect();
    q.check("q", &[tokens, heads, key_dim]);
    out.check("out", &[tokens, heads, value_dim]);
    if out.len == 0 || q.len == 0 {
        return;
    }
    let spans = spans.iter().zip(firsts).filter(|(span, _)| span.shape.batch * span.shape.seq > 0);
    let mut tasks: Vec<Task<'_>> = spans.map(|(span, first)| Task::new(client, span, first)).collect();
    while let Some(first) = tasks.first() {
        let cut = first.cut;
        let with_scales = cut.formats.iter().filter(|&&format| format == KvFormat::Q8).count();
        // Queries, results and parts are of all.
        let most = spans_per_launch(client, 2 + with_scales, 3);
        let (mut alike, others): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|task| task.cut == cut);
        let rest = alike.split_off(alike.len().min(most));
        launch(client, q, out, &alike);
        tasks = [rest, others].concat();
    }
}

/// What is computed for one sequence, and how.
#[derive(Clone)]
struct Task<'a> {
    span: AttentionSpan<'a>,
    /// The first of its tokens among the queries.
    first: usize,
    cut: Cut,
    /// Over how many cubes the keys of a row are split, and how many keys each takes.
    splits: usize,
    per_split: usize,
    cubes: usize,
}

impl<'a> Task<'a> {
    /// Of a sequence that has tokens, heads and widths.
    fn new<R: Runtime>(client: &ComputeClient<R>, span: &AttentionSpan<'a>, first: usize) -> Self {
        let &AttentionSpan { k, v, shape: p } = span;
        let Attention { batch, seq, heads, kv_heads, key_dim, value_dim, past, .. } = p;
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
            formats: [k.format(), v.format()],
            split: splits > 1,
            plane: plane_size(client),
            native: reads_halves(client),
        };
        Self { span: *span, first, cut, splits, per_split, cubes: cubes * splits }
    }

    /// Query rows.
    fn rows(&self) -> usize {
        let p = self.span.shape;
        p.batch * p.seq * p.heads
    }

    /// Results that are not final.
    fn parts(&self) -> usize {
        elements("the parts of attention", &[self.rows(), self.splits])
    }
}

/// One launch for sequences that are cut alike, and one that joins their parts.
fn launch<R: Runtime>(client: &ComputeClient<R>, q: &Buffer, out: &Buffer, tasks: &[Task<'_>]) {
    let Some(&Task { cut, span: AttentionSpan { shape, .. }, .. }) = tasks.first() else { return };
    let Attention { heads, kv_heads, value_dim, scale, .. } = shape;
    let f32 = StorageType::from(ElemType::Float(FloatKind::F32));
    let parts = cut.split.then(|| {
        let count = tasks.iter().fold(0usize, |sum, task| sum.saturating_add(task.parts()));
        let len = elements("the parts of attention", &[count, value_dim + 2]);
        Buffer::new(client.empty(len * size_of::<f32>()), len, f32)
    });
    let target = parts.as_ref().unwrap_or(out);
    let chunk = cut.chunk as usize;
    let [k_vector, v_vector] = cut.formats.map(|format| (chunk / format.per_word()).min(4));
    let sides: [for<'b> fn(&Task<'b>) -> &'b KvRows; 2] = [|task| task.span.k, |task| task.span.v];
    let data = |rows: for<'b> fn(&Task<'b>) -> &'b KvRows| tasks.iter().map(move |task| &rows(task).data);
    let scales = sides.iter().flat_map(|&rows| buffers::<R, f32>(data(rows).filter_map(CacheBuffer::scales)).values);
    let cubes = tasks.iter().fold(0usize, |sum, task| sum.saturating_add(task.cubes));
    let of = |f: fn(&Task<'_>) -> usize| numbers::<R>(tasks.iter().map(f));
    let strides = |rows: for<'b> fn(&Task<'b>) -> &'b KvRows| {
        let of =
            |f: fn(&KvRows) -> usize| numbers::<R>(tasks.iter().map(|task| rows(task).words(f(rows(task))) as usize));
        StridesLaunch::new(of(|rows| rows.batch_stride), of(|rows| rows.head_stride), of(|rows| rows.token_stride))
    };
    let spans = SpansLaunch::new(
        starts(tasks.iter().map(|task| task.cubes)),
        of(|task| task.first),
        starts(tasks.iter().map(Task::parts)),
        of(|task| task.span.shape.seq),
        of(|task| task.span.shape.past),
        of(|task| task.splits),
        of(|task| task.per_split),
        strides(sides[0]),
        strides(sides[1]),
    );
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        attention_kernel::launch_unchecked::<R>(
            client,
            grid(cubes),
            CubeDim::new_1d(UNITS),
            k_vector,
            v_vector,
            q.arg(),
            buffers(data(sides[0]).map(CacheBuffer::words)),
            buffers(data(sides[1]).map(CacheBuffer::words)),
            scales.collect(),
            target.arg(),
            spans,
            cubes as u32,
            kv_heads as u32,
            (heads / kv_heads) as u32,
            scale,
            cut,
            q.dtype,
            target.dtype,
        );
        if let Some(parts) = &parts {
            let rows = tasks.iter().map(Task::rows).sum::<usize>();
            let joined = JoinedLaunch::new(
                starts(tasks.iter().map(Task::rows)),
                numbers(tasks.iter().map(|task| task.first * heads)),
                starts(tasks.iter().map(Task::parts)),
                of(|task| task.splits),
            );
            join_kernel::launch_unchecked::<R>(
                client,
                grid(rows),
                CubeDim::new_1d(UNITS),
                parts.arg(),
                out.arg(),
                joined,
                rows as u32,
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
        whole && [k, v].iter().all(|rows| chunk % rows.format().per_word() == 0)
    };
    let most = if rows > 4 { 4 } else { 8 };
    [8, 4, 2, 1].into_iter().filter(|&c| c <= most).find(fits).expect("rows fill words")
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
