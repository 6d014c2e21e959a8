//! The shape of an append to a key and value cache.

/// Numbers of a head that share a scale in a cache of 8 bits. The last block of a head may be shorter.
pub const KV_BLOCK: usize = 64;

/// The shape of an append to the cache.
#[derive(Clone, Copy, Debug)]
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
