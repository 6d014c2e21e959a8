//! The key and value cache: its storage and the append.

use crate::check::check_len;
use crate::cpu::memory::{LARGE, collapse_pages};
use crate::cpu::pool::for_each_chunk;
use crate::types::{KV_BLOCK, StoreKv};
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
    /// 8 bits.
    Q8 {
        /// Signed, above -128.
        codes: &'a [i8],
        /// What the codes of a block are multiplied by, `[b, heads, capacity, width / KV_BLOCK]`, rounded up.
        scales: &'a [f32],
    },
}

/// A cache to append to, `[b, heads, capacity, width]`.
#[derive(Debug)]
pub enum CacheSliceMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// IEEE half-precision bit patterns.
    F16(&'a mut [u16]),
    /// 8 bits.
    Q8 {
        /// As in [`CacheSlice`].
        codes: &'a mut [i8],
        /// As in [`CacheSlice`].
        scales: &'a mut [f32],
    },
}

impl CacheSlice<'_> {
    /// Numbers.
    pub(crate) fn len(&self) -> usize {
        match self {
            CacheSlice::F32(cache) => cache.len(),
            CacheSlice::F16(cache) => cache.len(),
            CacheSlice::Q8 { codes, .. } => codes.len(),
        }
    }

    /// Checks that every block of its rows of `width` numbers has a scale.
    pub(crate) fn check_scales(&self, width: usize) {
        if let CacheSlice::Q8 { codes, scales } = self {
            let rows = codes.len().checked_div(width).unwrap_or_default();
            check_len("the scales of the cache", scales.len(), &[rows, width.div_ceil(KV_BLOCK)]);
        }
    }
}

/// Appends `src` to the cache; halves and codes of 8 bits are rounded to nearest, ties to even.
///
/// False when halves cannot hold it: a finite number from 65520 on became infinite. 8 bits hold every finite number, the largest of a block as
/// 127 steps; a block with a number that is not finite becomes NaN.
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
        CacheSliceMut::F32(cache) => {
            append(src, cache, p, <[f32]>::copy_from_slice);
            settle(cache, p);
        }
        CacheSliceMut::F16(cache) => {
            append(src, cache, p, |cache, src| {
                cache.reinterpret_cast_mut::<f16>().convert_from_f32_slice(src);
                if holds_infinity(cache) && src.iter().any(|x| x.is_finite() && f16::from_f32(*x).is_infinite()) {
                    fits.store(false, Ordering::Relaxed);
                }
            });
            settle(cache, p);
        }
        CacheSliceMut::Q8 { codes, scales } => {
            let blocks = width.div_ceil(KV_BLOCK);
            check_len("cache", codes.len(), &[batch, heads, capacity, width]);
            check_len("the scales of the cache", scales.len(), &[batch, heads, capacity, blocks]);
            // The scales are a 64th of the codes: rounding twice costs less than tasks that write to two slices.
            append(src, codes, p, round);
            append_scales(src, scales, p, blocks);
            settle(codes, p);
        }
    }
    fits.into_inner()
}

/// Puts a long cache on large pages from time to time, once half of it is in use: attention reads all of it for every token. A page is not taken
/// before something in it is written, so a short text in a long cache takes what it fills.
fn settle<T>(cache: &mut [T], p: &StoreKv) {
    /// Tokens after which it is looked at again.
    const EVERY: usize = 256;
    /// What a cache of a few pages would gain is not worth it.
    const FEWEST: usize = 4;
    let end = p.at + p.seq;
    if end / EVERY != p.at / EVERY && 2 * end >= p.capacity && size_of_val(cache) >= FEWEST * LARGE {
        collapse_pages(cache);
    }
}

/// Whether one of the halves is infinite or NaN. They were just written and are read from the nearest cache: 2 bytes per number
/// beside the 4 bytes of every weight that it was made from.
fn holds_infinity(halves: &[u16]) -> bool {
    const EXPONENT: u16 = 0x7c00;
    halves.iter().fold(false, |found, &half| found | (half & EXPONENT == EXPONENT))
}

/// What the codes of a block are multiplied by; NaN where a number is not finite.
fn block_scale(block: &[f32]) -> f32 {
    let (mut largest, mut finite) = ([0.0f32; 8], [true; 8]);
    for some in block.chunks(8) {
        for ((x, largest), finite) in some.iter().zip(&mut largest).zip(&mut finite) {
            let size = x.abs();
            *largest = if size > *largest { size } else { *largest };
            *finite &= size <= f32::MAX;
        }
    }
    let largest = largest.into_iter().fold(0.0, f32::max);
    if finite == [true; 8] { largest / 127.0 } else { f32::NAN }
}

/// The codes of the numbers of a head.
fn round(codes: &mut [i8], src: &[f32]) {
    for (codes, block) in codes.chunks_mut(KV_BLOCK).zip(src.chunks(KV_BLOCK)) {
        let scale = block_scale(block);
        for (code, x) in codes.iter_mut().zip(block) {
            // Adding 1.5 * 2^23 leaves no fraction bits. A NaN, of zeros or of a scale that is one, becomes 0.
            *code = (((x / scale).clamp(-127.0, 127.0) + 12_582_912.0) - 12_582_912.0) as i8;
        }
    }
}

fn append_scales(src: &[f32], scales: &mut [f32], p: &StoreKv, blocks: usize) {
    let &StoreKv { batch, seq, heads, capacity, width, at } = p;
    for (i, head) in scales.chunks_exact_mut((capacity * blocks).max(1)).enumerate().take(batch * heads) {
        let (b, h) = (i / heads, i % heads);
        for (s, token) in head[at * blocks..(at + seq) * blocks].chunks_exact_mut(blocks).enumerate() {
            let from = ((b * seq + s) * heads + h) * width;
            for (scale, block) in token.iter_mut().zip(src[from..from + width].chunks(KV_BLOCK)) {
                *scale = block_scale(block);
            }
        }
    }
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
