//! An exponential whose result is the same on every platform.
//!
//! `f32::exp` calls the system's library, which differs in the last bit between systems; a draw at the border between two tokens
//! would then depend on the platform. This is plain multiplication and addition, and the compiler vectorises it.

/// `e^x` for `x <= 0`, within 2 units in the last place; 0 below about -87, where `f32` leaves its normal range.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the first has few bits, so that `n * LN2_HIGH` is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const LOWEST: f32 = -87.0;
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits. Unlike `round` it is one instruction.
    const ROUND: f32 = 12_582_912.0;

    let clamped = if x > LOWEST { x } else { LOWEST };
    let rounded = clamped * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // Taylor series of e^r for |r| <= ln(2)/2, as in Cephes' expf.
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_65;
    p = p * r + 0.5;
    let mantissa = p * r * r + r + 1.0;
    // 2^n through the exponent bits; n lies in -126..=0 here.
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits());
    let scale = f32::from_bits(exponent.wrapping_add(127) << 23);
    if x > LOWEST { mantissa * scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn agrees_with_f64_over_the_whole_range() {
        let mut worst = 0.0f64;
        for i in 0..=86_999 {
            let x = -(i as f32) * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.4e-7, "relative error {worst:e}");
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
    }
}
