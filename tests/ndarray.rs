//! The suite on burn-ndarray.

#[macro_use]
mod suite;

type Backend = burn_ndarray::NdArray<f32>;

whole_suite!();

#[test]
#[ignore = "72 boundaries by 72 sizes of chunks take a minute in release and more in debug: by hand when caches change, CONTRIBUTING.md says how; five boundaries always run"]
fn cached_is_uncached_everywhere() {
    suite::prefix::cached_is_uncached_everywhere::<Backend>(&Default::default());
}

/// The longest test of all, on one backend alone: it looks at how drafted tokens are chosen, which is the same on each.
#[test]
fn distributions_with_drafts_are_those_without() {
    suite::draft::distributions_are_those_without::<Backend>(&Default::default());
}
