//! Names of answers, and seeds.

use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Number;

/// 64 bits that nobody has seen before.
pub fn fresh() -> u64 {
    // Every `RandomState` has keys of its own, from the system's randomness.
    RandomState::new().hash_one(0u8)
}

/// A name that was not used before, such as `chatcmpl-1b4e...`.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:08x}", fresh(), fresh() >> 32)
}

/// A seed that JSON keeps: below 2^53.
pub fn new_seed() -> u64 {
    fresh() >> 11
}

/// The seed of the `i`th answer of a request. Those that are told with a sign leave out -1, which asks for a fresh one.
pub fn nth_seed(seed: u64, i: usize, signed: bool) -> u64 {
    let i = i as u64;
    let passes = signed && u64::MAX - seed <= i;
    seed.wrapping_add(i).wrapping_add(u64::from(passes))
}

/// A seed as it is told: with a sign where the request has one. Given again it repeats its answer.
pub fn told_seed(seed: u64, signed: bool) -> Number {
    if signed { seed.cast_signed().into() } else { seed.into() }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
