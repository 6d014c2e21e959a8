//! The key and value cache: its storage and the append.

use crate::check::check_len;
use crate::cpu::pool::for_each_chunk;
use crate::types::StoreKv;
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use std::sync::atomic::{AtomicBool, Ordering};

/// A borrowed cache `[b, heads, capacity, width]`.
#[derive(Clone, Copy, Debug)]
pub enum CacheSlice<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// IEEE half-precision bit patterns.
    F16(&'a [u16]),
}

/// A cache to append to, `[b, heads, capacity, width]`.
#[derive(Debug)]
pub enum CacheSliceMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// IEEE half-precision bit patterns.
    F16(&'a mut [u16]),
}

impl CacheSlice<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            CacheSlice::F32(cache) => cache.len(),
            CacheSlice::F16(cache) => cache.len(),
        }
    }
}

/// Appends `src` to the cache; halves are rounded to nearest, ties to even.
///
/// False when halves cannot hold it: a finite number from 65520 on became infinite.
///
/// # Shapes
/// `src [b, s, heads, width]`, `cache [b, heads, capacity, width]`.
///
/// # Panics
/// If a slice does not have its shape, or `at + s` exceeds the capacity.
#[must_use = "what does not fit is infinite in the cache"]
pub fn store_kv(src: &[f32], cache: CacheSliceMut, p: &StoreKv) -> bool {
    let &StoreKv { batch, seq, heads, capacity, width, at } = p;
    check_len("src", src.len(), &[batch, seq, heads, width]);
    let end = at.checked_add(seq).expect("at + s overflows");
    assert!(end <= capacity, "{seq} tokens at {at} exceed the capacity {capacity}");
    let fits = AtomicBool::new(true);
    match cache {
        CacheSliceMut::F32(cache) => append(src, cache, p, <[f32]>::copy_from_slice),
        CacheSliceMut::F16(cache) => append(src, cache, p, |cache, src| {
            cache.reinterpret_cast_mut::<f16>().convert_from_f32_slice(src);
            if holds_infinity(cache) && src.iter().any(|x| x.is_finite() && f16::from_f32(*x).is_infinite()) {
                fits.store(false, Ordering::Relaxed);
            }
        }),
    }
    fits.into_inner()
}

/// Whether one of the halves is infinite or NaN. They were just written and are read from the nearest cache: 2 bytes per number
/// beside the 4 bytes of every weight that it was made from.
fn holds_infinity(halves: &[u16]) -> bool {
    const EXPONENT: u16 = 0x7c00;
    halves.iter().fold(false, |found, &half| found | (half & EXPONENT == EXPONENT))
}

fn append<T: Send>(src: &[f32], cache: &mut [T], p: &StoreKv, store: impl Fn(&mut [T], &[f32]) + Sync) {
    let &StoreKv { batch, seq, heads, capacity, width, at } = p;
    check_len("cache", cache.len(), &[batch, heads, capacity, width]);
    if src.is_empty() {
        return;
    }
    for_each_chunk(cache, capacity * width, seq * width, |i, head| {
        let (b, h) = (i / heads, i % heads);
        for (s, token) in head[at * width..(at + seq) * width].chunks_exact_mut(width).enumerate() {
            let from = ((b * seq + s) * heads + h) * width;
            store(token, &src[from..from + width]);
        }
    });
}
