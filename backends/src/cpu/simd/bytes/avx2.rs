//! Products of bytes on AVX2: with its own instructions, or with those of VNNI on the same registers.

use super::Bytes;
use crate::cpu::level::{Level, has_vnni_of_avx, has_vnni_of_avx512};
use crate::cpu::simd::avx2::Avx2;
use crate::cpu::simd::dot::Dot;
use std::arch::x86_64::*;

/// Which [`Dot`] a level takes on this machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instruction {
    /// [`Maddubs`](crate::cpu::simd::dot::Maddubs).
    Maddubs,
    /// [`VnniVex`](crate::cpu::simd::dot::VnniVex).
    VnniVex,
    /// [`VnniEvex`](crate::cpu::simd::dot::VnniEvex).
    VnniEvex,
}

impl Instruction {
    /// The best.
    pub(crate) fn of(level: Level) -> Instruction {
        match level {
            Level::AvxVnni | Level::Avx512 if has_vnni_of_avx() => Instruction::VnniVex,
            Level::AvxVnni | Level::Avx512 if has_vnni_of_avx512() => Instruction::VnniEvex,
            _ => Instruction::Maddubs,
        }
    }

    /// Whether it is of VNNI.
    pub(crate) fn is_vnni(self) -> bool {
        self != Instruction::Maddubs
    }
}

