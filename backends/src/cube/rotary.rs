//! Rotary position embedding.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{Buffer, UNITS, grid_of_units};
use crate::types::RotaryShape;

/// A [`RotaryShape`] as the argument of a kernel.
#[derive(CubeType, CubeLaunch)]
struct Shape {
    /// Pairs and elements of the rest.
    items: u32,
    seq: u32,
    heads: u32,
    head_dim: u32,
    half: u32,
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)` for the first `2 half` elements of each head; the rest is copied.
///
/// # Shapes
/// `x, y [b, s, heads, head_dim]` of one type, `cos, sin [s, half]` of one type.
///
/// # Panics
/// If a buffer does not have its shape and type, or `2 half` exceeds the head.
pub fn rotary<R: Runtime>(
    client: &ComputeClient<R>,
    x: &Buffer,
    cos: &Buffer,
    sin: &Buffer,
    y: &Buffer,
    p: RotaryShape,
) {
    let RotaryShape { batch, seq, heads, head_dim, half } = p;
    assert!(half <= head_dim / 2, "{half} pairs in a head of {head_dim}");
    x.check("x", &[batch, seq, heads, head_dim]);
    y.check("y", &[batch, seq, heads, head_dim]);
    cos.check("cos", &[seq, half]);
    sin.check("sin", &[seq, half]);
    y.check_type("y", x.dtype);
    sin.check_type("sin", cos.dtype);
    if x.len == 0 {
        return;
    }
    // A unit turns a pair or copies an element of the rest.
    let items = batch * seq * heads * (head_dim - half);
    let shape = ShapeLaunch::new(items as u32, seq as u32, heads as u32, head_dim as u32, half as u32);
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        rotary_kernel::launch_unchecked::<R>(
            client,
            grid_of_units(items),
            CubeDim::new_1d(UNITS),
            x.arg(),
            cos.arg(),
            sin.arg(),
            y.arg(),
            shape,
            x.dtype,
            cos.dtype,
        );
    }
}

#[cube(launch_unchecked)]
fn rotary_kernel<F: Float, T: Float>(
    x: &Array<F>,
    cos: &Array<T>,
    sin: &Array<T>,
    y: &mut Array<F>,
    p: &Shape,
    #[define(F)] _x_type: StorageType,
    #[define(T)] _table_type: StorageType,
) {
    let item = CUBE_POS as u32 * UNITS + UNIT_POS;
    if item >= p.items {
        terminate!();
    }
    let half = p.half;
    let per_head = p.head_dim - half;
    let head = item / per_head;
    let i = item % per_head;
    let at = head * p.head_dim + i;
    if i < half {
        let angle = (head / p.heads % p.seq * half + i) as usize;
        let (c, s) = (f32::cast_from(cos[angle]), f32::cast_from(sin[angle]));
        let a = f32::cast_from(x[at as usize]);
        let b = f32::cast_from(x[(at + half) as usize]);
        y[at as usize] = F::cast_from(a * c - b * s);
        y[(at + half) as usize] = F::cast_from(b * c + a * s);
    } else {
        y[(at + half) as usize] = x[(at + half) as usize];
    }
}
