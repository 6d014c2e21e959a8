//! What the kernels of linear layers share: a product, and the rows of x that all products of a call read.

use crate::cpu::Level;
use crate::cpu::matmul::int8::Input;
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::packed::{Order, PermutedX};
use crate::cpu::matmul::weight::Weight;
use crate::cpu::simd::lanes;
use std::sync::Arc;

/// One matrix of several that share x: `y = x Wᵀ + b`.
#[derive(Debug)]
pub struct Product<'a> {
    /// `[n, k]`.
    pub weight: Weight<'a>,
    /// `[n]`.
    pub bias: Option<&'a [f32]>,
    /// `[m, n]`.
    pub y: &'a mut [f32],
}

/// A few rows of x, in the orders that the products of a region ask for.
pub(crate) struct InputRows<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) level: Level,
    pub(crate) input: Input,
    permuted: Memo<(usize, Order), PermutedX>,
}

impl<'a> InputRows<'a> {
    pub(crate) fn new(x: &'a [f32], m: usize, k: usize, level: Level, input: Input) -> Self {
        Self { x, m, k, level, input, permuted: Memo::default() }
    }

    pub(crate) fn permuted(&self, bits: usize, order: Order) -> Arc<PermutedX> {
        let make = || PermutedX::new(self.x, self.m, self.k, lanes(self.level), bits, order);
        self.permuted.get((bits, order), make)
    }
}
