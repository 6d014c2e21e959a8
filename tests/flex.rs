//! The suite on burn-flex.

// What runs on one backend.
#![allow(dead_code)]

#[macro_use]
mod suite;

type Backend = burn_flex::Flex;

whole_suite!();

#[test]
#[ignore = "72 boundaries by 72 sizes of chunks take a minute in release and more in debug: by hand when caches change, CONTRIBUTING.md says how; five boundaries always run"]
fn cached_is_uncached_everywhere() {
    suite::prefix::cached_is_uncached_everywhere::<Backend>(&Default::default());
}
