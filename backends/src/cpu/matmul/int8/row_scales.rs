//! Scales of some rows of a matrix that are multiplied by one of x at a time, a group of 64 bytes of codes of each.

use super::BLOCK;
use super::gemv::{Nested, Stored, WeightScales};
use crate::cpu::matmul::packed::block_scales;
use crate::cpu::matmul::weight::{BlockScales, CodeBook4};
use std::arch::x86_64::*;

/// Rows in flight: sequential streams in which the rows of a task are read.
pub(super) const STREAMS: usize = 4;

/// How scales are got at: of whole rows, which are not needed before their sums are there.
pub(super) const ROWS: u8 = 0;
/// Of blocks, as they are stored or decoded row by row.
pub(super) const DECODED: u8 = 1;
/// Of blocks, looked up and multiplied by the absmax that they share on the way.
pub(super) const NESTED: u8 = 2;
/// Of blocks of bytes, in half precision.
pub(super) const HALVES: u8 = 3;

/// None.
const NONE: Nested<'static> = Nested { codes: &[], map: &[0.0; 256], absmax: &[], block: 1, offset: 0.0 };

impl<'a> Nested<'a> {
    /// Those of which the two of a group share their absmax.
    pub(super) fn in_groups(w: &CodeBook4<'a>, k: usize) -> Option<Nested<'a>> {
        let fits = |nested: &Nested| nested.block.is_power_of_two() && nested.block > 1;
        Nested::of(w).filter(fits).filter(|_| k.is_multiple_of(2 * BLOCK))
    }

    /// Scales per absmax are two to this, if they are a power of two.
    #[inline(always)]
    pub(super) fn shift(&self) -> u32 {
        self.block.trailing_zeros()
    }

    /// The absmax of each row in flight from group `g` on, twice, and the next group at which one of them comes to another.
    #[target_feature(enable = "avx512f,avx512vl")]
    #[inline]
    fn absmax_of(&self, flight: Flight, blocks: usize, g: usize) -> (__m256, usize) {
        let (mut until, mut of_rows) = (usize::MAX, [0.0; STREAMS]);
        let shift = self.shift();
        for (row, absmax) in flight.rows().into_iter().zip(&mut of_rows) {
            let block = row * blocks + 2 * g;
            let at = block >> shift;
            until = until.min(g + (((at + 1) << shift) - block) / 2);
            *absmax = self.absmax[at];
        }
        let [a, b, c, d] = of_rows;
        (_mm256_setr_ps(a, a, b, b, c, c, d, d), until)
    }
}

/// The [`STREAMS`] rows in flight: the first, and how many rows apart the others are.
#[derive(Clone, Copy)]
pub(super) struct Flight {
    pub(super) row: usize,
    pub(super) apart: usize,
}

impl Flight {
    pub(super) fn rows(self) -> [usize; STREAMS] {
        std::array::from_fn(|r| self.row + r * self.apart)
    }
}

/// The scales of a matrix: what its rows share.
pub(super) struct MatrixScales<'a> {
    pub(super) stored: Stored,
    /// Blocks of a row.
    blocks: usize,
    nested: Nested<'a>,
    /// What has to be decoded before a product, and room for the scales of the rows in flight.
    decoded: Option<(CodeBook4<'a>, Vec<f32>)>,
}

impl<'a> MatrixScales<'a> {
    /// Those of a matrix of `k` columns.
    pub(super) fn new<const KIND: u8>(scales: &WeightScales<'a>, k: usize) -> MatrixScales<'a> {
        let blocks = k / BLOCK;
        let (mut nested, mut decoded) = (NONE, None);
        if let WeightScales::CodeBook(w, _) = scales {
            let whole = w.block == BLOCK && k.is_multiple_of(2 * BLOCK);
            match w.scales {
                _ if KIND == NESTED => nested = Nested::in_groups(w, k).unwrap_or(NONE),
                BlockScales::Single(_) if whole => {}
                // One more for each row: a group covers two blocks.
                _ => decoded = Some((*w, vec![0.0; STREAMS * (blocks + 1)])),
            }
        }
        MatrixScales { stored: scales.stored(k), blocks, nested, decoded }
    }

    /// The scales of rows in flight.
    ///
    /// # Safety
    /// The processor has AVX-512, and the rows exist; what an earlier call gave is used no more.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    pub(super) unsafe fn of(&mut self, flight: Flight) -> Scales<'a> {
        let Stored { first, of_row } = self.stored;
        let (mut first, mut stride) = (first.wrapping_add(flight.row * of_row), flight.apart * of_row);
        if let Some((w, scales)) = &mut self.decoded {
            for (row, scales) in flight.rows().into_iter().zip(scales.chunks_exact_mut(self.blocks + 1)) {
                decode(w, row * self.blocks * BLOCK, &mut scales[..self.blocks]);
            }
            (first, stride) = (scales.as_ptr().cast(), size_of::<f32>() * (self.blocks + 1));
        }
        let (absmax, until) = (_mm256_setzero_ps(), 0);
        Scales { first, stride, flight, blocks: self.blocks, nested: self.nested, absmax, until }
    }
}

/// The scales of rows in flight, which groups are asked for in order.
pub(super) struct Scales<'a> {
    /// Of group 0 of the first row: floats, halves or codes.
    first: *const u8,
    /// Bytes from one row in flight to the next.
    stride: usize,
    flight: Flight,
    /// Blocks of a row.
    blocks: usize,
    nested: Nested<'a>,
    /// Of each row in flight, twice; it is the same in the groups before `until`.
    absmax: __m256,
    until: usize,
}

