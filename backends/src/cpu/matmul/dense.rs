//! Matrix-vector products on rows of floats, halves and bytes, a few columns of x at a time.

use crate::cpu::matmul::packed::MAX_COLUMNS;
use crate::cpu::matmul::weight::{INT8_BLOCK, Int8};
use crate::cpu::pool::Output;
use crate::cpu::simd::{Kernel, Simd};

/// How one element of a dense row is stored.
pub(crate) trait Element: Copy + Sync {
    /// Bytes.
    const SIZE: usize;
    /// Loads `LANES` elements.
    ///
    /// # Safety
    /// `from` is valid for them and `S` is enabled.
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    fn value(self) -> f32;
    /// The elements themselves, where they are floats.
    fn as_floats(_elements: &[Self]) -> Option<&[f32]> {
        None
    }
}

/// IEEE half bits.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F16(u16);

/// bfloat16 bits.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Bf16(u16);

/// A signed byte.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct I8(u8);

macro_rules! element {
    ($type:ty, $size:literal, $load:ident, $self:ident => $value:expr $(, { $($more:item)* })?) => {
        impl Element for $type {
            const SIZE: usize = $size;
            #[inline(always)]
            unsafe fn load<S: Simd>(from: *const Self) -> S::V {
                // SAFETY: the caller's promise.
                unsafe { S::$load(from.cast()) }
            }
            #[inline(always)]
            fn value($self) -> f32 {
                $value
            }
            $($($more)*)?
        }
    };
}
element!(f32, 4, load, self => self, {
    #[inline(always)]
    fn as_floats(elements: &[f32]) -> Option<&[f32]> {
        Some(elements)
    }
});
element!(F16, 2, load_f16, self => half::f16::from_bits(self.0).to_f32());
element!(Bf16, 2, load_bf16, self => half::bf16::from_bits(self.0).to_f32());
element!(I8, 1, load_i8, self => f32::from(self.0 as i8));

/// Halves as elements.
pub(crate) fn f16(bits: &[u16]) -> &[F16] {
    // SAFETY: `F16` is a transparent u16.
    unsafe { std::slice::from_raw_parts(bits.as_ptr().cast(), bits.len()) }
}

/// bfloat16 bits as elements.
pub(crate) fn bf16(bits: &[u16]) -> &[Bf16] {
    // SAFETY: `Bf16` is a transparent u16.
    unsafe { std::slice::from_raw_parts(bits.as_ptr().cast(), bits.len()) }
}

/// Bytes as elements.
pub(crate) fn i8(bytes: &[u8]) -> &[I8] {
    // SAFETY: `I8` is a transparent u8.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
}

/// What the elements of a row are multiplied by.
#[derive(Clone, Copy)]
pub(crate) enum DenseScales<'a> {
    None,
    /// One per row.
    PerRow(&'a [f32]),
    /// One per block of a row.
    PerBlock(Int8<'a>),
}

/// Rows `first..last` of `w [n, k]` times `x [m, k]`, `m` at most [`MAX_COLUMNS`].
pub(crate) struct DenseRows<'a, E> {
    pub(crate) w: &'a [E],
    pub(crate) k: usize,
    pub(crate) scales: DenseScales<'a>,
    pub(crate) x: &'a [f32],
    pub(crate) m: usize,
    pub(crate) first: usize,
    pub(crate) last: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) y: Output<'a>,
}

impl<E: Element> Kernel for DenseRows<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        debug_assert!(self.m <= MAX_COLUMNS);
        // SAFETY: `S` is enabled; the slices were checked at the border and tasks have different rows.
        unsafe {
            if let DenseScales::PerBlock(_) = self.scales {
                self.columns::<S, true>()
            } else {
                self.columns::<S, false>()
            }
        }
    }
}

