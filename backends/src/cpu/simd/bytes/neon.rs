//! Products of bytes on NEON with its dot product.

use super::Bytes;
use crate::cpu::simd::neon::Neon;
use std::arch::aarch64::*;

// SAFETY (every block): called only where NEON and its dot product are enabled, with pointers valid for the bytes read, as
// the trait demands.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Bytes for Neon {
    type Bytes = [int8x16_t; 4];
    type X = [int8x16_t; 4];
    type Table = int8x16_t;
    type Sums = int32x4_t;

    fn byte_at(place: usize) -> usize {
        place / 16 * 8 + place % 16 / 8 * 32 + place % 8
    }
    fn nibble_at(place: usize) -> (usize, bool) {
        (place % 32 / 16 * 8 + place % 16 / 8 * 16 + place % 8, place < 32)
    }
    #[inline(always)]
    unsafe fn table(values: &[i8; 16]) -> int8x16_t {
        unsafe { vld1q_s8(values.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [int8x16_t; 4] {
        unsafe {
            let halves = |at: usize| vcombine_s8(vld1_s8(from.add(at).cast()), vld1_s8(from.add(32 + at).cast()));
            [halves(0), halves(8), halves(16), halves(24)]
        }
    }
    #[inline(always)]
    unsafe fn nibbles<const CODES: bool>(from: *const u8, table: int8x16_t) -> [int8x16_t; 4] {
        unsafe {
            let halves = |at: usize| vcombine_u8(vld1_u8(from.add(at)), vld1_u8(from.add(16 + at)));
            let (a, b) = (halves(0), halves(8));
            let low = vdupq_n_u8(15);
            let codes = [vshrq_n_u8::<4>(a), vshrq_n_u8::<4>(b), vandq_u8(a, low), vandq_u8(b, low)];
            if CODES { signed(codes) } else { look_up(table, codes) }
        }
    }
    #[inline(always)]
    unsafe fn pairs<const CODES: bool>(from: *const u8, table: int8x16_t) -> [int8x16_t; 4] {
        unsafe {
            let (bytes, pair) = (vld1q_u8(from), vdupq_n_u8(3));
            let codes = [
                vandq_u8(bytes, pair),
                vandq_u8(vshrq_n_u8::<2>(bytes), pair),
                vandq_u8(vshrq_n_u8::<4>(bytes), pair),
                vshrq_n_u8::<6>(bytes),
            ];
            if CODES { signed(codes) } else { look_up(table, codes) }
        }
    }
    fn x_bytes(_: bool) -> usize {
        64
    }
    #[inline(always)]
    fn put_x(bytes: &[i8; 64], _: bool, to: &mut [i8]) -> i32 {
        to.copy_from_slice(bytes);
        0
    }
    #[inline(always)]
    unsafe fn x<const CODES: bool>(from: *const i8) -> [int8x16_t; 4] {
        unsafe { [vld1q_s8(from), vld1q_s8(from.add(16)), vld1q_s8(from.add(32)), vld1q_s8(from.add(48))] }
    }
    #[inline(always)]
    unsafe fn dot<const CODES: bool>(w: [int8x16_t; 4], x: [int8x16_t; 4]) -> int32x4_t {
        unsafe { Self::dot_onto::<CODES>(vdupq_n_s32(0), w, x) }
    }
    #[inline(always)]
    unsafe fn dot_onto<const CODES: bool>(mut sums: int32x4_t, w: [int8x16_t; 4], x: [int8x16_t; 4]) -> int32x4_t {
        unsafe {
            for i in 0..4 {
                // Its intrinsic is not stable.
                std::arch::asm!(
                    "sdot {sums:v}.4s, {w:v}.16b, {x:v}.16b",
                    sums = inout(vreg) sums,
                    w = in(vreg) w[i],
                    x = in(vreg) x[i],
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn sums(from: *const i32) -> int32x4_t {
        unsafe { vld1q_s32(from) }
    }
    #[inline(always)]
    unsafe fn add_high(sums: int32x4_t, high: int32x4_t) -> int32x4_t {
        unsafe { vaddq_s32(sums, vshlq_n_s32::<7>(high)) }
    }
    #[inline(always)]
    unsafe fn floats(sums: int32x4_t) -> float32x4_t {
        unsafe { vcvtq_f32_s32(sums) }
    }
    #[inline(always)]
    unsafe fn first_lanes(v: float32x4_t, count: usize) -> float32x4_t {
        unsafe {
            let kept = vcltq_u32(vld1q_u32([0, 1, 2, 3].as_ptr()), vdupq_n_u32(count as u32));
            vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), kept))
        }
    }
}

/// # Safety
/// NEON is enabled.
#[inline(always)]
unsafe fn signed([a, b, c, d]: [uint8x16_t; 4]) -> [int8x16_t; 4] {
    // SAFETY: the caller's promise.
    unsafe { [vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b), vreinterpretq_s8_u8(c), vreinterpretq_s8_u8(d)] }
}

/// # Safety
/// NEON is enabled.
#[inline(always)]
unsafe fn look_up(table: int8x16_t, [a, b, c, d]: [uint8x16_t; 4]) -> [int8x16_t; 4] {
    // SAFETY: the caller's promise.
    unsafe { [vqtbl1q_s8(table, a), vqtbl1q_s8(table, b), vqtbl1q_s8(table, c), vqtbl1q_s8(table, d)] }
}