// SAFETY (every block): called only where AVX2 is enabled and the processor has the instruction of `D`, with pointers valid for the bytes
// read, as the trait demands.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<D: Dot> Bytes for Avx2<D> {
    type Bytes = [__m256i; 2];
    /// Their sizes and their signs; beside what has no sign themselves and nothing.
    type X = [[__m256i; 2]; 2];
    type Table = __m256i;
    type Sums = __m256i;

    fn byte_at(place: usize) -> usize {
        place
    }
    fn nibble_at(place: usize) -> (usize, bool) {
        (place % 32, place < 32)
    }
    #[inline(always)]
    unsafe fn table(values: &[i8; 16]) -> __m256i {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast()));
            if D::VNNI { without_sign(table) } else { table }
        }
    }
    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [__m256i; 2] {
        unsafe {
            let [a, b] = load(from.cast());
            if D::VNNI { [without_sign(a), without_sign(b)] } else { [a, b] }
        }
    }
    #[inline(always)]
    unsafe fn nibbles<const CODES: bool>(from: *const u8, table: __m256i) -> [__m256i; 2] {
        unsafe {
            let bytes = _mm256_loadu_si256(from.cast());
            let low = _mm256_set1_epi8(15);
            let codes = [_mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low), _mm256_and_si256(bytes, low)];
            if CODES { codes } else { look_up(table, codes) }
        }
    }
    #[inline(always)]
    unsafe fn pairs<const CODES: bool>(from: *const u8, table: __m256i) -> [__m256i; 2] {
        unsafe {
            let bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast()));
            let pair = _mm256_set1_epi8(3);
            let first = _mm256_srlv_epi32(bytes, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2));
            let second = _mm256_srlv_epi32(bytes, _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6));
            let codes = [_mm256_and_si256(first, pair), _mm256_and_si256(second, pair)];
            if CODES { codes } else { look_up(table, codes) }
        }
    }
    fn x_bytes(codes: bool) -> usize {
        if codes || D::VNNI { 64 } else { 128 }
    }
    #[inline(always)]
    fn put_x(bytes: &[i8; 64], codes: bool, to: &mut [i8]) -> i32 {
        let (sizes, signs) = to.split_at_mut(64);
        if codes || D::VNNI {
            sizes.copy_from_slice(bytes);
            return 0;
        }
        let mut negative = 0;
        for ((byte, size), sign) in bytes.iter().zip(sizes).zip(signs) {
            (*size, *sign) = (byte.wrapping_abs(), byte >> 7);
            negative += i32::from(*size & *sign);
        }
        negative
    }
    #[inline(always)]
    unsafe fn x<const CODES: bool>(from: *const i8) -> [[__m256i; 2]; 2] {
        let one_part = CODES || D::VNNI;
        unsafe { [load(from), if one_part { [_mm256_setzero_si256(); 2] } else { load(from.add(64)) }] }
    }
    #[inline(always)]
    unsafe fn dot<const CODES: bool>(w: [__m256i; 2], [x, signs]: [[__m256i; 2]; 2]) -> __m256i {
        unsafe {
            if D::VNNI {
                return D::add(D::add(_mm256_setzero_si256(), w[0], x[0]), w[1], x[1]);
            }
            let ones = _mm256_set1_epi16(1);
            if CODES {
                // Four products of 15 * 127 fit 16 bits.
                let pairs = [_mm256_maddubs_epi16(w[0], x[0]), _mm256_maddubs_epi16(w[1], x[1])];
                return _mm256_madd_epi16(_mm256_add_epi16(pairs[0], pairs[1]), ones);
            }
            // One factor must have no sign: the other takes it over. Its complement is one above its negative, which makes the
            // product too small by x, and unlike that does not overflow. Two products of 128 * 127 fit 16 bits.
            let w = [_mm256_xor_si256(w[0], signs[0]), _mm256_xor_si256(w[1], signs[1])];
            let pairs = [_mm256_maddubs_epi16(x[0], w[0]), _mm256_maddubs_epi16(x[1], w[1])];
            _mm256_add_epi32(_mm256_madd_epi16(pairs[0], ones), _mm256_madd_epi16(pairs[1], ones))
        }
    }
    #[inline(always)]
    unsafe fn dot_onto<const CODES: bool>(sums: __m256i, w: [__m256i; 2], x: [[__m256i; 2]; 2]) -> __m256i {
        unsafe {
            if D::VNNI {
                return D::add(D::add(sums, w[0], x[0][0]), w[1], x[0][1]);
            }
            _mm256_add_epi32(sums, Self::dot::<CODES>(w, x))
        }
    }
    const UNSIGNED: bool = D::VNNI;
    // No more than the signs take, if a second product for outliers is counted.
    const WIDENS: bool = !D::VNNI;
    #[inline(always)]
    unsafe fn widened(from: *const u8) -> [[__m256i; 2]; 2] {
        unsafe {
            let widened = |i: usize| _mm256_cvtepi8_epi16(_mm_loadu_si128(from.add(16 * i).cast()));
            [[widened(0), widened(1)], [widened(2), widened(3)]]
        }
    }
    #[inline(always)]
    unsafe fn dot_widened([a, b]: [[__m256i; 2]; 2], [x, y]: [[__m256i; 2]; 2]) -> __m256i {
        unsafe {
            let first = _mm256_add_epi32(_mm256_madd_epi16(a[0], x[0]), _mm256_madd_epi16(a[1], x[1]));
            let second = _mm256_add_epi32(_mm256_madd_epi16(b[0], y[0]), _mm256_madd_epi16(b[1], y[1]));
            _mm256_add_epi32(first, second)
        }
    }
    /// Pairs of 16 bits take every second byte of a register, then those between.
    #[inline(always)]
    fn put_words(words: &[i16; 64], to: &mut [i8]) -> i32 {
        for (i, to) in to.chunks_exact_mut(2).enumerate() {
            let (register, lane) = (i / 16, i % 16);
            let word = words[register / 2 * 32 + 2 * lane + register % 2];
            to.copy_from_slice(&word.to_le_bytes().map(|byte| byte as i8));
        }
        // The weights lose their sign for the time.
        words.iter().map(|&word| -128 * i32::from(word)).sum()
    }
    #[inline(always)]
    unsafe fn dot_words(w: [__m256i; 2], from: *const i8) -> __m256i {
        unsafe {
            let pairs = |i: usize, w: __m256i| _mm256_madd_epi16(w, _mm256_loadu_si256(from.add(32 * i).cast()));
            let products = |i: usize, w: __m256i| {
                let w = without_sign(w);
                let (even, odd) = (_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srli_epi16::<8>(w));
                _mm256_add_epi32(pairs(i, even), pairs(i + 1, odd))
            };
            _mm256_add_epi32(products(0, w[0]), products(2, w[1]))
        }
    }
    #[inline(always)]
    unsafe fn sums(from: *const i32) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn add_high(sums: __m256i, high: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(sums, _mm256_slli_epi32::<7>(high)) }
    }
    #[inline(always)]
    unsafe fn floats(sums: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(sums) }
    }
    #[inline(always)]
    unsafe fn first_lanes(v: __m256, count: usize) -> __m256 {
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes);
            _mm256_and_ps(v, _mm256_castsi256_ps(kept))
        }
    }
    #[inline(always)]
    unsafe fn prefetch_codes(at: *const u8) {
        // Into L1, unlike what the kernels in f32 read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// 64 bytes.
///
/// # Safety
/// AVX2 is enabled, and `from` is valid for them.
#[inline(always)]
unsafe fn load(from: *const i8) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
}

/// # Safety
/// AVX2 is enabled.
#[inline(always)]
unsafe fn look_up(table: __m256i, codes: [__m256i; 2]) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe { [_mm256_shuffle_epi8(table, codes[0]), _mm256_shuffle_epi8(table, codes[1])] }
}

/// Signed bytes and 128.
///
/// # Safety
/// AVX2 is enabled.
#[inline(always)]
pub(crate) unsafe fn without_sign(bytes: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_xor_si256(bytes, _mm256_set1_epi8(-128)) }
}
