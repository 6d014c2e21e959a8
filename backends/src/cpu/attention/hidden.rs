//! The hidden layer of a decoder: `u = act(W₁ c + b₁)` of the codes of a few tokens at a time.

use crate::cpu::Level;
use crate::cpu::attention::ahead::Ahead;
use crate::cpu::attention::parts::Parts;
use crate::cpu::attention::types::Layer;
use crate::cpu::matmul::embed::dequantize_rows;
use crate::cpu::pool::for_each_chunk;
use crate::cpu::simd::math::{self, Unary};
use crate::cpu::simd::{Kernel, Simd, launch};
use crate::types::{CodeActivation, KV_TILE as TILE};

/// Tokens or hidden values whose sums are kept at the same time.
const SUMS: usize = 4;

/// The widest vector.
const MAX_LANES: usize = 16;

/// A hidden layer in floats, for tiles with tokens as rows and for tiles with tokens as columns.
pub(super) struct HiddenLayer {
    /// `W₁ [h, r]`.
    weight: Vec<f32>,
    /// `W₁ᵀ [r, padded]`.
    transposed: Vec<f32>,
    /// `[padded]`, zeros where there is none.
    bias: Vec<f32>,
    activation: CodeActivation,
    /// Floats per code.
    pub(super) r: usize,
    /// Hidden values.
    pub(super) h: usize,
    /// `h` up to whole vectors.
    padded: usize,
}

impl HiddenLayer {
    pub(super) fn new((layer, activation): &(Layer<'_>, CodeActivation)) -> HiddenLayer {
        let (h, r) = (layer.weight.n, layer.weight.k);
        let padded = h.next_multiple_of(MAX_LANES);
        let mut weight = vec![0.0; h * r];
        dequantize_rows(&layer.weight, 0, h, &mut weight);
        let mut transposed = vec![0.0; r * padded];
        for (j, row) in weight.chunks_exact(r.max(1)).enumerate() {
            for (i, &value) in row.iter().enumerate() {
                transposed[i * padded + j] = value;
            }
        }
        let mut bias = vec![0.0; padded];
        if let Some(values) = layer.bias {
            bias[..h].copy_from_slice(values);
        }
        HiddenLayer { weight, transposed, bias, activation: *activation, r, h, padded }
    }

    /// `u [t, h]` of the codes of row `batch` of a cache.
    pub(super) fn all(&self, level: Level, codes: &Parts<&[f32]>, batch: usize, u: &mut [f32]) {
        self.tiles(level, u, |at, tokens| {
            let part = codes.at(at);
            &part.data[part.row(batch, at) * self.r..][..tokens * self.r]
        });
    }

    /// `u [t, h]` of codes `[t, r]`.
    pub(super) fn rows(&self, level: Level, codes: &[f32], u: &mut [f32]) {
        self.tiles(level, u, |at, tokens| &codes[at * self.r..(at + tokens) * self.r]);
    }

    /// `u [t, h]` of what `codes` gives for a position and the tokens from there on: a tile at a time.
    fn tiles<'a>(&self, level: Level, u: &mut [f32], codes: impl Fn(usize, usize) -> &'a [f32] + Sync) {
        let tiles = u.len() / (TILE * self.h);
        let (whole, rest) = u.split_at_mut(tiles * TILE * self.h);
        let tile = |i: usize, u: &mut [f32]| {
            let codes = codes(i * TILE, u.len() / self.h);
            launch(level, TokenRows { layer: self, codes, u, strip: self.h, ahead: Ahead::nothing() });
        };
        for_each_chunk(whole, TILE * self.h, TILE * self.h * self.r, tile);
        if !rest.is_empty() {
            tile(tiles, rest);
        }
    }

    /// `uᵀ [h, tile]` of codes `[count, r]`; `lanes [r, tile]` is overwritten. Columns from `count` on are of no token.
    ///
    /// # Safety
    /// `S` must be enabled, and `tile` a multiple of every vector.
    #[inline(always)]
    pub(super) unsafe fn columns<S: Simd>(&self, codes: &[f32], tile: usize, lanes: &mut [f32], u: &mut [f32]) {
        lanes.fill(0.0);
        for (i, code) in codes.chunks_exact(self.r).enumerate() {
            for (j, &value) in code.iter().enumerate() {
                lanes[j * tile + i] = value;
            }
        }
        // SAFETY: `S` is enabled.
        unsafe {
            match self.activation {
                CodeActivation::Gelu => self.columns_with::<S, _>(math::Gelu, tile, lanes, u),
                CodeActivation::GeluTanh => self.columns_with::<S, _>(math::GeluTanh, tile, lanes, u),
                CodeActivation::Silu => self.columns_with::<S, _>(math::Silu, tile, lanes, u),
                CodeActivation::Relu => self.columns_with::<S, _>(math::Relu, tile, lanes, u),
            }
        }
    }

