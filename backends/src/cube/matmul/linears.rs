//! Several linear layers of the same `x` in one launch.
//!
//! A kernel cannot choose a buffer by number, so its code has the product of every layer, and a cube runs one of them. What a cube
//! computes is what it computes where each layer has a launch of its own, bit for bit: sums depend on k alone.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::cube::launch::{Buffer, grid};
use crate::cube::matmul::linear::{GEMV_MAX_ROWS, Plan, check, dots, linear};
use crate::cube::matmul::types::Linear;
use crate::cube::matmul::weight::{Packed, Weight};
use crate::cube::spans::{is_span, of_span, span_at, starts};

/// Layers of one launch at most: the code that is compiled grows with them.
const MAX_LAYERS: usize = 4;

/// Buffers of a weight.
const WEIGHT_BINDINGS: usize = 6;

/// One of several linear layers of the same `x`: `y = x Wᵀ + b`.
#[derive(Clone, Copy, Debug)]
pub struct LinearOfX<'a> {
    /// `[n, k]`
    pub weight: &'a Weight,
    /// `[n]`, added.
    pub bias: Option<&'a Buffer>,
    /// `[m, n]`
    pub y: &'a Buffer,
}

impl LinearOfX<'_> {
    fn params(&self) -> Linear<'_> {
        Linear { bias: self.bias, active: None }
    }

    /// Buffers that a launch binds for the layer.
    fn bindings(&self) -> usize {
        WEIGHT_BINDINGS + 1 + usize::from(self.bias.is_some())
    }
}

/// [`linear`] of several layers. Up to eight rows of `x`, those whose weights are stored alike share launches, as many as the
/// device has arguments for.
///
/// # Shapes
/// `x [m, k]`, each `weight [n, k]`, `y [m, n]`, `x` and every `y` of one type
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn linears<R: Runtime>(client: &ComputeClient<R>, x: &Buffer, m: usize, layers: &[LinearOfX<'_>]) {
    for layer in layers {
        check(x, m, layer.weight, layer.y, layer.params());
    }
    if m > GEMV_MAX_ROWS {
        for layer in layers {
            linear(client, x, m, layer.weight, layer.y, layer.params());
        }
        return;
    }
    // One binding is that of `x`, one more holds the scalars.
    let bindings = (client.properties().hardware.max_bindings as usize).saturating_sub(2);
    for group in groups(layers, bindings) {
        match group[..] {
            [layer] => linear(client, x, m, layer.weight, layer.y, layer.params()),
            _ => vectors(client, x, m, &group),
        }
    }
}

/// The layers of each launch that binds at most so many buffers for them; a layer without outputs is in none.
fn groups<'a, 'b>(layers: &'b [LinearOfX<'a>], bindings: usize) -> Vec<Vec<&'b LinearOfX<'a>>> {
    let mut groups: Vec<Vec<&LinearOfX<'_>>> = Vec::new();
    for layer in layers.iter().filter(|layer| !layer.y.is_empty()) {
        let takes = |group: &[&LinearOfX<'_>]| {
            let bound: usize = group.iter().map(|layer| layer.bindings()).sum();
            let alike = group.iter().all(|other| other.weight.layout() == layer.weight.layout());
            alike && group.len() < MAX_LAYERS && bound + layer.bindings() <= bindings
        };
        match groups.iter_mut().find(|group| takes(group)) {
            Some(group) => group.push(layer),
            None => groups.push(vec![layer]),
        }
    }
    groups
}

/// Layers whose weights are stored alike.
fn vectors<R: Runtime>(client: &ComputeClient<R>, x: &Buffer, m: usize, layers: &[&LinearOfX<'_>]) {
    let Some(LinearOfX { weight: first, .. }) = layers.first() else { return };
    let n = layers.iter().map(|layer| layer.weight.n).sum();
    let plan = Plan::of(client, m, n, first.k, first.layout().aligned);
    let cubes = layers.iter().map(|layer| layer.weight.n.div_ceil(plan.rows as usize));
    let all = cubes.clone().sum();
    let args = layers.iter().map(|layer| LayerLaunch::new(layer.weight.arg(), layer.bias.map(Buffer::arg).into()));
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        vectors_kernel::launch_unchecked::<R>(
            client,
            grid(all),
            CubeDim::new_1d(plan.units),
            plan.vector(),
            first.vector(),
            x.arg(),
            args.collect(),
            layers.iter().map(|layer| layer.y.arg()).collect(),
            starts(cubes),
            all as u32,
            m as u32,
            plan,
            x.dtype,
        );
    }
}

/// What a launch takes of a layer beside its result.
#[derive(CubeType, CubeLaunch)]
struct Layer<W: Size> {
    weight: Packed<W>,
    bias: ComptimeOption<Array<f32>>,
}

/// `starts` are the first cubes of the layers, of `cubes` in all.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn vectors_kernel<F: Float, V: Size, W: Size>(
    x: &Array<Vector<F, V>>,
    layers: &Sequence<Layer<W>>,
    y: &mut Sequence<Array<F>>,
    starts: &Sequence<u32>,
    cubes: u32,
    m: u32,
    #[comptime] plan: Plan,
    #[define(F)] _x_type: StorageType,
) {
    let cube = CUBE_POS as u32;
    if cube >= cubes {
        terminate!();
    }
    let layer = span_at(starts, cube);
    let first = (cube - of_span(starts, layer)) * plan.rows;
    let mut scratch = SharedMemory::<f32>::new(comptime!((plan.rows * plan.columns * plan.units) as usize));
    #[unroll]
    for i in 0..comptime!(layers.len()) {
        if is_span(layer, i, comptime!(layers.len())) {
            product::<F, V, W>(x, layers.index(i), y.index_mut(i), first, m, &mut scratch, plan);
        }
    }
}

/// The rows of one layer from `first` on that a cube takes.
#[cube]
fn product<F: Float, V: Size, W: Size>(
    x: &Array<Vector<F, V>>,
    layer: &Layer<W>,
    y: &mut Array<F>,
    first: u32,
    m: u32,
    scratch: &mut SharedMemory<f32>,
    #[comptime] plan: Plan,
) {
    let n = layer.weight.n;
    let product = dots::<F, V, W>(x, &layer.weight, first, m, scratch, plan);
    if UNIT_POS < comptime!(plan.rows * plan.columns) {
        let (row, column) = (first + UNIT_POS % plan.rows, UNIT_POS / plan.rows);
        if row < n && column < m {
            #[comptime]
            let sum = match &layer.bias {
                ComptimeOption::Some(bias) => product.plus(bias[row as usize]),
                ComptimeOption::None => product.value(),
            };
            y[(column * n + row) as usize] = F::cast_from(sum);
        }
    }
}
