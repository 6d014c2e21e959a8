//! The instructions that multiply bytes, or words of 16 bits, and add on registers of 256 bits.

use std::arch::x86_64::*;

/// How unsigned bytes are multiplied by signed ones.
pub(crate) trait Dot: Copy {
    /// Whether four products are added to a whole number of 32 bits at once, however large they are.
    const VNNI: bool;
    /// `sums` and the products of four bytes `w`, without sign, and `x` in each lane.
    ///
    /// # Safety
    /// The processor has AVX2 and the instruction, which is one of [VNNI](Self::VNNI).
    unsafe fn add(sums: __m256i, w: __m256i, x: __m256i) -> __m256i;
    /// `sums` and the products of two signed words `w` and `x` in each lane.
    ///
    /// # Safety
    /// As for [`add`](Self::add).
    unsafe fn add_words(sums: __m256i, w: __m256i, x: __m256i) -> __m256i;
}

/// Two products in 16 bits (`vpmaddubsw`), where they fit.
#[derive(Clone, Copy)]
pub(crate) struct Maddubs;

impl Dot for Maddubs {
    const VNNI: bool = false;
    unsafe fn add(_: __m256i, _: __m256i, _: __m256i) -> __m256i {
        unreachable!("its products have sums of 16 bits")
    }
    #[inline(always)]
    unsafe fn add_words(sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(w, x)) }
    }
}

/// `sums` and products, in assembly.
macro_rules! assembly {
    ($instruction:literal, $sums:ident, $w:ident, $x:ident) => {{
        // A function of its own, since registers of 256 bits take the feature.
        #[target_feature(enable = "avx2")]
        #[inline]
        unsafe fn add(mut sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
            // SAFETY: the caller's promise; registers alone are read and written.
            unsafe {
                std::arch::asm!(
                    $instruction,
                    sums = inout(ymm_reg) sums,
                    w = in(ymm_reg) w,
                    x = in(ymm_reg) x,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            sums
        }
        // SAFETY: the caller's promise.
        unsafe { add($sums, $w, $x) }
    }};
}

/// The instructions of VNNI in their encoding. As assembly, so that the two differ in nothing else: tests with one say what the other does,
/// and a processor with the second times the first.
macro_rules! vnni {
    ($(#[$meta:meta])* $name:ident, $bytes:literal, $words:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Dot for $name {
            const VNNI: bool = true;
            #[inline(always)]
            unsafe fn add(sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
                assembly!($bytes, sums, w, x)
            }
            #[inline(always)]
            unsafe fn add_words(sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
                assembly!($words, sums, w, x)
            }
        }
    };
}
vnni! {
    /// AVX-VNNI.
    VnniVex, "{{vex}} vpdpbusd {sums}, {w}, {x}", "{{vex}} vpdpwssd {sums}, {w}, {x}"
}
vnni! {
    /// AVX-512 VNNI and VL.
    VnniEvex, "{{evex}} vpdpbusd {sums}, {w}, {x}", "{{evex}} vpdpwssd {sums}, {w}, {x}"
}
