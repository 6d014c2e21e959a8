//! Products of many rows of halves on matrix instructions (tensor cores, cooperative matrices).
//!
//! As in [`super::tiled`], but the tiles in shared memory are halves of the type of `x`, and planes multiply fragments of them
//! with sums in f32. So each weight is rounded once to that type: an F16 weight and the codes of integer rows (whose scale
//! comes after the sum) stay exact in F16, every other (block scales come before it) is off by at most `max(2⁻¹¹ |w|, 2⁻²⁵)` in F16 and `2⁻⁸ |w|` in BF16,
//! the rounding that `x` itself has had.

use cubecl::cmma::{Matrix, MatrixIdent, MatrixLayout};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cube::instructions::{MatrixShape, matrix_shape};
use crate::cube::launch::{UNITS, grid};
use crate::cube::matmul::types::{Operands, Product, count, eight_of_x, finished, row};
use crate::cube::matmul::weight::{Storage, eight, row_factor, shared_code_book, stored_row, unit_factor};

/// Rows of the weight per cube.
const COLUMNS: u32 = 64;

/// Vectors of four halves between rows of a tile: rows lie in different banks, and fragments begin at 32 bytes, as CUDA wants.
const GAP: u32 = 2;

/// Four numbers of a tile.
type Halves<F> = Vector<F, Const<4>>;

/// How the kernel is cut for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    shape: MatrixShape,
    /// Rows of `x` per cube.
    rows: u32,
    /// Units of eight elements along k per pass.
    depth: u32,
    /// Planes next to each other along the rows of the weight.
    across: u32,
    /// Fragments of a plane: along the rows of `x`, along those of the weight.
    each: (u32, u32),
}

impl Plan {
    /// `None` where planes and fragments do not share the tile evenly, or it does not fit.
    fn new<R: Runtime>(client: &ComputeClient<R>, p: &Product<'_>) -> Option<Self> {
        let shape = matrix_shape(client, p.x.dtype)?;
        // A tile that holds all rows unpacks each weight once.
        let rows = if p.m <= 64 { 64 } else { 128 };
        let planes = UNITS / shape.plane;
        let fragments = (rows / shape.m, COLUMNS / shape.n);
        let across = fragments.1 / 2;
        let down = planes / across;
        let each = (fragments.0 / down.max(1), 2);
        if across * down != planes || each.0 * down != fragments.0 {
            return None;
        }
        let hardware = &client.properties().hardware;
        let bytes = |depth: u32| {
            let tiles = (rows + COLUMNS) * stride(depth) * 8;
            let results = planes * shape.m * shape.n * 4;
            (tiles + results + 16 * 4) as usize
        };
        let depth = [8, 4].into_iter().find(|&depth| bytes(depth) <= hardware.max_shared_memory_size)?;
        (hardware.max_units_per_cube >= UNITS).then_some(Self { shape, rows, depth, across, each })
    }
}

/// Vectors from one row of a tile to the next.
fn stride(depth: u32) -> u32 {
    2 * depth + GAP
}

/// Computes the product if the device has matrix instructions for it. A weight of F32 is not rounded, so not computed here.
pub(super) fn launch<R: Runtime>(client: &ComputeClient<R>, p: &Product<'_>) -> bool {
    if p.weight.layout().storage == Storage::F32 {
        return false;
    }
    let Some(plan) = Plan::new(client, p) else { return false };
    let cubes = p.weight.n.div_ceil(COLUMNS as usize) * p.m.div_ceil(plan.rows as usize);
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        cmma_kernel::launch_unchecked::<R>(
            client,
            grid(cubes),
            CubeDim::new_1d(UNITS),
            p.vector(),
            p.weight.vector(),
            p.arg(),
            p.y.arg(),
            plan,
            p.x.dtype,
        );
    }
    true
}

