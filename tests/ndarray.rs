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
    invariants::{
        prefill_is_prefill_and_decode, chunked_is_whole, chunked_is_whole_in_half_precision, batch_is_its_rows, keys_compressed_before_rotation,
        snapshot_is_untouched, reset_is_new, last_is_the_last_of_all, reserve_changes_nothing, cache_bytes_are_its_shapes,
        prompt_errors
    }
    units::{crest_ffn, crest_ffn_parts, delta_rule, nf4, nano}
    kernels::{linears, swiglu_mlp, norms, rotary, attention, delta_net, halting}
}