    #[inline(always)]
    unsafe fn columns_with<S: Simd, F: Unary>(&self, f: F, tile: usize, codes: &[f32], u: &mut [f32]) {
        let (r, h) = (self.r, self.h);
        assert!(codes.len() >= r * tile && u.len() >= h * tile && tile.is_multiple_of(S::LANES));
        for at in (0..tile).step_by(S::LANES) {
            for first in (0..h).step_by(SUMS) {
                // SAFETY: `S` is enabled. Hidden values beyond the last are the last again; the vectors at `at` lie in rows of `tile`.
                unsafe {
                    let row = |m: usize| (first + m).min(h - 1);
                    let mut sums = [S::splat(0.0); SUMS];
                    for m in 0..SUMS {
                        sums[m] = S::splat(*self.bias.as_ptr().add(row(m)));
                    }
                    for i in 0..r {
                        let code = S::load(codes.as_ptr().add(i * tile + at));
                        for m in 0..SUMS {
                            sums[m] = S::fma(S::splat(*self.weight.as_ptr().add(row(m) * r + i)), code, sums[m]);
                        }
                    }
                    for m in 0..SUMS {
                        S::store(u.as_mut_ptr().add(row(m) * tile + at), f.at::<S>(sums[m]));
                    }
                }
            }
        }
    }
}

/// Hidden values of some tokens.
pub(super) struct TokenRows<'a> {
    pub(super) layer: &'a HiddenLayer,
    /// `[count, r]`.
    pub(super) codes: &'a [f32],
    /// `[h / strip, TILE, strip]`, or `[count, h]` and longer, written.
    pub(super) u: &'a mut [f32],
    /// Columns side by side: `h`, or [what is best](super::tokens::strip_of).
    pub(super) strip: usize,
    /// Prefetched meanwhile.
    pub(super) ahead: Ahead,
}

impl Kernel for TokenRows<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: `S` is enabled.
        unsafe {
            match self.layer.activation {
                CodeActivation::Gelu => self.with::<S, _>(math::Gelu),
                CodeActivation::GeluTanh => self.with::<S, _>(math::GeluTanh),
                CodeActivation::Silu => self.with::<S, _>(math::Silu),
                CodeActivation::Relu => self.with::<S, _>(math::Relu),
            }
        }
    }
}

impl TokenRows<'_> {
    #[inline(always)]
    unsafe fn with<S: Simd, F: Unary>(self, f: F) {
        let TokenRows { layer, codes, u, strip, mut ahead } = self;
        let (r, h) = (layer.r, layer.h);
        let count = codes.len() / r;
        if strip == h {
            assert!(u.len() >= count * h);
        } else {
            assert!(u.len() >= TILE * h && count <= TILE && h.is_multiple_of(strip) && strip.is_multiple_of(S::LANES));
        }
        ahead.spread(h.div_ceil(S::LANES) * count.div_ceil(SUMS));
        for j in (0..h).step_by(S::LANES) {
            let column = j / strip * (TILE * strip) + j % strip;
            for first in (0..count).step_by(SUMS) {
                // SAFETY: `S` is enabled. Tokens beyond the last are the last again; vector `j` lies in the padded bias and in every row
                // of the padded weight; a vector that reaches beyond a row of `u` is written up to its end.
                unsafe {
                    ahead.step::<S>();
                    let token: [usize; SUMS] = std::array::from_fn(|m| (first + m).min(count - 1));
                    let mut sums = [S::load(layer.bias.as_ptr().add(j)); SUMS];
                    for i in 0..r {
                        let w = S::load(layer.transposed.as_ptr().add(i * layer.padded + j));
                        for m in 0..SUMS {
                            sums[m] = S::fma(S::splat(*codes.as_ptr().add(token[m] * r + i)), w, sums[m]);
                        }
                    }
                    for m in 0..SUMS {
                        let (value, to) = (f.at::<S>(sums[m]), column + token[m] * strip);
                        if j + S::LANES <= h {
                            S::store(u.as_mut_ptr().add(to), value);
                        } else {
                            let mut lanes = [0.0; MAX_LANES];
                            S::store(lanes.as_mut_ptr(), value);
                            u[to..to + h - j].copy_from_slice(&lanes[..h - j]);
                        }
                    }
                }
            }
        }
    }
}
