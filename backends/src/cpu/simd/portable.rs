//! Eight lanes of plain Rust; the compiler vectorises what it can.

use super::{Kernel, Lookup, Simd};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(crate) struct Portable;

const N: usize = 8;

#[inline(always)]
fn zip(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

// SAFETY (every block): pointers are valid for the lanes read or written, as the trait demands.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Portable {
    type V = [f32; N];
    type Book = [f32; 16];
    const LANES: usize = N;
    const REGISTERS: usize = 8;
    const TABLE: Lookup = Lookup::Eight;

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; N] {
        [value; N]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; N] {
        unsafe { from.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: [f32; N]) {
        unsafe { to.cast::<[f32; N]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> [f32; N] {
        let halves = unsafe { from.cast::<[u16; N]>().read_unaligned() };
        halves.map(|bits| f16::from_bits(bits).to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> [f32; N] {
        let halves = unsafe { from.cast::<[u16; N]>().read_unaligned() };
        halves.map(|bits| bf16::from_bits(bits).to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> [f32; N] {
        let bytes = unsafe { from.cast::<[i8; N]>().read_unaligned() };
        bytes.map(f32::from)
    }
    #[inline(always)]
    unsafe fn add(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        // Rounded twice: a fused one would be a library call where the machine has none.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(v: [f32; N]) -> [f32; N] {
        // Exact below 2^22, where adding 1.5 * 2^23 leaves no fraction bits.
        v.map(|v| (v + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    unsafe fn scale_exponent(v: [f32; N], n: [f32; N]) -> [f32; N] {
        zip(v, n, |v, n| v * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; N]) -> f32 {
        let four: [f32; 4] = std::array::from_fn(|i| v[i] + v[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    unsafe fn highest(v: [f32; N]) -> f32 {
        // In pairs: one after the other they would wait for each other.
        let four: [f32; 4] = std::array::from_fn(|i| larger(v[i], v[i + 4]));
        larger(larger(four[0], four[2]), larger(four[1], four[3]))
    }
    #[inline(always)]
    unsafe fn store_sums(to: *mut f32, v: [[f32; N]; 4]) {
        unsafe { to.cast::<[f32; 4]>().write_unaligned(v.map(|v| Self::sum(v))) }
    }
    #[inline(always)]
    unsafe fn book(values: &[f32; 16]) -> [f32; 16] {
        *values
    }
    #[inline(always)]
    unsafe fn permute(table: *const f32, index: [f32; N]) -> [f32; N] {
        unsafe { index.map(|index| *table.add((index.to_bits() & 7) as usize)) }
    }
    #[inline(always)]
    unsafe fn lookup<const SHIFT: i32>(book: [f32; 16], words: *const u8) -> [f32; N] {
        let words = unsafe { words.cast::<[u32; N]>().read_unaligned() };
        words.map(|word| book[(u32::from_le(word) >> SHIFT & 15) as usize])
    }
    #[inline(always)]
    unsafe fn decode_nibbles<const HIGH_FIRST: bool>(from: *const u8, book: [f32; 16]) -> [f32; N] {
        let bytes = unsafe { from.cast::<[u8; N / 2]>().read_unaligned() };
        std::array::from_fn(|i| {
            let high = (i % 2 == 0) == HIGH_FIRST;
            book[(if high { bytes[i / 2] >> 4 } else { bytes[i / 2] & 15 }) as usize]
        })
    }
    #[inline(always)]
    unsafe fn group_scale(scales: *const f32, g: usize) -> [f32; N] {
        [unsafe { *scales.add(g) }; N]
    }
    #[inline(always)]
    unsafe fn apart<K: Kernel>(kernel: K) -> K::Output {
        unsafe { kernel.call::<Self>() }
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
}
