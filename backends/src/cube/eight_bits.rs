//! Numbers of 8 bits with a scale for a block, rounded as on the CPU.
//!
//! Integer arithmetic on every device: their divisions do not all round to nearest, and some take subnormal numbers for zero.

use cubecl::prelude::*;

/// The bits of the largest number there is.
const LARGEST: u32 = 0x7f7f_ffff;

/// Of what is not finite.
const NAN: u32 = 0x7fc0_0000;

/// The F32 bits of the scale of a block, `largest / 127`, by those of the size of its largest number; NaN where that is not finite.
#[cube]
pub(super) fn block_scale(largest: u32) -> u32 {
    let (exponent, mantissa) = (exponent_of(largest), mantissa_of(largest));
    // So that the quotient has 24 bits, as far as it is not subnormal.
    let shift = min(select(mantissa < comptime!(127u32 << 17), 7u32, 6u32), exponent - 1);
    // An odd divisor leaves no ties.
    let rounded = ((mantissa << shift) + 63) / 127;
    select(largest > LARGEST, NAN, ((exponent - 1 - shift) << 23) + rounded)
}

/// The code of a number in a byte, by the F32 bits of both: `x / scale` rounded to F32, then to a whole number up to 127, ties to even
/// both times; 0 where the scale is NaN or both are 0.
#[cube]
pub(super) fn code(x: u32, scale: u32) -> u32 {
    let size = x & 0x7fff_ffff;
    let (exponent, scale_exponent) = (exponent_of(size) + 1, exponent_of(scale));
    let divisor = max(mantissa_of(scale), 1u32);
    // Twice the number in units of the scale's last bit; less than a quarter of the scale rounds to 0.
    let twice = select(exponent >= scale_exponent, mantissa_of(size) << ((exponent - scale_exponent) & 31), 0u32);
    let halves = twice / divisor;
    let rest = twice - halves * divisor;
    // What lies between two whole numbers, in halves, and how far it is, in halves of the unit.
    let middle = halves | 1;
    let off = select(halves & 1 == 1, rest, divisor - rest);
    // F32 has no number between the middle and what is so near.
    let tie = off <= divisor >> (middle.leading_zeros() - 7);
    let rounded = min(select(tie, ((middle >> 1) + 1) & 0xfffe, (halves + 1) >> 1), 127u32);
    let beside_zero = select(size > 0, 127u32, 0u32);
    let known = select(scale == 0, beside_zero, rounded);
    let code = select(scale > LARGEST, 0u32, known);
    select(x >> 31 == 1, 256 - code, code) & 0xff
}

/// The exponent of a size in bits, as if subnormal numbers had that of the smallest others.
#[cube]
fn exponent_of(size: u32) -> u32 {
    max(size >> 23, 1u32)
}

/// The number is so many times 2 to the power of its exponent less 150.
#[cube]
fn mantissa_of(size: u32) -> u32 {
    (size & 0x007f_ffff) | select(size >> 23 > 0, 0x0080_0000u32, 0u32)
}

/// Code `i` of a word, the one in the lowest byte first.
#[cube]
pub(super) fn signed_byte(word: u32, #[comptime] i: u32) -> f32 {
    f32::cast_from(i32::reinterpret(word << comptime!(24 - 8 * i)) >> 24)
}
