//! Products of bytes, 64 at a time, where AVX-512 has no VNNI and VBMI.

use super::{Level, Simd};

/// What an instruction set does with 64 bytes.
///
/// Weights are signed bytes; with `CODES` they are codes below 16 as they are stored, which takes fewer instructions.
///
/// # Safety
/// As for [`Simd`].
pub(crate) trait Bytes: Simd {
    /// 64 bytes of weights.
    type Bytes: Copy;
    /// 64 bytes of x.
    type X: Copy;
    /// A table of 16 signed bytes.
    type Table: Copy;
    /// Whole numbers of 32 bits, as many as floats.
    type Sums: Copy;

    /// The byte that [`bytes`](Bytes::bytes) puts at a place below 64.
    fn byte_at(place: usize) -> usize;
    /// The nibble that [`nibbles`](Bytes::nibbles) puts at a place below 64, and whether it is a high one: from which byte.
    fn nibble_at(place: usize) -> (usize, bool);

    unsafe fn table(values: &[i8; 16]) -> Self::Table;
    /// 64 bytes.
    unsafe fn bytes(from: *const u8) -> Self::Bytes;
    /// The nibbles of 32 bytes: their values, or `CODES`.
    unsafe fn nibbles<const CODES: bool>(from: *const u8, table: Self::Table) -> Self::Bytes;
    /// The lowest pairs of bits of 16 bytes, then the next higher, to the highest: their values, or `CODES`.
    unsafe fn pairs<const CODES: bool>(from: *const u8, table: Self::Table) -> Self::Bytes;

    /// Bytes that [`put_x`](Bytes::put_x) writes.
    fn x_bytes(codes: bool) -> usize;
    /// Writes 64 bytes of x, all above -128, as [`x`](Bytes::x) reads them. Returns by how much a [`dot`](Bytes::dot) is too small.
    fn put_x(bytes: &[i8; 64], codes: bool, to: &mut [i8]) -> i32;
    unsafe fn x<const CODES: bool>(from: *const i8) -> Self::X;
    /// Whole numbers that add up to the product, less what [`put_x`](Bytes::put_x) returned.
    unsafe fn dot<const CODES: bool>(w: Self::Bytes, x: Self::X) -> Self::Sums;

    /// Whether stored bytes of weights are best widened to 16 bits, beside 64 such integers of x, which [`x`](Bytes::x) reads too.
    const WIDENS: bool = false;
    /// 64 stored bytes as 16-bit integers, where [that is best](Bytes::WIDENS).
    unsafe fn widened(_: *const u8) -> Self::X {
        unreachable!("bytes are multiplied as they are")
    }
    /// Whole numbers that add up to the product of [`widened`](Bytes::widened) bytes.
    unsafe fn dot_widened(_: Self::X, _: Self::X) -> Self::Sums {
        unreachable!("bytes are multiplied as they are")
    }

    /// `sums` and others, one per lane. Lane `i` of a product has what is at places `4 * i..4 * i + 4` of as many bytes as a register holds.
    unsafe fn add_sums(sums: Self::Sums, from: *const i32) -> Self::Sums;
    /// `sums + 128 * high`.
    unsafe fn add_high(sums: Self::Sums, high: Self::Sums) -> Self::Sums;
    /// As floats.
    unsafe fn floats(sums: Self::Sums) -> Self::V;
    /// The first `count` lanes, fewer than all, and zeros.
    unsafe fn first_lanes(v: Self::V, count: usize) -> Self::V;
    /// Asks for the cache line at `at`, which need not be readable, for a row of codes that is read once.
    #[inline(always)]
    unsafe fn prefetch_codes(at: *const u8) {
        // SAFETY: as for this function.
        unsafe { Self::prefetch(at) }
    }
}

/// A computation on bytes that is compiled once per instruction set.
pub(crate) trait ByteKernel {
    /// Its result.
    type Output;
    /// Runs on the instruction set `S`; must be `#[inline(always)]`.
    ///
    /// # Safety
    /// Only [`launch`] calls it, where `S` is enabled.
    unsafe fn call<S: Bytes>(self) -> Self::Output;
}

/// Whether [`launch`] can run kernels at `level` on this machine.
pub(crate) fn available(level: Level) -> bool {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => true,
        #[cfg(target_arch = "aarch64")]
        Level::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
        _ => false,
    }
}

/// Runs `kernel` on `level`.
///
/// # Panics
/// If it is not [`available`].
#[inline]
pub(crate) fn launch<K: ByteKernel>(level: Level, kernel: K) -> K::Output {
    assert!(available(level), "no byte products on {}", level.name());
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a level is only handed out when the machine has its features, and AVX-512 includes AVX2.
    return unsafe { on_avx2(kernel) };
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above, and the dot product was found.
    return unsafe { on_neon(kernel) };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = kernel;
        unreachable!("available on no other processor")
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn on_avx2<K: ByteKernel>(kernel: K) -> K::Output {
    // SAFETY: the features of `Avx2` are enabled here.
    unsafe { kernel.call::<super::avx2::Avx2>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn on_neon<K: ByteKernel>(kernel: K) -> K::Output {
    // SAFETY: the features of `Neon` and the dot product are enabled here.
    unsafe { kernel.call::<super::neon::Neon>() }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::super::avx2::Avx2;
    use super::Bytes;
    use std::arch::x86_64::*;

    // SAFETY (every block): called only where AVX2 is enabled, with pointers valid for the bytes read, as the trait demands.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Bytes for Avx2 {
        type Bytes = [__m256i; 2];
        /// Their sizes and their signs; beside codes themselves and nothing.
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
            unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast())) }
        }
        #[inline(always)]
        unsafe fn bytes(from: *const u8) -> [__m256i; 2] {
            unsafe { load(from.cast()) }
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
            if codes { 64 } else { 128 }
        }
        #[inline(always)]
        fn put_x(bytes: &[i8; 64], codes: bool, to: &mut [i8]) -> i32 {
            let (sizes, signs) = to.split_at_mut(64);
            if codes {
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
            unsafe { [load(from), if CODES { [_mm256_setzero_si256(); 2] } else { load(from.add(64)) }] }
        }
        #[inline(always)]
        unsafe fn dot<const CODES: bool>(w: [__m256i; 2], [x, signs]: [[__m256i; 2]; 2]) -> __m256i {
            unsafe {
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
        // No more than the signs take, if a second product for outliers is counted.
        const WIDENS: bool = true;
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
        #[inline(always)]
        unsafe fn add_sums(sums: __m256i, from: *const i32) -> __m256i {
            unsafe { _mm256_add_epi32(sums, _mm256_loadu_si256(from.cast())) }
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
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::super::neon::Neon;
    use super::Bytes;
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
            unsafe {
                let mut sums = vdupq_n_s32(0);
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
        unsafe fn add_sums(sums: int32x4_t, from: *const i32) -> int32x4_t {
            unsafe { vaddq_s32(sums, vld1q_s32(from)) }
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
}
