//! The SwiGLU feed-forward block, with rows that may be skipped.

use super::elementwise::zip;
use super::simd::math;
use super::{Weight, level, run};
use crate::check::{check_len, elements};
use crate::cpu::matmul::int8::Input;
use crate::cpu::matmul::linear::compute;
use crate::cpu::matmul::types::Product;
use crate::cpu::pool::with_scratch;

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
    let (hidden, inner, out) = (mlp.gate.k, mlp.gate.n, mlp.down.n);
    mlp.gate.check();
    mlp.up.check();
    mlp.down.check();
    assert!(mlp.up.k == hidden && mlp.up.n == inner, "up is not [{inner}, {hidden}]");
    assert!(mlp.down.k == inner, "down has {} inputs, not {inner}", mlp.down.k);
    check_len("x", x.len(), &[m, hidden]);
    check_len("y", y.len(), &[m, out]);
    // Between the matrices: where x and y are empty, nothing else bounds it.
    elements("the inner activations", &[2, m, inner]);
    if let Some(active) = active {
        check_len("active", active.len(), &[m]);
    }
    let Some(active) = active.filter(|active| active.contains(&false)) else {
        return block(x, m, mlp, y);
    };
    y.fill(0.0);
    let rows: Vec<usize> = (0..m).filter(|&i| active[i]).collect();
    if rows.is_empty() {
        return;
    }
    with_scratch(rows.len() * (hidden + out), |scratch| {
        let (gathered, results) = scratch.split_at_mut(rows.len() * hidden);
        for (&i, to) in rows.iter().zip(gathered.chunks_exact_mut(hidden.max(1))) {
            to.copy_from_slice(&x[i * hidden..(i + 1) * hidden]);
        }
        block(gathered, rows.len(), mlp, results);
        for (&i, from) in rows.iter().zip(results.chunks_exact(out.max(1))) {
            y[i * out..(i + 1) * out].copy_from_slice(from);
        }
    });
}

fn block(x: &[f32], m: usize, mlp: &Mlp, y: &mut [f32]) {
    let (level, precision, inner) = (level(), super::precision(), mlp.gate.n);
    // One hand-over to the pool for the whole block; what the calling thread has chosen goes along.
    run(|| {
        let block = || {
            with_scratch(2 * m * inner, |scratch| {
                let (gate, up) = scratch.split_at_mut(m * inner);
                let to_gate = Product { weight: mlp.gate, bias: None, y: gate };
                compute(x, m, Input::Usual, &mut [to_gate, Product { weight: mlp.up, bias: None, y: up }]);
                zip(level, gate, up, math::SiluMul);
                compute(gate, m, Input::Gated, &mut [Product { weight: mlp.down, bias: None, y }]);
            });
        };
        super::with_level(level, || super::with_precision(precision, block));
    });
}
