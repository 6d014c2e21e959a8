//! The key and value cache: its storage and the append.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::eight_bits::{block_scale, code};
use super::half::float_to_half;
use super::launch::{Buffer, UNITS, f32_type, grid_of_units};
use super::spans::{buffers, numbers, of_span, read, span_at, spans_per_launch, starts, write};
use crate::check::elements;
use crate::types::{KV_BLOCK, KvFormat, StoreKv};

/// Units that round a block of 8 bits, a word each.
const BLOCK_UNITS: u32 = KV_BLOCK as u32 / 4;

/// A store `[b, heads, capacity, width]`.
#[derive(Clone, Debug)]
pub enum CacheBuffer {
    /// F32 numbers.
    F32(Buffer),
    /// U32 words of two F16, the earlier in the low half.
    F16(Buffer),
    /// 8 bits.
    Q8 {
        /// U32 words of four signed codes above -128, the earliest in the lowest byte.
        codes: Buffer,
        /// What the codes of a block are multiplied by, F32 `[b, heads, capacity, width / KV_BLOCK]`, rounded up.
        scales: Buffer,
    },
}

impl CacheBuffer {
    /// What its numbers are stored as.
    pub fn format(&self) -> KvFormat {
        match self {
            Self::F32(_) => KvFormat::F32,
            Self::F16(_) => KvFormat::F16,
            Self::Q8 { .. } => KvFormat::Q8,
        }
    }

    /// The numbers or codes, in units of 32 bits.
    pub(super) fn words(&self) -> &Buffer {
        match self {
            Self::F32(words) | Self::F16(words) | Self::Q8 { codes: words, .. } => words,
        }
    }

    pub(super) fn scales(&self) -> Option<&Buffer> {
        if let Self::Q8 { scales, .. } = self { Some(scales) } else { None }
    }

    /// # Panics
    /// If it does not hold so many rows of numbers of such a width, which fill words.
    fn check(&self, rows: &[usize; 3], width: usize) {
        let &[b, heads, capacity] = rows;
        self.words().check("store", &[b, heads, capacity, width / self.format().per_word()]);
        self.words().check_words("store");
        if let Some(scales) = self.scales() {
            scales.check("scales of the store", &[b, heads, capacity, width.div_ceil(KV_BLOCK)]);
            scales.check_type("scales of the store", f32_type());
        }
    }
}

/// Writes new tokens into a store, in place, rounded to nearest with ties to even.
///
/// A number from 65520 on, which F16 cannot hold, becomes NaN: an infinite key could give a weight of 0, and nobody would notice. 8 bits hold
/// every finite number, the largest of a block as 127 steps; a block with a number that is not finite becomes NaN.
///
/// # Shapes
/// `new [b, s, heads, width]`, `store [b, heads, capacity, width]`.
///
/// # Panics
/// If a buffer does not have its shape, `at + s` exceeds the capacity, or rows do not fill words.
pub fn store_kv<R: Runtime>(client: &ComputeClient<R>, new: &Buffer, store: &CacheBuffer, p: StoreKv) {
    store_kv_spans(client, &[KvSide { new, stores: std::slice::from_ref(store) }], &[p]);
}

/// Keys or values of several sequences.
#[derive(Clone, Copy, Debug)]
pub struct KvSide<'a> {
    /// The new ones, `[n, heads, width]`, those of each sequence after those of the one before.
    pub new: &'a Buffer,
    /// Where those of each sequence go.
    pub stores: &'a [CacheBuffer],
}

