//! Exponentials and activations on vectors, to a few f32 ulps, and their application to slices.

use super::Simd;
use super::gelu::gelu;

/// `e^x - 1.23e-38`, but at least 0: `e^x` with a relative error below 4e-7 from -72 on, smaller than `e^x` by 1.23e-38 below
/// that, and exactly 0 from -87.3 down (`e^-87.29` is 1.23e-38). Above 88 it stays at `e^88`, 1.65e38.
///
/// For weights that are at most 1; where the result may be large, [`exp_or_infinity`].
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: `S` is enabled, and nothing here touches memory.
    unsafe {
        // A NaN passes both bounds.
        let x = S::max(S::splat(-87.3), S::min(S::splat(88.0), x));
        let (mantissa, n) = exp_parts::<S>(x);
        // The smallest result of the polynomial is e^-87.3, not 0; without the subtraction it would show beside a huge factor.
        // A NaN passes.
        S::max(S::splat(0.0), S::sub(S::scale_exponent(mantissa, n), S::splat(1.23e-38)))
    }
}

/// `e^x`, relative error below 2e-7; infinite above 88.73 as in f32, 0 (or at most 1.2e-38) below -87.
///
/// For denominators: `x / (1 + e^-x)` must go to 0 with `-x`, not stay at `x / e^88`.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
unsafe fn exp_or_infinity<S: Simd>(x: S::V) -> S::V {
    // SAFETY: `S` is enabled, and nothing here touches memory.
    unsafe {
        // The bounds are those of n - 1 in -127..=127; e^88.8 is beyond f32. A NaN passes both.
        let x = S::max(S::splat(-87.3), S::min(S::splat(88.8), x));
        let (mantissa, n) = exp_parts::<S>(x);
        S::mul(S::scale_exponent(mantissa, S::sub(n, S::splat(1.0))), S::splat(2.0))
    }
}

/// `m` and whole `n` with `e^x = m 2^n`, `m` between 0.7 and 1.5.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
unsafe fn exp_parts<S: Simd>(x: S::V) -> (S::V, S::V) {
    // SAFETY: `S` is enabled, and nothing here touches memory.
    unsafe {
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let p = S::splat(1.987_569_1e-4);
        let p = S::fma(p, r, S::splat(1.398_2e-3));
        let p = S::fma(p, r, S::splat(8.333_452e-3));
        let p = S::fma(p, r, S::splat(4.166_579_6e-2));
        let p = S::fma(p, r, S::splat(1.666_666_5e-1));
        let p = S::fma(p, r, S::splat(0.5));
        (S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0)), n)
    }
}

/// `x / (1 + e^-x)`; 0 far below zero.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: `S` is enabled.
    unsafe { S::div(x, S::add(S::splat(1.0), exp_or_infinity::<S>(S::sub(S::splat(0.0), x)))) }
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
        S::div(x, S::add(S::splat(1.0), exp_or_infinity::<S>(S::mul(inner, S::splat(-2.0)))))
    }
}

/// A function of one vector. No closure: a closure might not be inlined where the instruction set is enabled.
pub(crate) trait Unary: Copy {
    /// # Safety
    /// `S` must be enabled.
    unsafe fn at<S: Simd>(self, a: S::V) -> S::V;
}

/// A function of two vectors.
pub(crate) trait Binary: Copy {
    /// # Safety
    /// `S` must be enabled.
    unsafe fn at<S: Simd>(self, a: S::V, b: S::V) -> S::V;
}

