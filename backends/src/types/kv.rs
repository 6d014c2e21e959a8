//! How the cache of keys and values is divided.

/// Positions that attention reads at a time. A cache may be in several parts, all but the last of which hold a multiple of this: then a
/// read lies in one part, and the parts are the same to the last bit as the cache in one piece.
pub const KV_TILE: usize = 64;

/// Numbers of a head that share a scale in a cache of 8 bits. The last block of a head may be shorter.
pub const KV_BLOCK: usize = 64;
