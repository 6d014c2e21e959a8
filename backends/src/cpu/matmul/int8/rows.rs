//! One row of x: codes are looked up and multiplied as they are read, some rows of the matrix in flight. What bounds it is memory, so x
//! takes as little of the caches as it can.

use super::BLOCK;
use super::gemv::{Codes, Gemv, Packing, WeightScales, for_stored_rows};
use super::round::Block;
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::packed::{AHEAD, block_scales};
use crate::cpu::matmul::types::InputRows;
use crate::cpu::matmul::weight::{BlockScales, CodeBook4, Weight};
use crate::cpu::pool::Output;
use crate::cpu::pool::Region;
use std::arch::x86_64::*;

/// Sequential streams in which the rows of a task are read.
const STREAMS: usize = 4;
/// How many bytes ahead rows of bytes are prefetched: further ahead than what hardware prefetchers do costs more than it brings.
const BYTES_AHEAD: usize = 1024;

/// x in the order in which codes leave the bytes. Groups are 64 bytes of codes.
pub(crate) struct Row {
    /// `[group][code of a byte][byte]`.
    low: Vec<i8>,
    /// As `low`; empty without outliers.
    high: Vec<i8>,
    /// `[group]`: whether there are outliers.
    outliers: Vec<bool>,
    /// `[group][lane]`: what the offset of the weights adds, negated. Empty for bytes, where it is computed on the way.
    start: Vec<i32>,
    /// `[group][block]`.
    steps: Vec<f32>,
}

impl Row {
    fn new(x: &[f32], packing: Packing) -> Row {
        // SAFETY: `kernels` has found the features.
        unsafe {
            match packing.codes {
                Codes::Bytes => Row::order::<1>(x, packing, 0),
                Codes::Nibbles { high_first } => Row::order::<2>(x, packing, usize::from(high_first)),
                Codes::Pairs => Row::order::<4>(x, packing, 0),
            }
        }
    }

    /// The element at `e` of a byte is multiplied by the code at bit `8 / PER_BYTE * (e ^ flip)`.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn order<const PER_BYTE: usize>(x: &[f32], packing: Packing, flip: usize) -> Row {
        let group = 64 * PER_BYTE;
        let groups = x.len().div_ceil(group);
        let mut made = Row {
            low: vec![0; groups * group],
            high: Vec::new(),
            outliers: vec![false; groups],
            start: vec![0; if PER_BYTE == 1 { 0 } else { groups * 16 }],
            steps: vec![0.0; groups * PER_BYTE],
        };
        let threshold = packing.detail.threshold(x);
        for (index, x) in x.chunks_exact(BLOCK).enumerate() {
            let at = index / PER_BYTE;
            // The bytes of the group that this block fills.
            let from = index % PER_BYTE * (BLOCK / PER_BYTE);
            let block = Block::avx512(x, threshold);
            // SAFETY: as above.
            unsafe { spread::<PER_BYTE>(&block.low, &mut made.low[at * group + from..], flip) };
            if block.outliers {
                made.outliers[at] = true;
                made.high.resize(made.low.len(), 0);
                // SAFETY: as above.
                unsafe { spread::<PER_BYTE>(&block.high, &mut made.high[at * group + from..], flip) };
            }
            made.steps[index] = block.step;
            // Lanes hold 8 or 16 elements.
            let start = made.start.get_mut(at * 16 + from / 4..).unwrap_or_default();
            match PER_BYTE {
                1 => {}
                2 => block.sums::<8>(|lane, sum| start[lane] = packing.shift.of(sum) - packing.offset * sum),
                _ => block.sums::<16>(|lane, sum| start[lane] = -packing.offset * sum),
            }
        }
        made
    }
}

/// Puts the bytes of a block where the codes of a group are multiplied by them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn spread<const PER_BYTE: usize>(block: &[i8; BLOCK], to: &mut [i8], flip: usize) {
    let bytes = BLOCK / PER_BYTE;
    // SAFETY: the stores write `bytes` bytes to each slice.
    unsafe {
        let q = _mm512_loadu_si512(block.as_ptr().cast());
        for e in 0..PER_BYTE {
            let to = to[(e ^ flip) * 64..][..bytes].as_mut_ptr();
            match PER_BYTE {
                1 => _mm512_storeu_si512(to.cast(), q),
                2 if e == 0 => _mm256_storeu_si256(to.cast(), _mm512_cvtepi16_epi8(q)),
                2 => _mm256_storeu_si256(to.cast(), _mm512_cvtepi16_epi8(_mm512_srli_epi16::<8>(q))),
                _ => {
                    let by = _mm_cvtsi32_si128(8 * e as i32);
                    _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_srl_epi32(q, by)));
                }
            }
        }
    }
}

