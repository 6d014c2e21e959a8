//! The suite on burn-ndarray.

mod suite;

type Backend = burn_ndarray::NdArray<f32>;

/// One test per function of the suite.
macro_rules! suite {
    ($($module:ident :: { $($name:ident),* })*) => {$(
        mod $module {
            $(#[test] fn $name() { crate::suite::$module::$name::<crate::Backend>(&Default::default()) })*
        }
    )*};
}

suite! {
    golden::{whole_pass, greedy, prefill_cache, decode_through_the_cache, overrides, rounded, half_precision_cache}
    kernels::{linears, swiglu_mlp, norms, rotary, attention, delta_net, halting}
}
