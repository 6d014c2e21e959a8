//! AVX2 with FMA and F16C: 8 lanes, 16 registers.

use super::dot::{Dot, Maddubs};
use super::{Kernel, Lookup, Simd, on_avx2};
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// With `D` products of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<D = Maddubs>(PhantomData<D>);

/// The value of the low four bits of every word: bit 3 chooses between two tables of eight.
#[inline(always)]
unsafe fn pick(book: [__m256; 2], index: __m256i, high: __m256i) -> __m256 {
    // SAFETY: AVX2 is enabled where this is inlined.
    unsafe {
        let (a, b) = (_mm256_permutevar8x32_ps(book[0], index), _mm256_permutevar8x32_ps(book[1], index));
        _mm256_blendv_ps(a, b, _mm256_castsi256_ps(high))
    }
}

// SAFETY (every block): called only where AVX2, FMA and F16C are enabled, with pointers valid for the lanes read or written,
// as the trait demands.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<D: Dot> Simd for Avx2<D> {
    type V = __m256;
    type Book = [__m256; 2];
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const TABLE: Lookup = Lookup::Eight;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m256 {
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(v: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    unsafe fn scale_exponent(v: __m256, n: __m256) -> __m256 {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }
    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn highest(v: __m256) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn store_sums(to: *mut f32, [a, b, c, d]: [__m256; 4]) {
        unsafe {
            // In each half a0 + a2, b0 + b2, a1 + a3, b1 + b3; then a, b, c, d.
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let two = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
            _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps::<1>(two)));
        }
    }
    #[inline(always)]
    unsafe fn book(values: &[f32; 16]) -> [__m256; 2] {
        unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))] }
    }
    #[inline(always)]
    unsafe fn permute(table: *const f32, index: __m256) -> __m256 {
        // The permutation reads the low three bits of an index only.
        unsafe { _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), _mm256_castps_si256(index)) }
    }
    #[inline(always)]
    unsafe fn lookup<const SHIFT: i32>(book: [__m256; 2], words: *const u8) -> __m256 {
        // A load that starts later is a shift by whole bytes.
        unsafe {
            let words = _mm256_loadu_si256(words.add((SHIFT / 8) as usize).cast());
            let shift = SHIFT % 8;
            let index = if shift == 0 { words } else { _mm256_srl_epi32(words, _mm_cvtsi32_si128(shift)) };
            pick(book, index, _mm256_sll_epi32(words, _mm_cvtsi32_si128(28 - shift)))
        }
    }
    #[inline(always)]
    unsafe fn decode_nibbles<const HIGH_FIRST: bool>(from: *const u8, book: [__m256; 2]) -> __m256 {
        unsafe {
            let bytes = _mm_cvtsi32_si128(from.cast::<i32>().read_unaligned());
            let high = _mm_srli_epi16::<4>(bytes);
            let index = if HIGH_FIRST { _mm_unpacklo_epi8(high, bytes) } else { _mm_unpacklo_epi8(bytes, high) };
            let index = _mm256_cvtepu8_epi32(index);
            pick(book, index, _mm256_slli_epi32::<28>(index))
        }
    }
    #[inline(always)]
    unsafe fn group_scale(scales: *const f32, g: usize) -> __m256 {
        unsafe { _mm256_set1_ps(*scales.add(g)) }
    }
    #[inline(always)]
    unsafe fn apart<K: Kernel>(kernel: K) -> K::Output {
        unsafe { on_avx2(kernel) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // Into L2: rows are often a power of two apart, and would push each other and x out of L1.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
