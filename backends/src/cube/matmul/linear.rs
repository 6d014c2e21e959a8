//! Linear layers: `y = x Wᵀ + b`.
//!
//! Up to [`GEMV_MAX_ROWS`] rows of `x`, the units of a cube share a few rows of `W` along k, so that neighbouring units read neighbouring
//! words, and every weight is unpacked once. More rows of `x` go in tiles ([`super::tiled`]), several layers of the same `x` in one launch
//! ([`super::linears`]).

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cube::instructions::plane_size;
use crate::cube::launch::{Buffer, f32_type, grid};
use crate::cube::matmul::tiled;
use crate::cube::matmul::types::{GatedLinear, Linear, eight_of_x};
use crate::cube::matmul::weight::{Four, Packed, Weight, eight, row_factor, shared_code_book, stored_row, unit_factor};

/// The crossover of GEMV and GEMM: up to so many rows of `x` weights are streamed, beyond it they are tiled.
pub(super) const GEMV_MAX_ROWS: usize = 8;

/// `y = x Wᵀ + b`.
///
/// # Shapes
/// `x [m, k]`, `weight [n, k]`, `y [m, n]`, `x` and `y` of one type
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn linear<R: Runtime>(client: &ComputeClient<R>, x: &Buffer, m: usize, weight: &Weight, y: &Buffer, p: Linear<'_>) {
    check(x, m, weight, y, p);
    if y.len == 0 {
        return;
    }
    if m <= GEMV_MAX_ROWS {
        vector(client, x, m, weight, None, y, p);
    } else {
        tiled::linear(client, x, m, weight, y, p);
    }
}

/// `y = silu(x Gᵀ) * (x Uᵀ)`: gate and up of a SwiGLU block.
///
/// # Shapes
/// `x [m, k]`, `gate, up [n, k]`, `active [m]`, `y [m, n]`, `x` and `y` of one type
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn gated_linear<R: Runtime>(client: &ComputeClient<R>, x: &Buffer, m: usize, layers: GatedLinear<'_>, y: &Buffer) {
    let GatedLinear { gate, up, active } = layers;
    let p = Linear { bias: None, active };
    check(x, m, gate, y, p);
    check(x, m, up, y, p);
    if y.len == 0 {
        return;
    }
    if m <= GEMV_MAX_ROWS {
        vector(client, x, m, gate, Some(up), y, p);
    } else {
        tiled::gated_linear(client, x, m, layers, y);
    }
}

pub(super) fn check(x: &Buffer, m: usize, weight: &Weight, y: &Buffer, p: Linear<'_>) {
    weight.check();
    x.check("x", &[m, weight.k]);
    y.check("y", &[m, weight.n]);
    y.check_type("y", x.dtype);
    if let Some(bias) = p.bias {
        bias.check("bias", &[weight.n]);
        bias.check_type("bias", f32_type());
    }
    if let Some(active) = p.active {
        active.check("active", &[m]);
        active.check_words("active");
    }
}

/// What the streaming kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    /// Rows of the weight per cube.
    pub(super) rows: u32,
    /// Rows of `x`, those past the last included.
    pub(super) columns: u32,
    pub(super) units: u32,
    /// Units of a plane, 0 where planes cannot add.
    plane: u32,
    gated: bool,
    bias: bool,
    active: bool,
    pub(super) aligned: bool,
}

impl Plan {
    /// Of a plain product of `m` rows of `x` with so many rows of `k` elements, of one weight or of several.
    pub(super) fn of<R: Runtime>(client: &ComputeClient<R>, m: usize, n: usize, k: usize, aligned: bool) -> Self {
        // More rows per cube read `x` less often, fewer keep more cubes busy.
        let rows = match (m, n) {
            (2.., _) => 2,
            (_, 8192..) => 4,
            (_, 2048..) => 2,
            _ => 1,
        };
        let units = match k.div_ceil(8) {
            256.. => 128,
            64.. => 64,
            _ => 32,
        };
        let plane = plane_size(client);
        let units = units.max(plane).min(client.properties().hardware.max_units_per_cube);
        let columns = m.next_power_of_two() as u32;
        Self { rows, columns, units, plane, gated: false, bias: false, active: false, aligned }
    }

