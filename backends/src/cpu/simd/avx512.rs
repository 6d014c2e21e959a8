//! AVX-512: 16 lanes, 32 registers, and a 16-entry float table in one register.

use super::{Kernel, Lookup, Simd, on_avx512};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx512;

// SAFETY (every block): called only where AVX-512 F, BW, DQ and VL are enabled, with pointers valid for the lanes read or
// written, as the trait demands.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    type V = __m512;
    type Book = __m512;
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const TABLE: Lookup = Lookup::Sixteen;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    unsafe fn scale_exponent(v: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(v, n) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    unsafe fn highest(v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn store_sums(to: *mut f32, [a, b, c, d]: [__m512; 4]) {
        unsafe {
            // In each quarter a0 + a2, b0 + b2, a1 + a3, b1 + b3; then a, b, c, d.
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let four = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
            let two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps::<1>(four));
            _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps::<1>(two)));
        }
    }
    #[inline(always)]
    unsafe fn book(values: &[f32; 16]) -> __m512 {
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn permute(table: *const f32, index: __m512) -> __m512 {
        // The permutation reads the low four bits of an index only.
        unsafe { _mm512_permutexvar_ps(_mm512_castps_si512(index), _mm512_loadu_ps(table)) }
    }
    #[inline(always)]
    unsafe fn lookup<const SHIFT: i32>(book: __m512, words: *const u8) -> __m512 {
        // A load that starts later is a shift by whole bytes, and the permutation reads the low four bits of an index only.
        unsafe {
            let words = _mm512_loadu_si512(words.add((SHIFT / 8) as usize).cast());
            let index = if SHIFT % 8 == 0 { words } else { _mm512_srl_epi32(words, _mm_cvtsi32_si128(SHIFT % 8)) };
            _mm512_permutexvar_ps(index, book)
        }
    }
    #[inline(always)]
    unsafe fn decode_nibbles<const HIGH_FIRST: bool>(from: *const u8, book: __m512) -> __m512 {
        unsafe {
            let bytes = _mm_loadl_epi64(from.cast());
            let high = _mm_srli_epi16::<4>(bytes);
            let index = if HIGH_FIRST { _mm_unpacklo_epi8(high, bytes) } else { _mm_unpacklo_epi8(bytes, high) };
            _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(index), book)
        }
    }
    #[inline(always)]
    unsafe fn group_scale(scales: *const f32, g: usize) -> __m512 {
        unsafe {
            let low = _mm512_set1_ps(*scales.add(2 * g));
            _mm512_mask_broadcastss_ps(low, 0xff00, _mm_load_ss(scales.add(2 * g + 1)))
        }
    }
    #[inline(always)]
    unsafe fn apart<K: Kernel>(kernel: K) -> K::Output {
        unsafe { on_avx512(kernel) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // Into L2: rows are often a power of two apart, and would push each other and x out of L1.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
