//! The append to the key and value cache.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::half::float_to_half;
use super::launch::{Buffer, UNITS, grid_of_units};
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
    let StoreKv { batch, seq, heads, capacity, width, at } = p;
    let end = at.checked_add(seq).expect("at + s overflows");
    assert!(end <= capacity, "{seq} tokens at {at} exceed the capacity {capacity}");
    assert!(!halves || width % 2 == 0, "halves of an odd width {width}");
    let words = if halves { width / 2 } else { width };
    new.check("new", &[batch, seq, heads, width]);
    store.check("store", &[batch, heads, capacity, words]);
    store.check_words("store");
    let items = elements("new words", &[batch, seq, heads, words]);
    if items == 0 {
        return;
    }
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        store_kernel::launch_unchecked::<R>(
            client,
            grid_of_units(items),
            CubeDim::new_1d(UNITS),
            new.arg(),
            store.arg(),
            items as u32,
            seq as u32,
            heads as u32,
            capacity as u32,
            words as u32,
            at as u32,
            halves,
            new.dtype,
        );
    }
}

/// A unit writes a word: two halves, or the bits of a float.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn store_kernel<F: Float>(
    new: &Array<F>,
    store: &mut Array<u32>,
    items: u32,
    seq: u32,
    heads: u32,
    capacity: u32,
    words: u32,
    at: u32,
    #[comptime] halves: bool,
    #[define(F)] _new_type: StorageType,
) {
    let item = CUBE_POS as u32 * UNITS + UNIT_POS;
    if item >= items {
        terminate!();
    }
    let i = item % words;
    let head = item / words % heads;
    let token = item / words / heads;
    let to = ((token / seq * heads + head) * capacity + at + token % seq) * words + i;
    if comptime!(halves) {
        let low = infinity_to_nan(float_to_half(f32::cast_from(new[(2 * item) as usize])));
        let high = infinity_to_nan(float_to_half(f32::cast_from(new[(2 * item + 1) as usize])));
        store[to as usize] = low | (high << 16);
    } else {
        store[to as usize] = u32::reinterpret(f32::cast_from(new[item as usize]));
    }
}

/// Infinite F16 bits made NaN.
#[cube]
fn infinity_to_nan(bits: u32) -> u32 {
    select(bits & 0x7fff == 0x7c00, bits | 0x0200, bits)
}
