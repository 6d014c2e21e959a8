//! The suite on burn-flex.

#[macro_use]
mod suite;

type Backend = burn_flex::Flex;

whole_suite!();
