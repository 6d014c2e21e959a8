//! Products of many rows: tiles of `x` and of the unpacked weight in shared memory, multiplied by matrix instructions where
//! the device has them for the type of `x` ([`super::cmma`]), else as here.

use cubecl::ir::{ElemType, StorageType, UIntKind};
use cubecl::prelude::*;

use crate::cube::launch::{Buffer, UNITS, grid, grid_of_units};
use crate::cube::matmul::cmma;
use crate::cube::matmul::types::{GatedLinear, Linear, Operands, Product, count, eight_of_x, finished, row};
use crate::cube::matmul::weight::{Four, Weight, eight, row_factor, shared_code_book, stored_row, unit_factor};

/// Rows of `x`, and of the weight, per cube.
const TILE: u32 = 64;

/// Units of eight elements along k per pass: one unit of `x` and one of the weight for each unit of the cube.
const DEPTH: u32 = 4;

/// Vectors from one row of a tile in shared memory to the next: odd, so that rows lie in different banks.
const STRIDE: u32 = 2 * DEPTH + 1;

/// Units of a cube along each side of a tile.
const SIDE: u32 = 16;

/// Products of each unit along each side.
const EACH: u32 = TILE / SIDE;

pub(super) fn linear<R: Runtime>(
    client: &ComputeClient<R>,
    x: &Buffer,
    m: usize,
    weight: &Weight,
    y: &Buffer,
    p: Linear<'_>,
) {
    let rows = p.active.map(|active| running(client, active, m));
    if p.active.is_some() {
        zero(client, y);
    }
    launch(client, &Product { x, m, weight, gate: None, y, bias: p.bias, rows: rows.as_ref() });
}

pub(super) fn gated_linear<R: Runtime>(
    client: &ComputeClient<R>,
    x: &Buffer,
    m: usize,
    layers: GatedLinear<'_>,
    y: &Buffer,
) {
    let GatedLinear { gate, up, active } = layers;
    let rows = active.map(|active| running(client, active, m));
    // What is not written of either is not read: rows that have halted are left as they are.
    let gated = Buffer::new(client.empty(y.len * y.dtype.size()), y.len, y.dtype);
    if active.is_some() {
        zero(client, y);
    }
    let rows = rows.as_ref();
    launch(client, &Product { x, m, weight: gate, gate: None, y: &gated, bias: None, rows });
    launch(client, &Product { x, m, weight: up, gate: Some(&gated), y, bias: None, rows });
}

fn launch<R: Runtime>(client: &ComputeClient<R>, p: &Product<'_>) {
    if cmma::launch(client, p) {
        return;
    }
    let cubes = p.weight.n.div_ceil(TILE as usize) * p.m.div_ceil(TILE as usize);
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        tile_kernel::launch_unchecked::<R>(
            client,
            grid(cubes),
            CubeDim::new_1d(UNITS),
            p.vector(),
            p.weight.vector(),
            p.arg(),
            p.y.arg(),
            p.x.dtype,
        );
    }
}