macro_rules! function {
    ($(#[$doc:meta])* $name:ident $(($field:ty))?, $self:ident, $a:ident => $body:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name $((pub(crate) $field))?;
        impl Unary for $name {
            #[inline(always)]
            unsafe fn at<S: Simd>($self, $a: S::V) -> S::V {
                // SAFETY: `S` is enabled.
                unsafe { $body }
            }
        }
    };
    ($(#[$doc:meta])* $name:ident $(($($field:ty),*))?, $self:ident, $a:ident, $b:ident => $body:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name $(($(pub(crate) $field),*))?;
        impl Binary for $name {
            #[inline(always)]
            unsafe fn at<S: Simd>($self, $a: S::V, $b: S::V) -> S::V {
                // SAFETY: `S` is enabled.
                unsafe { $body }
            }
        }
    };
}
function!(#[doc = "`silu(a)`"] Silu, self, a => silu::<S>(a));
function!(#[doc = "`gelu(a)`"] Gelu, self, a => gelu::<S>(a));
function!(#[doc = "The tanh approximation of `gelu(a)`"] GeluTanh, self, a => gelu_tanh::<S>(a));
function!(#[doc = "`max(a, 0)`; 0 for NaN"] Relu, self, a => S::max(a, S::splat(0.0)));
function!(#[doc = "`a * factor`"] Scale(f32), self, a => S::mul(a, S::splat(self.0)));
function!(#[doc = "`e^(a + offset)`"] ExpOffset(f32), self, a => exp::<S>(S::add(a, S::splat(self.0))));
function!(#[doc = "`silu(a) * b`"] SiluMul, self, a, b => S::mul(silu::<S>(a), b));
function!(#[doc = "`a * silu(b)`"] MulSilu, self, a, b => S::mul(a, silu::<S>(b)));
function!(#[doc = "`a * sigmoid(b)`"] MulSigmoid, self, a, b => {
    S::div(a, S::add(S::splat(1.0), exp_or_infinity::<S>(S::sub(S::splat(0.0), b))))
});
function!(#[doc = "`a + b`"] Add, self, a, b => S::add(a, b));
function!(
    #[doc = "`a * scale * (b + offset)`"]
    ScaleMul(f32, f32), self, a, b => S::mul(S::mul(a, S::splat(self.0)), S::add(b, S::splat(self.1)))
);

/// `a[i] = f(a[i], b[i])`; the last vector is padded with zeros.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn zip<S: Simd, F: Binary>(a: &mut [f32], b: &[f32], f: F) {
    let len = a.len().min(b.len());
    let whole = len / S::LANES * S::LANES;
    // SAFETY: `S` is enabled, every access is inside the slices or the padded copies.
    unsafe {
        let mut i = 0;
        while i < whole {
            let value = f.at::<S>(S::load(a.as_ptr().add(i)), S::load(b.as_ptr().add(i)));
            S::store(a.as_mut_ptr().add(i), value);
            i += S::LANES;
        }
        if whole < len {
            let (mut padded_a, mut padded_b) = ([0.0; 16], [0.0; 16]);
            padded_a[..len - whole].copy_from_slice(&a[whole..len]);
            padded_b[..len - whole].copy_from_slice(&b[whole..len]);
            let value = f.at::<S>(S::load(padded_a.as_ptr()), S::load(padded_b.as_ptr()));
            S::store(padded_a.as_mut_ptr(), value);
            a[whole..len].copy_from_slice(&padded_a[..len - whole]);
        }
    }
}

/// `sum a[i] b[i]`.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    let len = a.len().min(b.len());
    let step = 4 * S::LANES;
    // SAFETY: `S` is enabled, every access is inside the slices.
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        let mut i = 0;
        while i + step <= len {
            for v in 0..4 {
                let at = i + v * S::LANES;
                sums[v] = S::fma(S::load(a.as_ptr().add(at)), S::load(b.as_ptr().add(at)), sums[v]);
            }
            i += step;
        }
        while i + S::LANES <= len {
            sums[0] = S::fma(S::load(a.as_ptr().add(i)), S::load(b.as_ptr().add(i)), sums[0]);
            i += S::LANES;
        }
        let mut sum = S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
        while i < len {
            sum += a[i] * b[i];
            i += 1;
        }
        sum
    }
}

/// `a[i] = f(a[i])`; the last vector is padded with zeros.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn map<S: Simd, F: Unary>(a: &mut [f32], f: F) {
    let whole = a.len() / S::LANES * S::LANES;
    // SAFETY: `S` is enabled, every access is inside the slice or the padded copy.
    unsafe {
        let mut i = 0;
        while i < whole {
            S::store(a.as_mut_ptr().add(i), f.at::<S>(S::load(a.as_ptr().add(i))));
            i += S::LANES;
        }
        let rest = &mut a[whole..];
        if !rest.is_empty() {
            let mut padded = [0.0; 16];
            padded[..rest.len()].copy_from_slice(rest);
            S::store(padded.as_mut_ptr(), f.at::<S>(S::load(padded.as_ptr())));
            rest.copy_from_slice(&padded[..rest.len()]);
        }
    }
}

/// `sum a[i]`.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn total<S: Simd>(a: &[f32]) -> f32 {
    let whole = a.len() / S::LANES * S::LANES;
    // SAFETY: `S` is enabled, every access is inside the slice.
    let sums = unsafe {
        let mut sums = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            sums = S::add(sums, S::load(a.as_ptr().add(i)));
        }
        S::sum(sums)
    };
    a[whole..].iter().fold(sums, |sum, a| sum + a)
}

/// The largest `a[i]`; NaNs may or may not count.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn highest<S: Simd>(a: &[f32]) -> f32 {
    let whole = a.len() / S::LANES * S::LANES;
    // SAFETY: `S` is enabled, every access is inside the slice.
    let highest = unsafe {
        let mut highest = S::splat(f32::NEG_INFINITY);
        for i in (0..whole).step_by(S::LANES) {
            highest = S::max(highest, S::load(a.as_ptr().add(i)));
        }
        S::highest(highest)
    };
    a[whole..].iter().fold(highest, |highest, &a| if highest > a { highest } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Kernel, launch};
    use crate::cpu::{Level, plain};
    use crate::types::CodeActivation;

    struct Map<'a, F>(&'a mut [f32], F);
    impl<F: Unary> Kernel for Map<'_, F> {
        type Output = ();
        #[inline(always)]
        unsafe fn call<S: Simd>(self) {
            // SAFETY: `S` is enabled.
            unsafe { map::<S, F>(self.0, self.1) }
        }
    }

    struct Zip<'a, F>(&'a mut [f32], &'a [f32], F);
    impl<F: Binary> Kernel for Zip<'_, F> {
        type Output = ();
        #[inline(always)]
        unsafe fn call<S: Simd>(self) {
            // SAFETY: `S` is enabled.
            unsafe { zip::<S, F>(self.0, self.1, self.2) }
        }
    }

    /// From 0 to the end of f32, both signs, and closely around the ends of the exponential.
    fn whole_range() -> Vec<f32> {
        let far = (-40..128).map(|n| 2f32.powi(n) * 1.37);
        let near = (0..2000).map(|i| i as f32 * 0.05);
        let ends = (0..400).map(|i| 86.0 + i as f32 * 0.01);
        far.chain(near).chain(ends).chain([f32::MAX]).flat_map(|x| [x, -x]).collect()
    }

    /// Over the whole range of f32.
    fn check(name: &str, f: impl Unary, exact: impl Fn(f64) -> f64, relative: f64, absolute: f64) {
        check_at(&whole_range(), name, f, exact, relative, absolute);
    }

    /// Beside `exact` in f64, on every level that the machine has.
    fn check_at(x: &[f32], name: &str, f: impl Unary, exact: impl Fn(f64) -> f64, relative: f64, absolute: f64) {
        for level in Level::available() {
            let mut got = x.to_vec();
            launch(level, Map(&mut got, f));
            for (&x, got) in x.iter().zip(got) {
                let want = exact(f64::from(x));
                let error = (f64::from(got) - want).abs();
                let level = level.name();
                assert!(error <= want.abs() * relative + absolute, "{name}({x:e}) on {level}: {got:e}, not {want:e}");
            }
        }
    }

    /// Far from 0 as well as near it.
    #[test]
    fn activations_over_the_whole_range_of_f32() {
        check("silu", Silu, plain::silu, 4e-7, 1e-36);
        check("gelu", Gelu, |x| plain::activate(CodeActivation::Gelu, x), 4e-7, 1.2e-7);
        // As a sigmoid, for 1 + tanh(a) has no digits left where it is small. An ulp of a, which ends at 44, is one of 2a's e^2a.
        let tanh_gelu =
            |x: f64| x / (1.0 + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).exp());
        check("gelu_tanh", GeluTanh, tanh_gelu, 1.2e-5, 1e-35);
        check("exp", ExpOffset(0.0), |x| x.min(88.0).exp(), 1e-6, 2e-38);
    }

    /// Every piece of its table, with its ends: one of 1009 floats from 2^-30 to 8, of both signs.
    #[test]
    fn gelu_in_every_piece() {
        const EVERY: usize = 1009;
        let x: Vec<f32> = (2f32.powi(-30).to_bits()..=8f32.to_bits())
            .step_by(EVERY)
            .map(f32::from_bits)
            .flat_map(|x| [x, -x])
            .chain([0.0, -0.0])
            .collect();
        check_at(&x, "gelu", Gelu, |x| plain::activate(CodeActivation::Gelu, x), 4e-7, 1.2e-7);
        // Near 0 it is x / 2, with the precision of x.
        let small: Vec<f32> = x.iter().copied().filter(|x| x.abs() < 1e-3).collect();
        check_at(&small, "gelu near 0", Gelu, |x| plain::activate(CodeActivation::Gelu, x), 4e-7, 0.0);
        for level in Level::available() {
            let mut ends = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN];
            launch(level, Map(&mut ends, Gelu));
            let name = level.name();
            assert!(ends[..2] == [0.0, f32::INFINITY] && ends[2].is_nan(), "gelu(-inf, inf, NaN) on {name}: {ends:?}");
        }
    }

    /// A gate that is closed leaves nothing of any factor.
    #[test]
    fn closed_gates_and_weights_of_0_beside_huge_factors() {
        for level in Level::available() {
            for gate in [-89.0f32, -1e3, -1e10, -1e19, -1e30, f32::MIN] {
                let name = level.name();
                let mut y = [gate; 19];
                launch(level, Zip(&mut y, &[f32::MAX; 19], SiluMul));
                assert_eq!(y, [0.0; 19], "silu({gate:e}) on {name}");
                let mut y = [f32::MAX; 19];
                launch(level, Zip(&mut y, &[gate; 19], MulSigmoid));
                assert_eq!(y, [0.0; 19], "sigmoid({gate:e}) on {name}");
                let mut y = [gate; 19];
                launch(level, Map(&mut y, ExpOffset(0.0)));
                assert_eq!(y, [0.0; 19], "exp({gate:e}) on {name}");
            }
        }
    }
}
