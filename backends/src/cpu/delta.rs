//! The gated delta rule: a fast-weight state per head, decayed and corrected by every token.

use super::plain;

/// The shape of a delta rule call.
#[derive(Clone, Copy, Debug)]
pub struct DeltaRule {
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

/// Runs the gated delta rule over `s` tokens and leaves the state after the last one.
///
/// With `k` and `q` normalised to unit length (`x * rsqrt(sum x² + 1e-6)`) and `q` divided by `sqrt(dk)`, per token and
/// value head: `S *= e^g; d = beta (v - Sᵀ k); S += k dᵀ; o = Sᵀ q`. All f32.
///
/// # Shapes
/// `q`, `k`: `[b, s, hk, dk]`, not normalised; `v`, `o`: `[b, s, hv, dv]`; `g` (log decay), `beta`: `[b, s, hv]`;
/// `state [b, hv, dk, dv]`.
///
/// # Panics
/// If a slice does not have its shape, or `key_heads` does not divide `value_heads`.
#[allow(clippy::too_many_arguments)]
pub fn gated_delta_rule(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    g: &[f32],
    beta: &[f32],
    state: &mut [f32],
    p: &DeltaRule,
    o: &mut [f32],
) {
    let tokens = p.batch * p.seq;
    let (keys, values) = (tokens * p.key_heads * p.key_dim, tokens * p.value_heads * p.value_dim);
    assert!(p.key_heads > 0 && p.value_heads.is_multiple_of(p.key_heads), "key_heads must divide value_heads");
    assert!(q.len() == keys, "q has {} elements, not {keys}", q.len());
    assert!(k.len() == keys, "k has {} elements, not {keys}", k.len());
    assert!(v.len() == values, "v has {} elements, not {values}", v.len());
    assert!(o.len() == values, "o has {} elements, not {values}", o.len());
    assert!(g.len() == tokens * p.value_heads, "g has {} elements, not [b, s, hv]", g.len());
    assert!(beta.len() == g.len(), "beta has {} elements, g {}", beta.len(), g.len());
    let states = p.batch * p.value_heads * p.key_dim * p.value_dim;
    assert!(state.len() == states, "state has {} elements, not {states}", state.len());
    if states == 0 || tokens == 0 {
        return;
    }
    plain::gated_delta_rule(q, k, v, g, beta, state, p, o);
}
