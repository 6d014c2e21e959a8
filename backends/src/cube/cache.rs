//! The append to the key and value cache.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::half::float_to_half;
use super::launch::{Buffer, UNITS, grid_of_units};
use super::spans::{buffers, numbers, of_span, read, span_at, spans_per_launch, starts, write};
use crate::check::elements;
use crate::types::StoreKv;

/// Writes new tokens into a store, in place.
///
/// With `halves` the store holds F16, two in a U32 word, rounded to nearest with ties to even; else it holds F32. A number from
/// 65520 on, which F16 cannot hold, becomes NaN: an infinite key could give a weight of 0, and nobody would notice.
///
/// # Shapes
/// `new [b, s, heads, width]`, `store [b, heads, capacity, width]` F32 or `[b, heads, capacity, width / 2]` U32.
///
/// # Panics
/// If a buffer does not have its shape, `at + s` exceeds the capacity, or halves have an odd width.
pub fn store_kv<R: Runtime>(client: &ComputeClient<R>, new: &Buffer, store: &Buffer, p: StoreKv, halves: bool) {
    store_kv_spans(client, &[KvSide { new, stores: std::slice::from_ref(store) }], &[p], halves);
}

/// Keys or values of several sequences.
#[derive(Clone, Copy, Debug)]
pub struct KvSide<'a> {
    /// The new ones, `[n, heads, width]`, those of each sequence after those of the one before.
    pub new: &'a Buffer,
    /// Where those of each sequence go.
    pub stores: &'a [Buffer],
}

/// [`store_kv`] of several sequences, of keys, values or both, in one launch for as many as the device has arguments for.
///
/// # Panics
/// As [`store_kv`], or if sequences have other heads or widths, or sides another type or number of stores.
pub fn store_kv_spans<R: Runtime>(client: &ComputeClient<R>, sides: &[KvSide<'_>], shapes: &[StoreKv], halves: bool) {
    let (Some(first), Some(&StoreKv { heads, width, .. })) = (sides.first(), shapes.first()) else { return };
    assert!(!halves || width % 2 == 0, "halves of an odd width {width}");
    let words = if halves { width / 2 } else { width };
    let items_of = |p: &StoreKv| {
        let end = p.at.checked_add(p.seq).expect("at + s overflows");
        assert!(end <= p.capacity, "{} tokens at {} exceed the capacity {}", p.seq, p.at, p.capacity);
        assert!((p.heads, p.width) == (heads, width), "sequences of {p:?} and of {:?} in one call", shapes[0]);
        elements("new words", &[p.batch, p.seq, heads, words])
    };
    let items: Vec<usize> = shapes.iter().map(items_of).collect();
    let tokens_of = |p: &StoreKv| elements("new tokens", &[p.batch, p.seq]);
    let tokens = shapes.iter().fold(0usize, |sum, p| sum.saturating_add(tokens_of(p)));
    for side in sides {
        side.new.check("new", &[tokens, heads, width]);
        side.new.check_type("new", first.new.dtype);
        assert!(side.stores.len() == shapes.len(), "{} stores of {} sequences", side.stores.len(), shapes.len());
        for (store, p) in side.stores.iter().zip(shapes) {
            store.check("store", &[p.batch, heads, p.capacity, words]);
            store.check_words("store");
        }
    }
    let most = spans_per_launch(client, sides.len(), sides.len());
    let mut before = 0;
    for (group, (items, shapes)) in items.chunks(most).zip(shapes.chunks(most)).enumerate() {
        let each = items.iter().fold(0usize, |sum, items| sum.saturating_add(*items));
        let all = elements("new words", &[sides.len(), each]);
        let first_span = group * most;
        let stores = sides.iter().flat_map(|side| buffers::<R, u32>(&side.stores[first_span..][..shapes.len()]).values);
        let of = |f: fn(&StoreKv) -> usize| numbers::<R>(shapes.iter().map(f));
        let spans = SpansLaunch::new(starts(items.iter().copied()), of(|p| p.seq), of(|p| p.capacity), of(|p| p.at));
        if all > 0 {
            // SAFETY: the lengths were checked, and the kernel stays inside them.
            unsafe {
                store_kernel::launch_unchecked::<R>(
                    client,
                    grid_of_units(all),
                    CubeDim::new_1d(UNITS),
                    sides.iter().map(|side| side.new.arg()).collect(),
                    stores.collect(),
                    spans,
                    all as u32,
                    each as u32,
                    before as u32,
                    heads as u32,
                    words as u32,
                    halves,
                    first.new.dtype,
                );
            }
        }
        before += each;
    }
}

/// What differs between the sequences of a launch.
#[derive(CubeType, CubeLaunch)]
struct Spans {
    /// The first word of each in the launch.
    items: Sequence<u32>,
    seq: Sequence<u32>,
    capacity: Sequence<u32>,
    at: Sequence<u32>,
}

/// A unit writes a word: two halves, or the bits of a float. There are `each` words of every side, after `before` of earlier launches.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn store_kernel<F: Float>(
    new: &Sequence<Array<F>>,
    stores: &mut Sequence<Array<u32>>,
    spans: &Spans,
    items: u32,
    each: u32,
    before: u32,
    heads: u32,
    words: u32,
    #[comptime] halves: bool,
    #[define(F)] _new_type: StorageType,
) {
    let item = CUBE_POS as u32 * UNITS + UNIT_POS;
    if item >= items {
        terminate!();
    }
    let side = item / each;
    let item = item % each;
    let span = span_at(&spans.items, item);
    let own = item - of_span(&spans.items, span);
    let seq = of_span(&spans.seq, span);
    let i = own % words;
    let head = own / words % heads;
    let token = own / words / heads;
    let slot = of_span(&spans.at, span) + token % seq;
    let to = ((token / seq * heads + head) * of_span(&spans.capacity, span) + slot) * words + i;
    let from = before + item;
    let store = side * comptime!((stores.len() / new.len()) as u32) + span;
    if comptime!(halves) {
        let low = infinity_to_nan(float_to_half(f32::cast_from(read::<F>(new, side, 2 * from))));
        let high = infinity_to_nan(float_to_half(f32::cast_from(read::<F>(new, side, 2 * from + 1))));
        write::<u32>(stores, store, to, low | (high << 16));
    } else {
        write::<u32>(stores, store, to, u32::reinterpret(f32::cast_from(read::<F>(new, side, from))));
    }
}

/// Infinite F16 bits made NaN.
#[cube]
fn infinity_to_nan(bits: u32) -> u32 {
    select(bits & 0x7fff == 0x7c00, bits | 0x0200, bits)
}