    /// Numbers of a vector of `x`.
    pub(super) fn vector(&self) -> usize {
        if self.aligned { 4 } else { 1 }
    }
}

fn vector<R: Runtime>(
    client: &ComputeClient<R>,
    x: &Buffer,
    m: usize,
    weight: &Weight,
    up: Option<&Weight>,
    y: &Buffer,
    p: Linear<'_>,
) {
    let Weight { n, k, .. } = *weight;
    let aligned = weight.layout().aligned && up.is_none_or(|up| up.layout().aligned);
    let plan = Plan {
        gated: up.is_some(),
        bias: p.bias.is_some(),
        active: p.active.is_some(),
        ..Plan::of(client, m, n, k, aligned)
    };
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        vector_kernel::launch_unchecked::<R>(
            client,
            grid(n.div_ceil(plan.rows as usize)),
            CubeDim::new_1d(plan.units),
            plan.vector(),
            weight.vector(),
            up.unwrap_or(weight).vector(),
            x.arg(),
            weight.arg(),
            up.unwrap_or(weight).arg(),
            p.bias.unwrap_or(x).arg(),
            p.active.unwrap_or(x).arg(),
            y.arg(),
            m as u32,
            plan,
            x.dtype,
        );
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn vector_kernel<F: Float, V: Size, W: Size, U: Size>(
    x: &Array<Vector<F, V>>,
    weight: &Packed<W>,
    up: &Packed<U>,
    bias: &Array<f32>,
    active: &Array<u32>,
    y: &mut Array<F>,
    m: u32,
    #[comptime] plan: Plan,
    #[define(F)] _x_type: StorageType,
) {
    let n = weight.n;
    let first = CUBE_POS as u32 * plan.rows;
    let count = comptime!(plan.rows * plan.columns);
    if first >= n {
        terminate!();
    }
    if comptime!(plan.active) {
        let mut any = 0u32;
        for column in 0..m {
            any |= active[column as usize];
        }
        if any == 0 {
            if UNIT_POS < count {
                let (row, column) = (first + UNIT_POS % plan.rows, UNIT_POS / plan.rows);
                if row < n && column < m {
                    y[(column * n + row) as usize] = F::cast_from(0.0f32);
                }
            }
            terminate!();
        }
    }
    let mut scratch = SharedMemory::<f32>::new(comptime!((count * plan.units) as usize));
    let product = dots::<F, V, W>(x, weight, first, m, &mut scratch, plan);
    let mut sum = product.value();
    if comptime!(plan.gated) {
        let other = dots::<F, V, U>(x, up, first, m, &mut scratch, plan).value();
        sum = sum / (1.0 + f32::exp(-sum)) * other;
    }
    if UNIT_POS < count {
        let (row, column) = (first + UNIT_POS % plan.rows, UNIT_POS / plan.rows);
        if row < n && column < m {
            if comptime!(plan.bias) {
                sum = product.plus(bias[row as usize]);
            }
            if comptime!(plan.active) {
                sum = select(active[column as usize] == 0, 0.0, sum);
            }
            y[(column * n + row) as usize] = F::cast_from(sum);
        }
    }
}

/// A product of a row of the weight and one of `x`, before the factor of that row.
#[derive(CubeType, Clone, Copy)]
pub(super) struct RowProduct {
    sum: f32,
    factor: f32,
}

#[cube]
impl RowProduct {
    pub(super) fn value(self) -> f32 {
        self.sum * self.factor
    }

    /// With a bias: rounded once in every kernel, where a compiler would fuse a product and a sum in one and not in the other.
    pub(super) fn plus(self, bias: f32) -> f32 {
        fma(self.sum, self.factor, bias)
    }
}

/// Unit `i` gets the product of row `first + i % rows` and row `i / rows` of `x`; the others nothing of use.
#[cube]
pub(super) fn dots<F: Float, V: Size, W: Size>(
    x: &Array<Vector<F, V>>,
    w: &Packed<W>,
    first: u32,
    m: u32,
    scratch: &mut SharedMemory<f32>,
    #[comptime] plan: Plan,
) -> RowProduct {
    let (n, k) = (w.n, w.k);
    let book = shared_code_book(w);
    let count = comptime!((plan.rows * plan.columns) as usize);
    let mut stored = Array::<u32>::new(comptime!(plan.rows as usize));
    let mut sums = Array::<f32>::new(count);
    #[unroll]
    for r in 0..plan.rows {
        // A row past the last is the last again, and its sum is not written.
        stored[r as usize] = stored_row(w, min(first + r, n - 1));
    }
    #[unroll]
    for i in 0..count {
        sums[i] = 0.0;
    }
    let units = k.div_ceil(8);
    let mut unit = UNIT_POS;
    while unit < units {
        let mut columns = Array::<Four>::new(comptime!(2 * plan.columns as usize));
        #[unroll]
        for c in 0..plan.columns {
            let eight = eight_of_x::<F, V>(x, min(c, m - 1), unit, k, plan.aligned);
            columns[comptime!(2 * c as usize)] = eight.low;
            columns[comptime!(2 * c as usize + 1)] = eight.high;
        }
        #[unroll]
        for r in 0..plan.rows {
            let row = stored[r as usize];
            let weights = eight(w, &book, row, unit, k);
            let factor = unit_factor(w, row, unit, k);
            #[unroll]
            for c in 0..plan.columns {
                let product = weights.low.dot(columns[comptime!(2 * c as usize)])
                    + weights.high.dot(columns[comptime!(2 * c as usize + 1)]);
                sums[comptime!((c * plan.rows + r) as usize)] += product * factor;
            }
        }
        unit += plan.units;
    }

    let sum = sums_of_cube(&sums, scratch, plan);
    let row = stored_row(w, min(first + UNIT_POS % plan.rows, n - 1));
    RowProduct { sum, factor: row_factor(w, row) }
}

/// Unit `i` gets the sum over the cube of each unit's `sums[i]`.
#[cube]
fn sums_of_cube(sums: &Array<f32>, scratch: &mut SharedMemory<f32>, #[comptime] plan: Plan) -> f32 {
    let count = comptime!(plan.rows * plan.columns);
    let mut total = 0.0f32;
    sync_cube();
    if comptime!(plan.plane > 0) {
        #[unroll]
        for i in 0..count {
            let sum = plane_sum(sums[i as usize]);
            if UNIT_POS % plan.plane == 0 {
                scratch[(UNIT_POS / plan.plane * count + i) as usize] = sum;
            }
        }
        sync_cube();
        if UNIT_POS < count {
            #[unroll]
            for plane in 0..comptime!(plan.units / plan.plane) {
                total += scratch[(plane * count + UNIT_POS) as usize];
            }
        }
    } else {
        #[unroll]
        for i in 0..count {
            scratch[(i * plan.units + UNIT_POS) as usize] = sums[i as usize];
        }
        sync_cube();
        #[unroll]
        for step in 0..comptime!(plan.units.ilog2()) {
            let half = comptime!(plan.units >> (step + 1));
            // `count` sums at once: unit after unit takes an addition.
            let mut at = UNIT_POS;
            while at < comptime!(half * count) {
                let to = at / half * plan.units + at % half;
                let other = scratch[(to + half) as usize];
                scratch[to as usize] += other;
                at += plan.units;
            }
            sync_cube();
        }
        if UNIT_POS < count {
            total = scratch[(UNIT_POS * plan.units) as usize];
        }
    }
    total
}
