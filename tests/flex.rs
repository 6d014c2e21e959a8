//! The suite on burn-flex.

#[macro_use]
mod suite;

type Backend = burn_flex::Flex;

whole_suite!();

#[test]
#[ignore = "long; --release -- --ignored --nocapture cached_is_uncached_everywhere"]
fn cached_is_uncached_everywhere() {
    suite::prefix::cached_is_uncached_everywhere::<Backend>(&Default::default());
}