#[cube(launch_unchecked)]
fn tile_kernel<F: Float, V: Size, W: Size>(p: &Operands<F, V, W>, y: &mut Array<F>, #[define(F)] _x_type: StorageType) {
    let weight = &p.weight;
    let (n, k) = (weight.n, weight.k);
    let across = n.div_ceil(TILE);
    let first_column = CUBE_POS as u32 % across * TILE;
    let first_row = CUBE_POS as u32 / across * TILE;
    let count = count::<F, V, W>(p);
    if first_row >= count {
        terminate!();
    }
    let book = shared_code_book(weight);
    let mut of_x = SharedMemory::<Four>::new(comptime!((TILE * STRIDE) as usize));
    let mut of_w = SharedMemory::<Four>::new(comptime!((TILE * STRIDE) as usize));

    // What this unit brings to the tiles.
    let own = UNIT_POS / DEPTH;
    let own_unit = UNIT_POS % DEPTH;
    let own_stored = stored_row(weight, min(first_column + own, n - 1));
    let own_row = row::<F, V, W>(p, min(first_row + own, count - 1));

    // What this unit computes.
    let (tx, ty) = (UNIT_POS % SIDE, UNIT_POS / SIDE);
    let mut sums = Array::<f32>::new(comptime!((EACH * EACH) as usize));
    #[unroll]
    for i in 0..comptime!((EACH * EACH) as usize) {
        sums[i] = 0.0;
    }

    let units = k.div_ceil(8);
    let mut start = 0u32;
    while start < units {
        let unit = start + own_unit;
        let to = own * STRIDE + own_unit * 2;
        let mut x_low = Four::new(0.0);
        let mut x_high = Four::new(0.0);
        let mut w_low = Four::new(0.0);
        let mut w_high = Four::new(0.0);
        if unit < units {
            let values = eight_of_x::<F, V>(&p.x, own_row, unit, k, comptime!(p.aligned));
            let weights = eight(weight, &book, own_stored, unit, k);
            let factor = Four::new(unit_factor(weight, own_stored, unit, k));
            x_low = values.low;
            x_high = values.high;
            w_low = weights.low * factor;
            w_high = weights.high * factor;
        }
        of_x[to as usize] = x_low;
        of_x[(to + 1) as usize] = x_high;
        of_w[to as usize] = w_low;
        of_w[(to + 1) as usize] = w_high;
        sync_cube();
        for vector in 0..comptime!(2 * DEPTH) {
            let mut columns = Array::<Four>::new(comptime!(EACH as usize));
            #[unroll]
            for j in 0..EACH {
                columns[j as usize] = of_w[((tx + j * SIDE) * STRIDE + vector) as usize];
            }
            #[unroll]
            for i in 0..EACH {
                let row = of_x[((ty + i * SIDE) * STRIDE + vector) as usize];
                #[unroll]
                for j in 0..EACH {
                    sums[comptime!((i * EACH + j) as usize)] += row.dot(columns[j as usize]);
                }
            }
        }
        sync_cube();
        start += DEPTH;
    }

    #[unroll]
    for j in 0..EACH {
        let column = first_column + tx + j * SIDE;
        if column < n {
            let factor = row_factor(weight, stored_row(weight, column));
            #[unroll]
            for i in 0..EACH {
                let listed = first_row + ty + i * SIDE;
                if listed < count {
                    let at = (row::<F, V, W>(p, listed) * n + column) as usize;
                    let sum = sums[comptime!((i * EACH + j) as usize)] * factor;
                    y[at] = finished::<F, V, W>(p, sum, column, at);
                }
            }
        }
    }
}

/// How many of `m` rows are active, and which: `[1 + m]` U32.
fn running<R: Runtime>(client: &ComputeClient<R>, active: &Buffer, m: usize) -> Buffer {
    let list = Buffer::new(client.empty((m + 1) * 4), m + 1, ElemType::UInt(UIntKind::U32));
    // SAFETY: the kernel stays inside `m` flags and `m + 1` places.
    unsafe {
        list_kernel::launch_unchecked::<R>(client, grid(1), CubeDim::new_1d(UNITS), active.arg(), list.arg(), m as u32);
    }
    list
}

#[cube(launch_unchecked)]
fn list_kernel(active: &Array<u32>, list: &mut Array<u32>, m: u32) {
    let mut counts = SharedMemory::<u32>::new(UNITS as usize);
    let each = m.div_ceil(UNITS);
    let start = min(UNIT_POS * each, m);
    let end = min(start + each, m);
    let mut count = 0u32;
    for i in start..end {
        count += select(active[i as usize] == 0, 0u32, 1u32);
    }
    counts[UNIT_POS as usize] = count;
    sync_cube();
    let mut at = 0u32;
    for i in 0..UNIT_POS {
        at += counts[i as usize];
    }
    for i in start..end {
        if active[i as usize] != 0 {
            at += 1;
            list[at as usize] = i;
        }
    }
    if UNIT_POS == UNITS - 1 {
        list[0] = at;
    }
}

fn zero<R: Runtime>(client: &ComputeClient<R>, y: &Buffer) {
    // SAFETY: the kernel stays inside `y`.
    unsafe {
        zero_kernel::launch_unchecked::<R>(
            client,
            grid_of_units(y.len),
            CubeDim::new_1d(UNITS),
            y.arg(),
            y.len as u32,
            y.dtype,
        );
    }
}

#[cube(launch_unchecked)]
fn zero_kernel<F: Float>(y: &mut Array<F>, len: u32, #[define(F)] _y_type: StorageType) {
    let at = ABSOLUTE_POS;
    if at < len as usize {
        y[at] = F::cast_from(0.0f32);
    }
}