#[cube(launch_unchecked)]
fn cmma_kernel<F: Float, V: Size, W: Size>(
    p: &Operands<F, V, W>,
    y: &mut Array<F>,
    #[comptime] plan: Plan,
    #[define(F)] _x_type: StorageType,
) {
    let weight = &p.weight;
    let (n, k) = (weight.n, weight.k);
    let blocks = n.div_ceil(COLUMNS);
    let first_column = CUBE_POS as u32 % blocks * COLUMNS;
    let first_row = CUBE_POS as u32 / blocks * plan.rows;
    let count = count::<F, V, W>(p);
    if first_row >= count {
        terminate!();
    }
    let shape = comptime!(plan.shape);
    let depth = comptime!(plan.depth);
    let stride = comptime!(stride(plan.depth));
    let (down, right) = comptime!(plan.each);

    let book = shared_code_book(weight);
    let mut of_x = SharedMemory::<Halves<F>>::new_aligned(comptime!((plan.rows * stride) as usize), 32usize);
    let mut of_w = SharedMemory::<Halves<F>>::new_aligned(comptime!((COLUMNS * stride) as usize), 32usize);

    // What this unit brings to the tiles: a unit of eight elements of every `step`th row.
    let own_unit = UNIT_POS % depth;
    let own = UNIT_POS / depth;
    let step = comptime!(UNITS / depth);
    let mut rows_of_x = Array::<u32>::new(comptime!((plan.rows / step) as usize));
    #[unroll]
    for i in 0..comptime!(plan.rows / step) {
        rows_of_x[i as usize] = row::<F, V, W>(p, min(first_row + own + i * step, count - 1));
    }
    let mut rows_of_w = Array::<u32>::new(comptime!((COLUMNS / step) as usize));
    #[unroll]
    for i in 0..comptime!(COLUMNS / step) {
        rows_of_w[i as usize] = stored_row(weight, min(first_column + own + i * step, n - 1));
    }

    // What the plane of this unit computes.
    let plane = UNIT_POS / shape.plane;
    let plane_row = plane / plan.across * comptime!(down * shape.m);
    let plane_column = plane % plan.across * comptime!(right * shape.n);
    let mut sums = Sequence::<Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(down * right) {
        sums.push(Matrix::<f32>::from_value(
            MatrixIdent::Accumulator,
            comptime!(shape.m as usize),
            comptime!(shape.n as usize),
            comptime!(shape.k as usize),
            MatrixLayout::Undefined,
            0.0f32,
        ));
    }

    let units = k.div_ceil(8);
    let mut start = 0u32;
    while start < units {
        let unit = start + own_unit;
        #[unroll]
        for i in 0..comptime!(plan.rows / step) {
            let mut low = Halves::<F>::new(F::cast_from(0.0f32));
            let mut high = Halves::<F>::new(F::cast_from(0.0f32));
            if unit < units {
                if comptime!(p.aligned) {
                    let at = (rows_of_x[i as usize] * (k / 8) + unit) * 2;
                    low = Halves::<F>::cast_from(p.x[at as usize]);
                    high = Halves::<F>::cast_from(p.x[(at + 1) as usize]);
                } else {
                    let values = eight_of_x::<F, V>(&p.x, rows_of_x[i as usize], unit, k, false);
                    low = Halves::<F>::cast_from(values.low);
                    high = Halves::<F>::cast_from(values.high);
                }
            }
            let to = (own + i * step) * stride + own_unit * 2;
            of_x[to as usize] = low;
            of_x[(to + 1) as usize] = high;
        }
        #[unroll]
        for i in 0..comptime!(COLUMNS / step) {
            let mut low = Halves::<F>::new(F::cast_from(0.0f32));
            let mut high = Halves::<F>::new(F::cast_from(0.0f32));
            if unit < units {
                let stored = rows_of_w[i as usize];
                let weights = eight(weight, &book, stored, unit, k);
                let factor = unit_factor(weight, stored, unit, k);
                low = Halves::<F>::cast_from(weights.low * Vector::new(factor));
                high = Halves::<F>::cast_from(weights.high * Vector::new(factor));
            }
            let to = (own + i * step) * stride + own_unit * 2;
            of_w[to as usize] = low;
            of_w[(to + 1) as usize] = high;
        }
        sync_cube();
        #[unroll]
        for along in 0..comptime!(depth * 8 / shape.k) {
            let offset = comptime!(along * shape.k / 4);
            let mut of_columns = Sequence::<Matrix<F>>::new();
            #[unroll]
            for j in 0..right {
                let from = (plane_column + j * shape.n) * stride + offset;
                let end = from + comptime!((shape.n - 1) * stride + shape.k / 4);
                let fragment = fragment::<F>(MatrixIdent::B, MatrixLayout::ColMajor, shape);
                cubecl::cmma::load(&fragment, &of_w.slice(from as usize, end as usize), comptime!(stride * 4));
                of_columns.push(fragment);
            }
            #[unroll]
            for i in 0..down {
                let from = (plane_row + i * shape.m) * stride + offset;
                let end = from + comptime!((shape.m - 1) * stride + shape.k / 4);
                let fragment = fragment::<F>(MatrixIdent::A, MatrixLayout::RowMajor, shape);
                cubecl::cmma::load(&fragment, &of_x.slice(from as usize, end as usize), comptime!(stride * 4));
                #[unroll]
                for j in 0..right {
                    let sum = &sums[comptime!((i * right + j) as usize)];
                    cubecl::cmma::execute::<F, F, f32, f32>(&fragment, &of_columns[comptime!(j as usize)], sum, sum);
                }
            }
        }
        sync_cube();
        start += depth;
    }

    // Fragment by fragment through a place of the plane's own: which unit holds which number is the device's affair.
    let place = comptime!(shape.m * shape.n);
    let mut results = SharedMemory::<f32>::new_aligned(comptime!((UNITS / shape.plane * place) as usize), 32usize);
    let from = plane * place;
    #[unroll]
    for i in 0..down {
        #[unroll]
        for j in 0..right {
            cubecl::cmma::store(
                &mut results.slice_mut(from as usize, (from + place) as usize),
                &sums[comptime!((i * right + j) as usize)],
                shape.n,
                MatrixLayout::RowMajor,
            );
            sync_cube();
            let mut at = UNIT_POS % shape.plane;
            while at < place {
                let listed = first_row + plane_row + i * shape.m + at / shape.n;
                let column = first_column + plane_column + j * shape.n + at % shape.n;
                if listed < count && column < n {
                    let to = (row::<F, V, W>(p, listed) * n + column) as usize;
                    let sum = results[(from + at) as usize] * row_factor(weight, stored_row(weight, column));
                    y[to] = finished::<F, V, W>(p, sum, column, to);
                }
                at += shape.plane;
            }
            sync_cube();
        }
    }
}

/// A fragment that is loaded next.
#[cube]
fn fragment<F: Float>(
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
    #[comptime] shape: MatrixShape,
) -> Matrix<F> {
    // SAFETY: every caller loads it before anything reads it.
    unsafe {
        Matrix::<F>::uninitialized(
            ident,
            comptime!(shape.m as usize),
            comptime!(shape.n as usize),
            comptime!(shape.k as usize),
            layout,
        )
    }
}
