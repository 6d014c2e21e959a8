//! One vector type per instruction set behind one trait, so that a kernel is written once.
//!
//! A kernel implements [`Kernel`]; [`launch`] calls it inside a function compiled for the instruction set of a level. Every
//! function on the way must be `#[inline(always)]`, because only code inlined there is compiled for that instruction set.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod bytes;
#[cfg(target_arch = "x86_64")]
pub(crate) mod dot;
mod gelu;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod portable;

use super::Level;
use portable::Portable;

/// The floats of a table.
pub(crate) enum Lookup {
    Eight,
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Sixteen,
}

/// A vector of f32 lanes and the operations that the kernels need.
///
/// # Safety
/// The functions may only be called where the instruction set is enabled, and pointers must be valid for all lanes.
pub(crate) trait Simd: Copy {
    /// The vector.
    type V: Copy;
    /// A table of 16 floats.
    type Book: Copy;
    /// Lanes of `V`.
    const LANES: usize;
    /// Vector registers, which decide how much a kernel keeps in flight.
    const REGISTERS: usize;
    /// Floats that one instruction looks up.
    const TABLE: Lookup;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn load_f16(from: *const u16) -> Self::V;
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    unsafe fn load_i8(from: *const u8) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN, or NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN, or NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer.
    unsafe fn round(v: Self::V) -> Self::V;
    /// `v * 2^n` for whole `n` in -127..=127.
    unsafe fn scale_exponent(v: Self::V, n: Self::V) -> Self::V;
    unsafe fn sum(v: Self::V) -> f32;
    /// The largest lane; a NaN may or may not count.
    unsafe fn highest(v: Self::V) -> f32;
    /// Writes the sum of each of four vectors.
    unsafe fn store_sums(to: *mut f32, v: [Self::V; 4]);

    unsafe fn book(values: &[f32; 16]) -> Self::Book;
    /// The float that the low bits of each lane count in a table of [`Self::TABLE`].
    unsafe fn permute(table: *const f32, index: Self::V) -> Self::V;
    /// The value of the 4 bits at `SHIFT` of each of `LANES` words; may read three bytes beyond them.
    unsafe fn lookup<const SHIFT: i32>(book: Self::Book, words: *const u8) -> Self::V;
    /// The values of `LANES` consecutive codes (`LANES / 2` bytes), the high or the low nibble of a byte first.
    unsafe fn decode_nibbles<const HIGH_FIRST: bool>(from: *const u8, book: Self::Book) -> Self::V;
    /// The scale of each lane of group `g` (`LANES` words of eight codes), from one scale per 64 elements.
    unsafe fn group_scale(scales: *const f32, g: usize) -> Self::V;
    /// Asks for the cache line at `at`, which need not be readable.
    unsafe fn prefetch(at: *const u8);
    /// Runs a kernel as a function of its own, so that its constants need not share registers with what is around it.
    unsafe fn apart<K: Kernel>(kernel: K) -> K::Output;
}

/// A computation that is compiled once per instruction set.
pub(crate) trait Kernel {
    /// Its result.
    type Output;
    /// Runs on the instruction set `S`; must be `#[inline(always)]`.
    ///
    /// # Safety
    /// Only [`launch`] calls it, where `S` is enabled.
    unsafe fn call<S: Simd>(self) -> Self::Output;
}

/// Runs `kernel` on `level`.
#[inline]
pub(crate) fn launch<K: Kernel>(level: Level, kernel: K) -> K::Output {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level is only handed out when the machine has its features.
        Level::Avx512 => unsafe { on_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 | Level::AvxVnni => unsafe { on_avx2(kernel) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Level::Neon => unsafe { on_neon(kernel) },
        // SAFETY: portable code needs no feature.
        _ => unsafe { kernel.call::<Portable>() },
    }
}

/// Floats per vector on `level`.
pub(crate) fn lanes(level: Level) -> usize {
    struct Lanes;
    impl Kernel for Lanes {
        type Output = usize;
        #[inline(always)]
        unsafe fn call<S: Simd>(self) -> usize {
            S::LANES
        }
    }
    launch(level, Lanes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
unsafe fn on_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features of `Avx512` are enabled here.
    unsafe { kernel.call::<avx512::Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
unsafe fn on_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features of `Avx2` are enabled here.
    unsafe { kernel.call::<avx2::Avx2>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
#[inline(never)]
unsafe fn on_neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the feature of `Neon` is enabled here.
    unsafe { kernel.call::<neon::Neon>() }
}