impl Scales<'_> {
    /// The scales of group `g` times the steps of x: of each row in flight its own with bytes, else those of its two blocks.
    ///
    /// # Safety
    /// The processor has AVX-512, and rows and x have the group.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    pub(super) unsafe fn factors<const KIND: u8>(&mut self, g: usize, steps: *const f32) -> __m256 {
        let row = |r: usize| self.first.wrapping_add(r * self.stride);
        // SAFETY: the caller's promise; a code is less than the length of the map.
        unsafe {
            // Two steps for each row.
            let steps_of_blocks = || _mm256_castpd_ps(_mm256_set1_pd(steps.cast::<f64>().read_unaligned()));
            match KIND {
                HALVES => {
                    let of = |r: usize| *row(r).cast::<i16>().add(g);
                    let scales = _mm_cvtph_ps(_mm_setr_epi16(of(0), of(1), of(2), of(3), 0, 0, 0, 0));
                    _mm256_castps128_ps256(_mm_mul_ps(scales, _mm_set1_ps(*steps)))
                }
                DECODED => {
                    let of = |r: usize| row(r).cast::<f64>().add(g).read_unaligned();
                    let scales = _mm256_castpd_ps(_mm256_setr_pd(of(0), of(1), of(2), of(3)));
                    _mm256_mul_ps(scales, steps_of_blocks())
                }
                NESTED => {
                    let nested = &self.nested;
                    if g == self.until {
                        (self.absmax, self.until) = nested.absmax_of(self.flight, self.blocks, g);
                    }
                    let of = |r: usize, i: usize| *nested.map.get_unchecked(usize::from(*row(r).add(2 * g + i)));
                    let (a, b) = (
                        _mm_setr_ps(of(0, 0), of(0, 1), of(1, 0), of(1, 1)),
                        _mm_setr_ps(of(2, 0), of(2, 1), of(3, 0), of(3, 1)),
                    );
                    let found = _mm256_set_m128(b, a);
                    let scales = _mm256_add_ps(_mm256_mul_ps(found, self.absmax), _mm256_set1_ps(nested.offset));
                    _mm256_mul_ps(scales, steps_of_blocks())
                }
                _ => _mm256_setzero_ps(),
            }
        }
    }
}

/// [`block_scales`], apart from the loop over groups, which would load its constants again and again.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
fn decode(w: &CodeBook4, element: usize, scales: &mut [f32]) {
    block_scales(w, element, scales);
}