/// [`store_kv`] of several sequences, of keys, values or both, in one launch for as many as the device has arguments for.
///
/// # Panics
/// As [`store_kv`], or if sequences have other heads or widths, sides another type or number of stores, or stores another format.
pub fn store_kv_spans<R: Runtime>(client: &ComputeClient<R>, sides: &[KvSide<'_>], shapes: &[StoreKv]) {
    let (Some(first), Some(&StoreKv { heads, width, .. })) = (sides.first(), shapes.first()) else { return };
    let Some(format) = first.stores.first().map(CacheBuffer::format) else {
        panic!("no stores of {} sequences", shapes.len())
    };
    assert!(width % format.per_word() == 0, "{format:?} of a width {width} that does not fill words");
    let words = width / format.per_word();
    // Units of a row: of 8 bits whole blocks, though the last one may be shorter.
    let units = if format == KvFormat::Q8 { words.next_multiple_of(BLOCK_UNITS as usize) } else { words };
    let items_of = |p: &StoreKv| {
        let end = p.at.checked_add(p.seq).expect("at + s overflows");
        assert!(end <= p.capacity, "{} tokens at {} exceed the capacity {}", p.seq, p.at, p.capacity);
        assert!((p.heads, p.width) == (heads, width), "sequences of {p:?} and of {:?} in one call", shapes[0]);
        elements("new words", &[p.batch, p.seq, heads, units])
    };
    let items: Vec<usize> = shapes.iter().map(items_of).collect();
    let tokens_of = |p: &StoreKv| elements("new tokens", &[p.batch, p.seq]);
    let tokens = shapes.iter().fold(0usize, |sum, p| sum.saturating_add(tokens_of(p)));
    for side in sides {
        side.new.check("new", &[tokens, heads, width]);
        side.new.check_type("new", first.new.dtype);
        assert!(side.stores.len() == shapes.len(), "{} stores of {} sequences", side.stores.len(), shapes.len());
        for (store, p) in side.stores.iter().zip(shapes) {
            assert!(store.format() == format, "stores in {:?} and in {format:?} in one call", store.format());
            store.check(&[p.batch, heads, p.capacity], width);
        }
    }
    let buffers_each = if format == KvFormat::Q8 { 2 * sides.len() } else { sides.len() };
    let most = spans_per_launch(client, buffers_each, sides.len());
    let mut before = 0;
    for (group, (items, shapes)) in items.chunks(most).zip(shapes.chunks(most)).enumerate() {
        let each = items.iter().fold(0usize, |sum, items| sum.saturating_add(*items));
        let all = elements("new words", &[sides.len(), each]);
        let stores = || sides.iter().map(|side| &side.stores[group * most..][..shapes.len()]);
        let codes = stores().flat_map(|stores| buffers::<R, u32>(stores.iter().map(CacheBuffer::words)).values);
        let scales =
            stores().flat_map(|stores| buffers::<R, u32>(stores.iter().filter_map(CacheBuffer::scales)).values);
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
                    codes.collect(),
                    scales.collect(),
                    spans,
                    all as u32,
                    each as u32,
                    before as u32,
                    heads as u32,
                    words as u32,
                    units as u32,
                    format,
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
    /// The first unit of each in the launch.
    items: Sequence<u32>,
    seq: Sequence<u32>,
    capacity: Sequence<u32>,
    at: Sequence<u32>,
}

/// A unit writes a word: the bits of a float, two halves, or four codes. There are `each` units of every side, after `before` of earlier
/// launches, and `units` of a row.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn store_kernel<F: Float>(
    new: &Sequence<Array<F>>,
    stores: &mut Sequence<Array<u32>>,
    scales: &mut Sequence<Array<u32>>,
    spans: &Spans,
    items: u32,
    each: u32,
    before: u32,
    heads: u32,
    words: u32,
    units: u32,
    #[comptime] format: KvFormat,
    #[define(F)] _new_type: StorageType,
) {
    let item = CUBE_POS as u32 * UNITS + UNIT_POS;
    let known = item < items;
    // Units that round a block meet, so none of them leaves.
    if comptime!(format != KvFormat::Q8) {
        if !known {
            terminate!();
        }
    }
    let side = item / each;
    let item = item % each;
    let span = span_at(&spans.items, item);
    let own = item - of_span(&spans.items, span);
    let seq = of_span(&spans.seq, span);
    let i = own % units;
    let head = own / units % heads;
    let token = own / units / heads;
    let slot = of_span(&spans.at, span) + token % seq;
    let row = (token / seq * heads + head) * of_span(&spans.capacity, span) + slot;
    let to = row * words + i;
    let from = (before + item) / units * words + i;
    let store = side * comptime!((stores.len() / new.len()) as u32) + span;
    match comptime!(format) {
        KvFormat::F32 => {
            write::<u32>(stores, store, to, u32::reinterpret(f32::cast_from(read::<F>(new, side, from))));
        }
        KvFormat::F16 => {
            let low = infinity_to_nan(float_to_half(f32::cast_from(read::<F>(new, side, 2 * from))));
            let high = infinity_to_nan(float_to_half(f32::cast_from(read::<F>(new, side, 2 * from + 1))));
            write::<u32>(stores, store, to, low | (high << 16));
        }
        KvFormat::Q8 => {
            let inside = known && i < words;
            let mut numbers = Array::<u32>::new(4usize);
            let mut largest = 0u32;
            #[unroll]
            for e in 0..4u32 {
                let mut number = 0u32;
                if inside {
                    number = u32::reinterpret(f32::cast_from(read::<F>(new, side, 4 * from + e)));
                }
                numbers[e as usize] = number;
                largest = max(largest, number & 0x7fff_ffff);
            }
            let scale = block_scale(largest_of_block(largest));
            if inside {
                let mut word = 0u32;
                #[unroll]
                for e in 0..4u32 {
                    word |= code(numbers[e as usize], scale) << comptime!(8 * e);
                }
                write::<u32>(stores, store, to, word);
                if i % BLOCK_UNITS == 0 {
                    write::<u32>(scales, store, row * (units / BLOCK_UNITS) + i / BLOCK_UNITS, scale);
                }
            }
        }
    }
}

/// The largest of the [`BLOCK_UNITS`] units of a block. All units of the cube must come here together.
#[cube]
fn largest_of_block(size: u32) -> u32 {
    let mut sizes = SharedMemory::<u32>::new(UNITS as usize);
    sizes[UNIT_POS as usize] = size;
    sync_cube();
    let first = UNIT_POS / BLOCK_UNITS * BLOCK_UNITS;
    let mut largest = size;
    for i in 0..BLOCK_UNITS {
        largest = max(largest, sizes[(first + i) as usize]);
    }
    largest
}

/// Infinite F16 bits made NaN.
#[cube]
fn infinity_to_nan(bits: u32) -> u32 {
    select(bits & 0x7fff == 0x7c00, bits | 0x0200, bits)
}
