//! The shape of an append to a key and value cache.

/// The shape of an append to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreKv {
    /// Rows of the batch.
    pub batch: usize,
    /// New tokens.
    pub seq: usize,
    /// Key/value heads.
    pub heads: usize,
    /// Tokens that the cache holds per head.
    pub capacity: usize,
    /// Elements per head and token.
    pub width: usize,
    /// The position of the first new token.
    pub at: usize,
}