/// Adds a product with one row of x. Rows go where they are stored.
pub(crate) fn add_gemv<'a>(
    rows: &InputRows<'a>,
    memo: &Memo<Packing, Row>,
    w: Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    for_stored_rows(rows, memo, &w, bias, y, |packing| Row::new(rows.x, packing), |gemv| add(gemv, region));
}

/// Quantised block scales of which the two of a group share their absmax.
#[derive(Clone, Copy)]
pub(super) struct Nested<'a> {
    pub(super) codes: &'a [u8],
    pub(super) map: &'a [f32; 256],
    pub(super) absmax: &'a [f32],
    /// Scales per absmax are two to this.
    pub(super) shift: u32,
    pub(super) offset: f32,
}

impl<'a> Nested<'a> {
    const NONE: Nested<'a> = Nested { codes: &[], map: &[0.0; 256], absmax: &[], shift: 0, offset: 0.0 };

    pub(super) fn new(w: &CodeBook4<'a>, k: usize) -> Option<Nested<'a>> {
        let BlockScales::Double { codes, map, absmax, block, offset } = w.scales else {
            return None;
        };
        let fits = w.block == BLOCK && k.is_multiple_of(2 * BLOCK) && block.is_power_of_two() && block > 1;
        let map = <&[f32; 256]>::try_from(map).ok().filter(|_| fits)?;
        Some(Nested { codes, map, absmax, shift: block.trailing_zeros(), offset })
    }
}

/// How a pass gets at the scales.
const ROWS: u8 = 0;
/// Of blocks, as they are stored or decoded row by row.
const DECODED: u8 = 1;
/// Of blocks, looked up and multiplied by the absmax that they share on the way.
const NESTED: u8 = 2;
/// Of blocks of bytes, in half precision.
const HALVES: u8 = 3;

/// A factor for each of the two blocks of a group.
///
/// # Safety
/// The processor has AVX-512, and the pointers are valid.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn two(first: *const f32, second: *const f32) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_mask_broadcastss_ps(_mm512_set1_ps(*first), 0xff00, _mm_load_ss(second)) }
}

/// Adds a product to a region.
fn add<'a>(gemv: Gemv<'a, Row>, region: &mut Region<'a>) {
    let row_bytes = gemv.row_bytes();
    region.add(gemv.w.data.as_ptr(), (gemv.w.rows, gemv.w.stride), row_bytes, move |first, last| {
        // SAFETY: `kernels` has found AVX-512 VNNI and VBMI, the matrix was checked, and tasks have different rows.
        unsafe {
            match (gemv.w.codes, &gemv.w.scales) {
                (Codes::Nibbles { .. }, WeightScales::CodeBook(w, _)) if Nested::new(w, gemv.k).is_some() => {
                    gemv.range::<4, NESTED>(first, last)
                }
                (Codes::Nibbles { .. }, WeightScales::CodeBook(..)) => gemv.range::<4, DECODED>(first, last),
                (Codes::Nibbles { .. }, _) => gemv.range::<4, ROWS>(first, last),
                (Codes::Bytes, WeightScales::Int8(_)) => gemv.range::<8, HALVES>(first, last),
                (Codes::Bytes, _) => gemv.range::<8, ROWS>(first, last),
                (Codes::Pairs, _) => gemv.range::<2, ROWS>(first, last),
            }
        }
    });
}