impl<E: Element> DenseRows<'_, E> {
    /// # Safety
    /// As for `call`.
    #[inline(always)]
    unsafe fn columns<S: Simd, const BLOCKS: bool>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self.m, S::REGISTERS) {
                (1, 16..) => self.range::<S, BLOCKS, 4, 1, 1>(),
                (_, 32..) => self.range::<S, BLOCKS, 4, 4, 2>(),
                (_, 16..) => self.range::<S, BLOCKS, 2, 4, 2>(),
                _ => self.range::<S, BLOCKS, 1, 1, 1>(),
            }
        }
    }

    /// `R` streams of rows far apart, which hardware prefetchers follow better alone than with prefetches in between; each
    /// time all columns, `A`, `B` or one at a time.
    #[inline(always)]
    unsafe fn range<S: Simd, const BLOCKS: bool, const R: usize, const A: usize, const B: usize>(&self) {
        let blocks = if BLOCKS { self.k.div_ceil(INT8_BLOCK) } else { 0 };
        let mut scales = vec![0.0; R * blocks];
        let apart = (self.last - self.first) / R;
        // The rest one at a time: `R` times the same row, to spare a kernel of its own.
        let rest = self.first + apart * R;
        // SAFETY: as for `call`; all rows lie before `last` and all columns before `m`.
        unsafe {
            for row in (self.first..self.first + apart).chain(rest..self.last) {
                let apart = if row < rest { apart } else { 0 };
                if let DenseScales::PerBlock(w) = self.scales {
                    for r in 0..R {
                        w.row_scales::<S>(self.k, row + r * apart, &mut scales[r * blocks..(r + 1) * blocks]);
                    }
                }
                let mut column = 0;
                while column + A <= self.m {
                    self.rows::<S, BLOCKS, R, A>(row, apart, column, &scales);
                    column += A;
                }
                while column + B <= self.m {
                    self.rows::<S, BLOCKS, R, B>(row, apart, column, &scales);
                    column += B;
                }
                while column < self.m {
                    self.rows::<S, BLOCKS, R, 1>(row, apart, column, &scales);
                    column += 1;
                }
            }
        }
    }

    /// Rows `row`, `row + apart`, ... (`R` of them) times `M` columns of x from `column` on.
    ///
    /// # Safety
    /// They exist, and no other task writes these outputs; `block_scales` are those of each row, one row after the other.
    #[inline(always)]
    unsafe fn rows<S: Simd, const BLOCKS: bool, const R: usize, const M: usize>(
        &self,
        row: usize,
        apart: usize,
        column: usize,
        block_scales: &[f32],
    ) {
        // SAFETY: every load is inside row `row + r` of w and row `column + m` of x.
        unsafe {
            let k = self.k;
            let w = self.w.as_ptr().add(row * k);
            let x = self.x.as_ptr().add(column * k);
            let stream = apart * k;
            let mut even = [[S::splat(0.0); M]; R];
            // One column has too few sums to hide the latency of an addition: every second vector goes to its own.
            let mut odd = [[S::splat(0.0); M]; R];
            // One column sums a block and scales it once; with more it is cheaper to scale the weights.
            let late = BLOCKS && M == 1;
            let mut total = [S::splat(0.0); R];
            let mut block_scale = [S::splat(1.0); R];
            let blocks = block_scales.len() / R;
            // Two cache lines of each row at a time, or a block.
            let step = if BLOCKS { INT8_BLOCK } else { 128 / E::SIZE };
            let whole = k / step * step;
            for i in (0..whole).step_by(step) {
                if BLOCKS {
                    for r in 0..R {
                        block_scale[r] = S::splat(*block_scales.as_ptr().add(r * blocks + i / INT8_BLOCK));
                    }
                }
                let scale = (BLOCKS && !late).then_some(&block_scale);
                for at in (i..i + step).step_by(2 * S::LANES) {
                    let second = if M == 1 { &mut odd } else { &mut even };
                    add::<S, E, R, M>(w.add(at + S::LANES), stream, x.add(at + S::LANES), k, scale, second);
                    add::<S, E, R, M>(w.add(at), stream, x.add(at), k, scale, &mut even);
                }
                if late {
                    for r in 0..R {
                        total[r] = S::fma(S::add(even[r][0], odd[r][0]), block_scale[r], total[r]);
                        (even[r][0], odd[r][0]) = (S::splat(0.0), S::splat(0.0));
                    }
                }
            }
            for r in 0..R {
                // Of a short block at the end, and of the row.
                let (rest_scale, scale) = match self.scales {
                    DenseScales::None => (1.0, 1.0),
                    DenseScales::PerRow(scales) => (1.0, scales[row + r * apart]),
                    DenseScales::PerBlock(_) => (block_scales[r * blocks + blocks - 1], 1.0),
                };
                let bias = self.bias.map_or(0.0, |bias| bias[row + r * apart]);
                for m in 0..M {
                    let mut sum = S::sum(if late { total[r] } else { S::add(even[r][m], odd[r][m]) });
                    for i in whole..k {
                        sum += (*w.add(r * stream + i)).value() * rest_scale * *x.add(m * k + i);
                    }
                    self.y.set(column + m, row + r * apart, sum * scale + bias);
                }
            }
        }
    }
}

/// Adds the products of one vector of `R` rows and `M` columns to their sums, the rows multiplied by `scale`.
#[inline(always)]
unsafe fn add<S: Simd, E: Element, const R: usize, const M: usize>(
    w: *const E,
    w_row: usize,
    x: *const f32,
    x_row: usize,
    scale: Option<&[S::V; R]>,
    sums: &mut [[S::V; M]; R],
) {
    // SAFETY: `rows` calls it inside the rows.
    unsafe {
        let mut xs = [S::splat(0.0); M];
        for m in 0..M {
            xs[m] = S::load(x.add(m * x_row));
        }
        for r in 0..R {
            let mut w = E::load::<S>(w.add(r * w_row));
            if let Some(scale) = scale {
                w = S::mul(w, scale[r]);
            }
            for m in 0..M {
                sums[r][m] = S::fma(w, xs[m], sums[r][m]);
            }
        }
    }
}
