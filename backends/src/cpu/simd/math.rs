//! Exponentials and activations on vectors, to a few f32 ulps.

use super::Simd;

/// `e^x`, relative error below 2e-7; 0 below -87.3, where f32 has no normal numbers left, and large above 88.3.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: `S` is enabled, and nothing here touches memory.
    unsafe {
        // A NaN passes both bounds.
        let x = S::max(S::splat(-87.3), S::min(S::splat(88.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let p = S::splat(1.987_569_1e-4);
        let p = S::fma(p, r, S::splat(1.398_2e-3));
        let p = S::fma(p, r, S::splat(8.333_452e-3));
        let p = S::fma(p, r, S::splat(4.166_579_6e-2));
        let p = S::fma(p, r, S::splat(1.666_666_5e-1));
        let p = S::fma(p, r, S::splat(0.5));
        let p = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        S::scale_exponent(p, n)
    }
}

/// `x / (1 + e^-x)`.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: `S` is enabled.
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x)))) }
}

/// `x Φ(x)`; the complementary error function by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: `S` is enabled.
    unsafe {
        let magnitude = S::max(S::sub(S::splat(0.0), x), x);
        let z = S::mul(magnitude, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(S::splat(1.0), S::fma(z, S::splat(0.327_591_1), S::splat(1.0)));
        let p = S::splat(1.061_405_4);
        let p = S::fma(p, t, S::splat(-1.453_152));
        let p = S::fma(p, t, S::splat(1.421_413_8));
        let p = S::fma(p, t, S::splat(-0.284_496_74));
        let p = S::fma(p, t, S::splat(0.254_829_6));
        let complement = S::mul(S::mul(p, t), exp::<S>(S::mul(S::sub(S::splat(0.0), z), z)));
        let half = S::mul(S::splat(0.5), S::mul(magnitude, complement));
        S::sub(S::max(S::splat(0.0), x), half)
    }
}

/// The tanh approximation of GELU.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: `S` is enabled.
    unsafe {
        let cube = S::mul(S::mul(x, x), x);
        let inner = S::mul(S::fma(cube, S::splat(0.044_715), x), S::splat(0.797_884_6));
        // 0.5 x (1 + tanh a) = x / (1 + e^-2a)
        S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(inner, S::splat(-2.0)))))
    }
}