impl Gemv<'_, Row> {
    /// Bytes of a row that hold codes.
    fn row_bytes(&self) -> usize {
        match self.w.codes {
            Codes::Bytes => self.k,
            Codes::Nibbles { .. } => self.k / 2,
            Codes::Pairs => self.k / 4,
        }
    }

    /// Rows `first..last`, [`STREAMS`] of them in flight.
    ///
    /// # Safety
    /// The processor has AVX-512 VNNI and VBMI, the rows exist, and no other task writes their outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn range<const BITS: usize, const SCALES: u8>(&self, first: usize, last: usize) {
        // One more: a group covers two blocks.
        let per_row = if SCALES == DECODED { self.k / BLOCK + 1 } else { 0 };
        let mut scales = vec![0.0; STREAMS * per_row];
        // Streams far apart, each read in order: that is what hardware prefetchers follow.
        let apart = (last - first) / STREAMS;
        // The rest one at a time: the same row several times, to spare a kernel of its own.
        let rest = first + apart * STREAMS;
        for row in (first..first + apart).chain(rest..last) {
            let apart = if row < rest { apart } else { 0 };
            // SAFETY: the rows lie before `last`.
            unsafe { self.rows::<BITS, SCALES>(row, apart, per_row, &mut scales) };
        }
    }

    /// Rows `row`, `row + apart`, ..., [`STREAMS`] of them.
    ///
    /// # Safety
    /// As for `range`, and x is ordered for `BITS`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn rows<const BITS: usize, const SCALES: u8>(
        &self,
        row: usize,
        apart: usize,
        per_row: usize,
        scales: &mut [f32],
    ) {
        const R: usize = STREAMS;
        let (k, row_bytes) = (self.k, self.row_bytes());
        // Where the scales of row `r` of `R` lie.
        let (mut w_scales, mut scale_stride) = (scales.as_ptr(), per_row);
        let (mut nested, mut halves) = (Nested::NONE, std::ptr::null::<u16>());
        for r in 0..R {
            for line in self.w.scales.lines_ahead(k, row + r * apart) {
                _mm_prefetch::<_MM_HINT_T0>(line.cast());
            }
        }
        match &self.w.scales {
            WeightScales::PerRow(_) => {}
            WeightScales::Int8(w) => {
                scale_stride = apart * (k / BLOCK);
                halves = w.scales.as_ptr().wrapping_add(row * (k / BLOCK));
            }
            WeightScales::CodeBook(w, _) if SCALES == NESTED => nested = Nested::new(w, k).unwrap_or(nested),
            WeightScales::CodeBook(w, _) => match w.scales {
                BlockScales::Single(stored) if w.block == BLOCK && k.is_multiple_of(2 * BLOCK) => {
                    w_scales = stored[row * k / BLOCK..].as_ptr();
                    scale_stride = apart * k / BLOCK;
                }
                _ => {
                    for r in 0..R {
                        block_scales(w, (row + r * apart) * k, &mut scales[r * per_row..(r + 1) * per_row - 1]);
                    }
                }
            },
        }
        // SAFETY: the last group of a row is read under a mask; x and decoded scales are padded to whole groups, and
        // the check of the matrix found a nested scale for each of its blocks.
        unsafe {
            let book = _mm_add_epi8(_mm_loadu_si128(self.w.table.as_ptr().cast()), _mm_set1_epi8(self.w.offset as i8));
            let book = _mm512_broadcast_i32x4(book);
            let quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            let (nibble, pair, flip) = (_mm512_set1_epi8(15), _mm512_set1_epi8(3), _mm512_set1_epi8(-128));
            // One pointer and a step, for a pointer per row would not stay in the registers.
            let codes = self.w.data.as_ptr().add(row * self.w.stride);
            let scale_codes = nested.codes.as_ptr().wrapping_add(row * (row_bytes / 32));
            let (code_step, scale_step) = (apart * self.w.stride, apart * (row_bytes / 32));
            let planes = 8 / BITS;
            // Whole groups only, where the storage says so.
            let even = SCALES == NESTED || BITS == 8;
            let whole = row_bytes / 64;
            let tail = (1u64 << (row_bytes % 64)) - 1;
            let mut total = [_mm512_setzero_ps(); R];
            let groups = row_bytes.div_ceil(64);
            let (mut absmax, mut turn) = ([_mm512_setzero_ps(); R], 0);
            for g in 0..groups {
                if SCALES == NESTED && g == turn {
                    // The next group at which a row comes to another absmax.
                    turn = groups;
                    for (r, absmax) in absmax.iter_mut().enumerate() {
                        let block = (row + r * apart) * (row_bytes / 32) + 2 * g;
                        *absmax = _mm512_set1_ps(nested.absmax[block >> nested.shift]);
                        turn = turn.min(g + ((((block >> nested.shift) + 1) << nested.shift) - block) / 2);
                    }
                }
                let mut weights = [[_mm512_setzero_si512(); 4]; R];
                let mut w_scale = [_mm512_set1_ps(1.0); R];
                let (mut at, mut scale_at) = (codes.add(g * 64), scale_codes.wrapping_add(2 * g));
                let (mut w_scales, mut halves) = (w_scales.wrapping_add(2 * g), halves.wrapping_add(g));
                for r in 0..R {
                    // Into L2: rows are often a power of two apart, and would push each other and x out of L1.
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(if BITS == 8 { BYTES_AHEAD } else { AHEAD }).cast());
                    let bytes = if even || g < whole {
                        _mm512_loadu_si512(at.cast())
                    } else {
                        _mm512_maskz_loadu_epi8(tail, at.cast())
                    };
                    weights[r] = match BITS {
                        8 => [_mm512_xor_si512(bytes, flip); 4],
                        4 if SCALES != ROWS => {
                            // The book lies in the register four times, so that the upper bits do not matter.
                            let high = _mm512_permutexvar_epi8(_mm512_srli_epi16::<4>(bytes), book);
                            let low = _mm512_permutexvar_epi8(bytes, book);
                            [low, high, low, high]
                        }
                        4 => {
                            let low = _mm512_and_si512(bytes, nibble);
                            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), nibble);
                            [low, high, low, high]
                        }
                        _ => [
                            _mm512_and_si512(bytes, pair),
                            _mm512_and_si512(_mm512_srli_epi16::<2>(bytes), pair),
                            _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), pair),
                            _mm512_and_si512(_mm512_srli_epi16::<6>(bytes), pair),
                        ],
                    };
                    match SCALES {
                        HALVES => w_scale[r] = _mm512_cvtph_ps(_mm256_set1_epi16(*halves as i16)),
                        DECODED => w_scale[r] = two(w_scales, w_scales.add(1)),
                        NESTED => {
                            let of = |i: usize| nested.map.as_ptr().add(usize::from(*scale_at.add(i)));
                            let scaled = _mm512_mul_ps(two(of(0), of(1)), absmax[r]);
                            w_scale[r] = _mm512_add_ps(scaled, _mm512_set1_ps(nested.offset));
                        }
                        _ => {}
                    }
                    (at, scale_at) = (at.wrapping_add(code_step), scale_at.wrapping_add(scale_step));
                    (w_scales, halves) = (w_scales.wrapping_add(scale_stride), halves.wrapping_add(scale_stride));
                }
                let mut xs = [_mm512_setzero_si512(); 4];
                for plane in 0..planes {
                    xs[plane] = _mm512_loadu_si512(self.x.low.as_ptr().add((g * planes + plane) * 64).cast());
                }
                let zero = _mm512_setzero_si512();
                // Bytes are 128 too large.
                let start_of = |x| _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, flip, x));
                let start = match BITS {
                    8 => start_of(xs[0]),
                    _ => _mm512_loadu_si512(self.x.start.as_ptr().add(g * 16).cast()),
                };
                let step = self.x.steps.as_ptr().add(g * planes);
                let step = match BITS {
                    8 => _mm512_set1_ps(*step),
                    4 => two(step, step.add(1)),
                    _ => _mm512_permutexvar_ps(quarters, _mm512_castps128_ps512(_mm_loadu_ps(step))),
                };
                let mut sums = [start; R];
                for r in 0..R {
                    for plane in 0..planes {
                        sums[r] = _mm512_dpbusd_epi32(sums[r], weights[r][plane], xs[plane]);
                    }
                }
                if *self.x.outliers.as_ptr().add(g) {
                    for plane in 0..planes {
                        xs[plane] = _mm512_loadu_si512(self.x.high.as_ptr().add((g * planes + plane) * 64).cast());
                    }
                    let start = if BITS == 8 { start_of(xs[0]) } else { zero };
                    for r in 0..R {
                        let mut high = start;
                        for plane in 0..planes {
                            high = _mm512_dpbusd_epi32(high, weights[r][plane], xs[plane]);
                        }
                        sums[r] = _mm512_add_epi32(sums[r], _mm512_slli_epi32::<7>(high));
                    }
                }
                for r in 0..R {
                    let scale = if SCALES == ROWS { step } else { _mm512_mul_ps(step, w_scale[r]) };
                    total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r]), scale, total[r]);
                }
            }
            for r in 0..R {
                self.store(row + r * apart, [_mm512_reduce_add_ps(total[r])]);
            }
        }
    }
}
