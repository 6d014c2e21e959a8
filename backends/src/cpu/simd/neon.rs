//! aarch64 Advanced SIMD: 4 lanes, 32 registers, byte tables of 64 entries.

use super::{Kernel, Lookup, Simd, on_neon};
use std::arch::aarch64::*;

#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// The value of each word's code (0..16): its four bytes are looked up in the table of 64.
#[inline(always)]
unsafe fn pick(book: uint8x16x4_t, index: uint32x4_t) -> float32x4_t {
    // SAFETY: NEON is enabled where this is inlined.
    unsafe { vreinterpretq_f32_u8(vqtbl4q_u8(book, bytes_of(index))) }
}

/// The places of the four bytes of float `index` of a table, in each word.
#[inline(always)]
unsafe fn bytes_of(index: uint32x4_t) -> uint8x16_t {
    // SAFETY: NEON is enabled where this is inlined.
    unsafe { vreinterpretq_u8_u32(vmlaq_u32(vdupq_n_u32(0x0302_0100), index, vdupq_n_u32(0x0404_0404))) }
}

// SAFETY (every block): called only where NEON is enabled, with pointers valid for the lanes read or written, as the trait
// demands.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Neon {
    type V = float32x4_t;
    type Book = uint8x16x4_t;
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    const TABLE: Lookup = Lookup::Eight;

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: float32x4_t) {
        unsafe { vst1q_f32(to, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> float32x4_t {
        unsafe {
            let halves = vld1_u16(from);
            let floats: float32x4_t;
            // The conversion is in the base instruction set; its intrinsic needs the f16 type.
            std::arch::asm!(
                "fcvtl {floats:v}.4s, {halves:v}.4h",
                floats = lateout(vreg) floats,
                halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags)
            );
            floats
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from))) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> float32x4_t {
        unsafe {
            let bytes = vreinterpret_s8_u32(vdup_n_u32(from.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vminq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn round(v: float32x4_t) -> float32x4_t {
        unsafe { vrndnq_f32(v) }
    }
    #[inline(always)]
    unsafe fn scale_exponent(v: float32x4_t, n: float32x4_t) -> float32x4_t {
        unsafe {
            let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vmulq_f32(v, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        }
    }
    #[inline(always)]
    unsafe fn sum(v: float32x4_t) -> f32 {
        unsafe { vaddvq_f32(v) }
    }
    #[inline(always)]
    unsafe fn highest(v: float32x4_t) -> f32 {
        unsafe { vmaxvq_f32(v) }
    }
    #[inline(always)]
    unsafe fn store_sums(to: *mut f32, [a, b, c, d]: [float32x4_t; 4]) {
        unsafe { vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))) }
    }
    #[inline(always)]
    unsafe fn book(values: &[f32; 16]) -> uint8x16x4_t {
        unsafe { vld1q_u8_x4(values.as_ptr().cast()) }
    }
    #[inline(always)]
    unsafe fn permute(table: *const f32, index: float32x4_t) -> float32x4_t {
        unsafe {
            let index = vandq_u32(vreinterpretq_u32_f32(index), vdupq_n_u32(7));
            vreinterpretq_f32_u8(vqtbl2q_u8(vld1q_u8_x2(table.cast()), bytes_of(index)))
        }
    }
    #[inline(always)]
    unsafe fn lookup<const SHIFT: i32>(book: uint8x16x4_t, words: *const u8) -> float32x4_t {
        unsafe {
            let shifted = vshlq_u32(vreinterpretq_u32_u8(vld1q_u8(words)), vdupq_n_s32(-SHIFT));
            pick(book, vandq_u32(shifted, vdupq_n_u32(15)))
        }
    }
    #[inline(always)]
    unsafe fn decode_nibbles<const HIGH_FIRST: bool>(from: *const u8, book: uint8x16x4_t) -> float32x4_t {
        unsafe {
            let bytes = vreinterpret_u8_u16(vdup_n_u16(from.cast::<u16>().read_unaligned()));
            let (high, low) = (vshr_n_u8::<4>(bytes), vand_u8(bytes, vdup_n_u8(15)));
            let index = if HIGH_FIRST { vzip1_u8(high, low) } else { vzip1_u8(low, high) };
            pick(book, vmovl_u16(vget_low_u16(vmovl_u8(index))))
        }
    }
    #[inline(always)]
    unsafe fn group_scale(scales: *const f32, g: usize) -> float32x4_t {
        unsafe { vdupq_n_f32(*scales.add(g / 2)) }
    }
    #[inline(always)]
    unsafe fn apart<K: Kernel>(kernel: K) -> K::Output {
        unsafe { on_neon(kernel) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // The hint is no access: any address may be named.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(readonly, nostack, preserves_flags));
        }
    }
}
