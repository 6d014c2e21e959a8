//! What the kernels of linear layers share: their arguments, and how they read `x`.

use cubecl::prelude::*;

use crate::cube::launch::Buffer;
use crate::cube::matmul::weight::{Eight, Four, Packed, Weight, eight_of_values};

/// What a linear layer does beside the product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linear<'a> {
    /// `[n]`, added.
    pub bias: Option<&'a Buffer>,
    /// `[m]` U32: rows that are 0 here give 0; where no row of a call is active no weight is read.
    pub active: Option<&'a Buffer>,
}

/// Gate and up of a SwiGLU block, `silu(x Gᵀ) * (x Uᵀ)`.
#[derive(Clone, Copy, Debug)]
pub struct GatedLinear<'a> {
    /// `[n, k]`, through the silu.
    pub gate: &'a Weight,
    /// `[n, k]`.
    pub up: &'a Weight,
    /// As [`Linear::active`].
    pub active: Option<&'a Buffer>,
}

/// One product: `y = x Wᵀ`.
pub(super) struct Product<'a> {
    /// `[m, k]`
    pub x: &'a Buffer,
    pub m: usize,
    /// `[n, k]`
    pub weight: &'a Weight,
    /// `[m, n]`: the result is multiplied by its silu.
    pub gate: Option<&'a Buffer>,
    /// `[m, n]`
    pub y: &'a Buffer,
    /// `[n]`, added.
    pub bias: Option<&'a Buffer>,
    /// Only these rows of `x` and `y`: how many, then which.
    pub rows: Option<&'a Buffer>,
}

/// A [`Product`] without its result as the argument of a kernel. What it does not have is not bound, and kernels are compiled
/// without it.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Operands<F: Float, V: Size, W: Size> {
    pub(super) x: Array<Vector<F, V>>,
    pub(super) weight: Packed<W>,
    bias: ComptimeOption<Array<f32>>,
    gate: ComptimeOption<Array<F>>,
    rows: ComptimeOption<Array<u32>>,
    m: u32,
    /// Whether rows of `x` and of the weight are read in whole vectors.
    #[cube(comptime)]
    pub(super) aligned: bool,
}

impl Product<'_> {
    /// Numbers of a vector of `x`.
    pub(super) fn vector(&self) -> usize {
        if self.weight.layout().aligned { 4 } else { 1 }
    }

    pub(super) fn arg<F: Float, V: Size, W: Size, R: Runtime>(&self) -> OperandsLaunch<F, V, W, R> {
        OperandsLaunch::new(
            self.x.arg(),
            self.weight.arg(),
            self.bias.map(Buffer::arg).into(),
            self.gate.map(Buffer::arg).into(),
            self.rows.map(Buffer::arg).into(),
            self.m as u32,
            self.weight.layout().aligned,
        )
    }
}

/// How many rows there are: all, or those of the list, which begins with its length.
#[cube]
pub(super) fn count<F: Float, V: Size, W: Size>(p: &Operands<F, V, W>) -> u32 {
    #[comptime]
    match &p.rows {
        ComptimeOption::Some(rows) => rows[0],
        ComptimeOption::None => p.m,
    }
}

/// The row at place `listed` of the list, or of all.
#[cube]
pub(super) fn row<F: Float, V: Size, W: Size>(p: &Operands<F, V, W>, listed: u32) -> u32 {
    #[comptime]
    match &p.rows {
        ComptimeOption::Some(rows) => rows[(listed + 1) as usize],
        ComptimeOption::None => listed,
    }
}

/// What is written for a sum of column `column` at `at` of the result: with its bias, and times the silu of its gate.
#[cube]
pub(super) fn finished<F: Float, V: Size, W: Size>(p: &Operands<F, V, W>, sum: f32, column: u32, at: usize) -> F {
    let mut sum = sum;
    #[comptime]
    if let ComptimeOption::Some(bias) = &p.bias {
        sum += bias[column as usize];
    }
    #[comptime]
    if let ComptimeOption::Some(gate) = &p.gate {
        let gate = f32::cast_from(gate[at]);
        sum *= gate / (1.0 + f32::exp(-gate));
    }
    F::cast_from(sum)
}

/// Unit `unit` of row `row` of `x`; elements past the row are 0.
#[cube]
pub(super) fn eight_of_x<F: Float, V: Size>(
    x: &Array<Vector<F, V>>,
    row: u32,
    unit: u32,
    k: u32,
    #[comptime] aligned: bool,
) -> Eight {
    if comptime!(aligned) {
        let at = (row * (k / 8) + unit) * 2;
        Eight { low: Four::cast_from(x[at as usize]), high: Four::cast_from(x[(at + 1) as usize]) }
    } else {
        let mut values = Array::<f32>::new(8usize);
        for i in 0..8u32 {
            values[i as usize] = 0.0;
            if unit * 8 + i < k {
                values[i as usize] = f32::cast_from(x[(row * k + unit * 8 + i) as usize]);
            }
        }
        eight_of_values(&values)
    }
}
