//! Products of bytes, 64 at a time, where AVX-512 has no VNNI and VBMI.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
use super::dot::{Dot, Maddubs, VnniEvex, VnniVex};
use super::{Level, Simd};
#[cfg(target_arch = "x86_64")]
use avx2::Instruction;

/// What an instruction set does with 64 bytes.
///
/// Weights are signed bytes, or [unsigned](Bytes::UNSIGNED) ones; with `CODES` they are codes below 16 as they are stored, which takes fewer
/// instructions.
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
    /// [`dot`](Bytes::dot) and `sums`.
    unsafe fn dot_onto<const CODES: bool>(sums: Self::Sums, w: Self::Bytes, x: Self::X) -> Self::Sums;

    /// Whether bytes of weights, like codes, have no sign: they are too large by the offset of their storage.
    const UNSIGNED: bool = false;

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
    /// Writes 64 integers of x, beside bytes that are looked up, as [`dot_words`](Bytes::dot_words) reads them, where widening
    /// [is best](Bytes::WIDENS). Returns by how much a product is too small.
    fn put_words(_: &[i16; 64], _: &mut [i8]) -> i32 {
        unreachable!("bytes are multiplied as they are")
    }
    /// Whole numbers that add up to the product with such integers, less what [`put_words`](Bytes::put_words) returned.
    unsafe fn dot_words(_: Self::Bytes, _: *const i8) -> Self::Sums {
        unreachable!("bytes are multiplied as they are")
    }

    /// One per lane. Lane `i` of a product has what is at places `4 * i..4 * i + 4` of as many bytes as a register holds.
    unsafe fn sums(from: *const i32) -> Self::Sums;
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
        Level::Avx2 | Level::AvxVnni | Level::Avx512 => true,
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
    // SAFETY: a level is only handed out when the machine has its features, all of these levels include AVX2, and the machine has the
    // instruction.
    return unsafe {
        match Instruction::of(level) {
            Instruction::Maddubs => on_avx2::<K, Maddubs>(kernel),
            Instruction::VnniVex => on_avx2::<K, VnniVex>(kernel),
            Instruction::VnniEvex => on_avx2::<K, VnniEvex>(kernel),
        }
    };
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
unsafe fn on_avx2<K: ByteKernel, D: Dot>(kernel: K) -> K::Output {
    // SAFETY: the features of `Avx2` are enabled here, and `D` was found.
    unsafe { kernel.call::<super::avx2::Avx2<D>>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn on_neon<K: ByteKernel>(kernel: K) -> K::Output {
    // SAFETY: the features of `Neon` and the dot product are enabled here.
    unsafe { kernel.call::<super::neon::Neon>() }
}
