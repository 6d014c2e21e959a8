//! Rotary position embedding.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{Buffer, UNITS, grid_of_units};
use super::spans::{buffers, numbers, of_span, read, span_at, spans_per_launch, starts, write};
use crate::check::elements;
use crate::types::RotaryShape;

/// A [`RotaryShape`] as the argument of a kernel, of several tensors that differ in their heads alone.
#[derive(CubeType, CubeLaunch)]
struct Shape {
    /// Pairs and elements of the rest, of all tensors.
    items: u32,
    /// The first item of each tensor.
    starts: Sequence<u32>,
    heads: Sequence<u32>,
    seq: u32,
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
    rotary_all(client, &[RotaryHeads { x, heads: p.heads, y }], cos, sin, p);
}

/// One of several tensors of the same tokens.
#[derive(Clone, Copy, Debug)]
pub struct RotaryHeads<'a> {
    /// `[b, s, heads, head_dim]`
    pub x: &'a Buffer,
    /// Its own, whatever the [`RotaryShape`] says.
    pub heads: usize,
    /// As `x`.
    pub y: &'a Buffer,
}

/// [`rotary`] of several tensors, in one launch for as many as the device has arguments for.
///
/// # Shapes
/// As there, all of one type.
///
/// # Panics
/// As there.
pub fn rotary_all<R: Runtime>(
    client: &ComputeClient<R>,
    tensors: &[RotaryHeads<'_>],
    cos: &Buffer,
    sin: &Buffer,
    p: RotaryShape,
) {
    let RotaryShape { batch, seq, head_dim, half, .. } = p;
    let Some(first) = tensors.first() else { return };
    assert!(half <= head_dim / 2, "{half} pairs in a head of {head_dim}");
    for RotaryHeads { x, heads, y } in tensors {
        x.check("x", &[batch, seq, *heads, head_dim]);
        y.check("y", &[batch, seq, *heads, head_dim]);
        x.check_type("x", first.x.dtype);
        y.check_type("y", first.x.dtype);
    }
    cos.check("cos", &[seq, half]);
    sin.check("sin", &[seq, half]);
    sin.check_type("sin", cos.dtype);
    let tensors: Vec<_> = tensors.iter().filter(|tensor| !tensor.x.is_empty()).collect();
    for tensors in tensors.chunks(spans_per_launch(client, 2, 2)) {
        // A unit turns a pair or copies an element of the rest.
        let items = tensors.iter().map(|tensor| batch * seq * tensor.heads * (head_dim - half));
        let all = elements("pairs", &[items.clone().fold(0usize, usize::saturating_add)]);
        let heads = numbers(tensors.iter().map(|tensor| tensor.heads));
        let shape = ShapeLaunch::new(all as u32, starts(items), heads, seq as u32, head_dim as u32, half as u32);
        // SAFETY: the lengths were checked, and the kernel stays inside them.
        unsafe {
            rotary_kernel::launch_unchecked::<R>(
                client,
                grid_of_units(all),
                CubeDim::new_1d(UNITS),
                buffers(tensors.iter().map(|tensor| tensor.x)),
                cos.arg(),
                sin.arg(),
                buffers(tensors.iter().map(|tensor| tensor.y)),
                shape,
                first.x.dtype,
                cos.dtype,
            );
        }
    }
}

#[cube(launch_unchecked)]
fn rotary_kernel<F: Float, T: Float>(
    x: &Sequence<Array<F>>,
    cos: &Array<T>,
    sin: &Array<T>,
    y: &mut Sequence<Array<F>>,
    p: &Shape,
    #[define(F)] _x_type: StorageType,
    #[define(T)] _table_type: StorageType,
) {
    let item = CUBE_POS as u32 * UNITS + UNIT_POS;
    if item >= p.items {
        terminate!();
    }
    let tensor = span_at(&p.starts, item);
    let item = item - of_span(&p.starts, tensor);
    let half = p.half;
    let per_head = p.head_dim - half;
    let head = item / per_head;
    let i = item % per_head;
    let at = head * p.head_dim + i;
    if i < half {
        let angle = (head / of_span(&p.heads, tensor) % p.seq * half + i) as usize;
        let (c, s) = (f32::cast_from(cos[angle]), f32::cast_from(sin[angle]));
        let a = f32::cast_from(read::<F>(x, tensor, at));
        let b = f32::cast_from(read::<F>(x, tensor, at + half));
        write::<F>(y, tensor, at, F::cast_from(a * c - b * s));
        write::<F>(y, tensor, at + half, F::cast_from(b * c + a * s));
    } else {
        write::<F>(y, tensor, at + half, read::<F>(x, tensor, at + half));
    }
}
