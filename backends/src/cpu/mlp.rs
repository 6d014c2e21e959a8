//! The SwiGLU feed-forward block, with rows that may be skipped.

use super::{Weight, plain};

/// The three matrices of a SwiGLU block: `gate` and `up` `[inner, hidden]`, `down` `[hidden, inner]`.
#[derive(Clone, Copy, Debug)]
pub struct Mlp<'a> {
    /// Goes through the SiLU.
    pub gate: Weight<'a>,
    /// Multiplies it.
    pub up: Weight<'a>,
    /// Back to the hidden size.
    pub down: Weight<'a>,
}

/// `y = down(silu(gate x) * up x)`.
///
/// A row whose flag in `active` is false is not computed, and its `y` is 0; without an active row no weight is read.
///
/// # Shapes
/// `x [m, hidden]`, `active [m]`, `y [m, hidden]`.
///
/// # Panics
/// If a slice does not have its shape or the matrices do not fit each other.
pub fn swiglu_mlp(x: &[f32], m: usize, mlp: &Mlp, active: Option<&[bool]>, y: &mut [f32]) {
    let (hidden, inner) = (mlp.gate.k, mlp.gate.n);
    mlp.gate.check();
    mlp.up.check();
    mlp.down.check();
    assert!(mlp.up.k == hidden && mlp.up.n == inner, "up is not [{inner}, {hidden}]");
    assert!(mlp.down.k == inner, "down has {} inputs, not {inner}", mlp.down.k);
    assert!(x.len() == m * hidden, "x has {} elements, not [{m}, {hidden}]", x.len());
    assert!(y.len() == m * mlp.down.n, "y has {} elements, not [{m}, {}]", y.len(), mlp.down.n);
    assert!(active.is_none_or(|active| active.len() == m), "active needs one flag per row");
    plain::swiglu_mlp(x, m, mlp, active, y);
}
