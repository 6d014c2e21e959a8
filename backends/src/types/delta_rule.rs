//! The inputs of a gated delta rule, and their shape.

/// What a delta rule reads, for `hk` key and `hv` value heads; slices on the CPU, buffers on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct DeltaRuleInputs<T> {
    /// `[b, s, hk, dk]`, not normalised.
    pub q: T,
    /// `[b, s, hk, dk]`, not normalised.
    pub k: T,
    /// `[b, s, hv, dv]`.
    pub v: T,
    /// `[b, s, hv]`: logarithm of the decay.
    pub g: T,
    /// `[b, s, hv]`: writing strength.
    pub beta: T,
}

/// The shape of a delta rule call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaRuleShape {
    /// Rows of the batch.
    pub batch: usize,
    /// New tokens.
    pub seq: usize,
    /// Query and key heads; value head `n` uses key head `n / (value_heads / key_heads)`.
    pub key_heads: usize,
    /// Value heads, each with a state.
    pub value_heads: usize,
    /// Elements per query and key.
    pub key_dim: usize,
    /// Elements per value.
    pub value_dim: usize,
}

impl DeltaRuleShape {
    /// Elements from a token of q, k and v to the next where each is a tensor of its own.
    pub fn dense_strides(&self) -> [usize; 3] {
        let keys = self.key_heads * self.key_dim;
        [keys, keys, self.value_heads * self.value_dim]
    }
}
