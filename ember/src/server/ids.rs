//! Names of answers, and seeds.

use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

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

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
