//! The shape of a rotation.

/// The shape of a rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotaryShape {
    /// Rows of the batch.
    pub batch: usize,
    /// Tokens.
    pub seq: usize,
    /// Heads of a token.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Pairs that turn, the first `half` elements of a head against the second.
    pub half: usize,
}
