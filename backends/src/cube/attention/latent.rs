//! The last layer of a code decoder, moved off the tokens.
//!
//! A key or value of head `g` is `W_g u + b_g`, with `u` shared by all heads. `q · (W_g u + b_g)` is `(W_gᵀ q) · u` and a
//! number that is the same for every token, which softmax does not see; `sum p (W_g u + b_g)` is `W_g sum p u + b_g` when
//! the weights `p` sum to 1. So attention runs on `u`, and `W` touches each query instead of each token.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cube::instructions::plane_size;
use crate::cube::launch::{Buffer, UNITS, grid};
use crate::cube::reduce::{Lanes, sum_of_lanes};

/// Units that work on one sum.
const LANES: u32 = 32;

/// The shape of a projection.
#[derive(Clone, Copy, Debug)]
pub struct HeadProjection {
    /// Queries: rows of the batch times new tokens.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head `h` uses the part `h / (heads / kv_heads)` of the weight.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements of `u`.
    pub inner: usize,
}

impl HeadProjection {
    fn check(&self, weight: &Buffer, outer: (&str, &Buffer), inner: (&str, &Buffer)) {
        let &Self { rows, heads, kv_heads, head_dim, inner: width } = self;
        assert!(kv_heads > 0 && heads % kv_heads == 0, "{kv_heads} key heads do not divide {heads} query heads");
        weight.check("weight", &[kv_heads, head_dim, width]);
        outer.1.check(outer.0, &[rows, heads, head_dim]);
        inner.1.check(inner.0, &[rows, heads, width]);
    }

    fn arg<R: Runtime>(&self) -> HeadsLaunch<R> {
        let &Self { heads, kv_heads, head_dim, inner, .. } = self;
        HeadsLaunch::new(heads as u32, (heads / kv_heads) as u32, head_dim as u32, inner as u32)
    }
}

/// A [`HeadProjection`] as the argument of a kernel.
#[derive(CubeType, CubeLaunch)]
struct Heads {
    heads: u32,
    /// Query heads that share a key head.
    group: u32,
    head_dim: u32,
    inner: u32,
}

/// `out = W_gᵀ q` for every query of head group `g`.
///
/// # Shapes
/// `q [rows, heads, head_dim]`, `weight [kv_heads * head_dim, inner]`, `out [rows, heads, inner]`.
///
/// # Panics
/// If a buffer does not have its shape.
pub fn project_queries<R: Runtime>(
    client: &ComputeClient<R>,
    q: &Buffer,
    weight: &Buffer,
    out: &Buffer,
    p: HeadProjection,
) {
    p.check(weight, ("q", q), ("out", out));
    if out.len == 0 {
        return;
    }
    let blocks = p.inner.div_ceil(UNITS as usize);
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        queries_kernel::launch_unchecked::<R>(
            client,
            grid(p.rows * p.heads * blocks),
            CubeDim::new_1d(UNITS),
            q.arg(),
            weight.arg(),
            out.arg(),
            (p.rows * p.heads * blocks) as u32,
            p.arg(),
            q.dtype,
            weight.dtype,
            out.dtype,
        );
    }
}

/// A cube makes 256 numbers of one query: neighbouring units read neighbouring columns of the weight.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn queries_kernel<F: Float, W: Float, O: Float>(
    q: &Array<F>,
    weight: &Array<W>,
    out: &mut Array<O>,
    cubes: u32,
    p: &Heads,
    #[define(F)] _q_type: StorageType,
    #[define(W)] _weight_type: StorageType,
    #[define(O)] _out_type: StorageType,
) {
    let cube = CUBE_POS as u32;
    let blocks = p.inner.div_ceil(UNITS);
    let column = cube % blocks * UNITS + UNIT_POS;
    if cube >= cubes || column >= p.inner {
        terminate!();
    }
    let query = cube / blocks; // row * heads + head
    let first = query % p.heads / p.group * p.head_dim;
    let mut sum = 0.0f32;
    for d in 0..p.head_dim {
        let w = f32::cast_from(weight[((first + d) * p.inner + column) as usize]);
        sum += f32::cast_from(q[(query * p.head_dim + d) as usize]) * w;
    }
    out[(query * p.inner + column) as usize] = O::cast_from(sum);
}

/// `out = W_g u + b_g` for every weighted sum `u` of head group `g`.
///
/// # Shapes
/// `u [rows, heads, inner]`, `weight [kv_heads * head_dim, inner]`, `bias [kv_heads * head_dim]` of the weight's type,
/// `out [rows, heads, head_dim]`.
///
/// # Panics
/// If a buffer does not have its shape.
pub fn project_values<R: Runtime>(
    client: &ComputeClient<R>,
    u: &Buffer,
    weight: &Buffer,
    bias: Option<&Buffer>,
    out: &Buffer,
    p: HeadProjection,
) {
    p.check(weight, ("out", out), ("u", u));
    if let Some(bias) = bias {
        bias.check("bias", &[p.kv_heads, p.head_dim]);
        bias.check_type("bias", weight.dtype);
    }
    if out.len == 0 {
        return;
    }
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        values_kernel::launch_unchecked::<R>(
            client,
            grid(out.len.div_ceil((UNITS / LANES) as usize)),
            CubeDim::new_1d(UNITS),
            u.arg(),
            weight.arg(),
            bias.unwrap_or(weight).arg(),
            out.arg(),
            out.len as u32,
            p.arg(),
            bias.is_some(),
            plane_size(client),
            u.dtype,
            weight.dtype,
            out.dtype,
        );
    }
}

/// [`LANES`] units make a number: neighbouring units read neighbouring numbers of a row of the weight.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn values_kernel<F: Float, W: Float, O: Float>(
    u: &Array<F>,
    weight: &Array<W>,
    bias: &Array<W>,
    out: &mut Array<O>,
    len: u32,
    p: &Heads,
    #[comptime] biased: bool,
    #[comptime] plane: u32,
    #[define(F)] _u_type: StorageType,
    #[define(W)] _weight_type: StorageType,
    #[define(O)] _out_type: StorageType,
) {
    let mut scratch = SharedMemory::<f32>::new(UNITS as usize);
    let number = CUBE_POS as u32 * comptime!(UNITS / LANES) + UNIT_POS / LANES;
    let query = number / p.head_dim; // row * heads + head
    let output = query % p.heads / p.group * p.head_dim + number % p.head_dim;
    // A number past the last takes part in the sum with nothing.
    let end = select(number < len, p.inner, 0u32);
    let mut sum = 0.0f32;
    let mut i = UNIT_POS % LANES;
    while i < end {
        let w = f32::cast_from(weight[(output * p.inner + i) as usize]);
        sum += w * f32::cast_from(u[(query * p.inner + i) as usize]);
        i += LANES;
    }
    let mut sum = sum_of_lanes(sum, &mut scratch, comptime!(Lanes { count: LANES, plane }));
    if UNIT_POS % LANES == 0 && number < len {
        if comptime!(biased) {
            sum += f32::cast_from(bias[output as usize]);
        }
        out[number as usize] = O::cast_from(sum);
    }
}
