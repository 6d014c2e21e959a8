//! Half-precision numbers in U32 words, on devices with and without a type for them.

use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::*;
use half::f16;

/// Whether a word can be read as two halves of the device's own; else they are taken apart with integer arithmetic.
/// WGSL as compiled here cannot, though it may have F16, and in MSL it was never tried.
pub(super) fn reads_halves<R: Runtime>(client: &ComputeClient<R>) -> bool {
    let halves = client.properties().supports_type(StorageType::from(ElemType::Float(FloatKind::F16)));
    halves && matches!(R::name(client), "wgpu<spirv>" | "cuda")
}

/// The earlier number of a word, in its low half.
#[cube]
pub(super) fn low_half(word: u32, #[comptime] native: bool) -> f32 {
    if comptime!(native) {
        f32::cast_from(Vector::<f16, Const<2>>::reinterpret(word)[0])
    } else {
        half_to_float(word & 0xffff)
    }
}

/// The later number of a word.
#[cube]
pub(super) fn high_half(word: u32, #[comptime] native: bool) -> f32 {
    if comptime!(native) {
        f32::cast_from(Vector::<f16, Const<2>>::reinterpret(word)[1])
    } else {
        half_to_float(word >> 16)
    }
}

/// The value of F16 bits.
#[cube]
pub(super) fn half_to_float(bits: u32) -> f32 {
    let exponent = bits & 0x7c00;
    let magnitude = (bits & 0x7fff) << 13;
    let rebased = select(exponent == 0x7c00, magnitude | 0x7f80_0000, magnitude + 0x3800_0000);
    // 2^-24 per unit: a subnormal never becomes one of f32, which devices may flush.
    let tiny = f32::cast_from(bits & 0x3ff) * 5.960_464_5e-8;
    let value = select(exponent == 0, u32::reinterpret(tiny), rebased);
    f32::reinterpret(value | ((bits & 0x8000) << 16))
}

/// F16 bits of a number, rounded to nearest, ties to even. Integer arithmetic on every device: their own conversions
/// do not all round alike.
#[cube]
pub(super) fn float_to_half(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    let rebased = magnitude - 0x3800_0000;
    let normal = (rebased + 0xfff + ((rebased >> 13) & 1)) >> 13;
    // Below 2^-14 a unit is 2^-24; adding 2^23 leaves the rounded count of units in the mantissa.
    let tiny = u32::reinterpret(f32::reinterpret(magnitude) * 16_777_216.0 + 8_388_608.0) - 0x4b00_0000;
    let too_large = select(magnitude > 0x7f80_0000, 0x7e00u32, 0x7c00u32);
    let finite = select(magnitude < 0x3880_0000, tiny, normal);
    sign | select(magnitude >= 0x4780_0000, too_large, finite)
}
