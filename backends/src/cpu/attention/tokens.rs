//! A tile of vectors that all heads share: hidden values, or codes of a linear decoder.

use crate::cpu::attention::parts::Parts;
use crate::cpu::attention::products::{GEMM_MIN_ROWS, floats, weigh};
use crate::cpu::attention::q8::Q8Rows;
use crate::cpu::cache::CacheSlice;
use crate::cpu::matmul::dense::{self, Element, F16};
use crate::cpu::matmul::gemm::{VECTORS, small};
use crate::cpu::simd::Simd;
use crate::types::KV_TILE as TILE;

/// The vectors of some positions, `[count, width]`.
pub(super) enum TokenTile<'a> {
    F32(&'a [f32]),
    F16(&'a [F16]),
    Q8(Q8Rows<'a>),
}

impl<'a> TokenTile<'a> {
    /// Those of `count` positions from `at` on of a row of the batch.
    pub(super) fn new(parts: &Parts<CacheSlice<'a>>, width: usize, batch: usize, at: usize, count: usize) -> Self {
        let part = parts.at(at);
        let row = part.row(batch, at);
        let range = row * width..(row + count) * width;
        match part.data {
            CacheSlice::F32(data) => Self::F32(&data[range]),
            CacheSlice::F16(data) => Self::F16(&dense::f16(data)[range]),
            CacheSlice::Q8 { codes, scales } => Self::Q8(Q8Rows::new(codes, scales, width, row, count)),
        }
    }

    /// As floats: themselves, or what is written to `numbers`, which has room for a tile.
    ///
    /// # Safety
    /// `S` must be enabled.
    #[inline(always)]
    pub(super) unsafe fn floats<S: Simd>(self, numbers: &'a mut [f32]) -> &'a [f32] {
        // SAFETY: `S` is enabled.
        unsafe {
            match self {
                Self::F32(data) => data,
                Self::F16(data) => {
                    floats::<S, _>(data, numbers);
                    &numbers[..data.len()]
                }
                Self::Q8(rows) => {
                    rows.floats::<S>(numbers);
                    &numbers[..rows.count() * rows.width]
                }
            }
        }
    }

    /// `out[r] += Σ weights[r][i] values[i]` for `rows` rows of `TILE` weights and of `width` results. Both scratches have room for a tile.
    ///
    /// # Safety
    /// `S` must be enabled.
    #[inline(always)]
    pub(super) unsafe fn weigh<S: Simd>(
        self,
        shape: (usize, usize),
        weights: &[f32],
        [tile, numbers]: [&mut [f32]; 2],
        out: &mut [f32],
    ) {
        // SAFETY: `S` is enabled.
        unsafe {
            match self {
                TokenTile::F16(data) => weigh_all::<S, _>(shape, weights, data, tile, out),
                values => weigh_all::<S, f32>(shape, weights, values.floats::<S>(numbers), tile, out),
            }
        }
    }
}

/// See [`TokenTile::weigh`].
#[inline(always)]
unsafe fn weigh_all<S: Simd, E: Element>(
    (rows, width): (usize, usize),
    weights: &[f32],
    values: &[E],
    tile: &mut [f32],
    out: &mut [f32],
) {
    let strip = if rows < GEMM_MIN_ROWS { width } else { strip_of::<S>(width) };
    // SAFETY: `S` is enabled.
    unsafe {
        if strip == width {
            weigh::<S, E>(weights, values, width, tile, out, None);
        } else {
            weigh_by_strips::<S, E>((rows, width), weights, values, strip, tile, out);
        }
    }
}

/// Columns side by side in a tile `[width / strip, TILE, strip]` that is read `strip` columns at a time: rows as long as `width` would come
/// from few sets of the L1 cache. `width` itself where its rows have no whole strips.
pub(super) fn strip_of<S: Simd>(width: usize) -> usize {
    let strip = VECTORS * S::LANES;
    if width.is_multiple_of(strip) { strip } else { width }
}

/// `out[r] += Σ weights[r][i] values[i]` for `rows` rows of `TILE` weights and values `[count, width]`, which become floats a strip at a time.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
unsafe fn weigh_by_strips<S: Simd, E: Element>(
    (rows, width): (usize, usize),
    weights: &[f32],
    values: &[E],
    strip: usize,
    tile: &mut [f32],
    out: &mut [f32],
) {
    let count = values.len() / width;
    assert!(weights.len() >= rows * TILE && out.len() >= rows * width && count <= TILE && tile.len() >= TILE * strip);
    assert!(width.is_multiple_of(strip) && strip.is_multiple_of(S::LANES));
    for column in (0..width).step_by(strip) {
        // SAFETY: `S` is enabled. Columns lie in the rows of values and results, which have whole vectors of them, as the strip has; the slices
        // hold these rows.
        unsafe {
            for i in 0..count {
                let (from, to) = (values.as_ptr().add(i * width + column), tile.as_mut_ptr().add(i * strip));
                for lane in (0..strip).step_by(S::LANES) {
                    S::store(to.add(lane), E::load::<S>(from.add(lane)));
                }
            }
            let out = out.as_mut_ptr().add(column);
            small::<S>((rows, count, strip), weights.as_ptr(), TILE, tile.as_ptr(), strip, out, width, false);
        }
    }
}

/// The same with a tile of values in strips, `[width / strip, TILE, strip]`.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(super) unsafe fn weigh_strips<S: Simd>(
    (rows, count): (usize, usize),
    weights: &[f32],
    tile: &[f32],
    [strip, width]: [usize; 2],
    out: &mut [f32],
) {
    assert!(weights.len() >= rows * TILE && out.len() >= rows * width && count <= TILE && width.is_multiple_of(strip));
    for (i, values) in tile[..TILE * width].chunks_exact(TILE * strip).enumerate() {
        let (weights, values, out) = (weights.as_ptr(), values.as_ptr(), out.as_mut_ptr());
        // SAFETY: `S` is enabled; the slices hold these rows, and strip `i` lies in each row of the results.
        unsafe { small::<S>((rows, count, strip), weights, TILE, values, strip, out.add(i * strip), width, false) };
    }
}
