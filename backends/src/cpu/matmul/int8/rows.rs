//! A few rows of x: codes are looked up and multiplied as they are read, some rows of the matrix in flight.

use super::BLOCK;
use super::book::Shift;
use super::gemv::{Codes, Gemv, StoredRows, WeightScales};
use super::round::{Block, Detail};
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::packed::{AHEAD, block_scales};
use crate::cpu::matmul::types::InputRows;
use crate::cpu::matmul::weight::{BlockScales, CodeBook4, Weight};
use crate::cpu::pool::Output;
use crate::cpu::pool::Region;
use std::arch::x86_64::*;

/// Sequential streams in which the rows of a task are read.
const STREAMS: usize = 4;
/// The most rows of x.
pub(super) const MAX_COLUMNS: usize = 4;
/// How many bytes ahead the scales of bytes are prefetched.
const SCALES_AHEAD: usize = 256;

/// x in the order in which codes leave the bytes.
pub(crate) struct Columns {
    /// `[group][column][code of a byte][byte]`.
    low: Vec<i8>,
    /// As `low`; empty without outliers.
    high: Vec<i8>,
    /// `[group][column]`: whether there are outliers.
    outliers: Vec<bool>,
    /// `[group][column][lane]`: what the offset of the weights adds, negated.
    start: Vec<i32>,
    /// `[group][column][lane]`.
    steps: Vec<f32>,
    columns: usize,
}

/// How codes leave the bytes. Groups are 64 bytes of codes; the element at `e` of a byte is multiplied by the code at bit
/// `bits * (e ^ flip)`, which is `offset` too large and `shift` too small.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Packing {
    bits: usize,
    flip: usize,
    offset: i32,
    shift: Shift,
    detail: Detail,
}

impl Columns {
    fn new(x: &[f32], m: usize, k: usize, packing: Packing) -> Columns {
        // SAFETY: `kernels` has found the features.
        unsafe {
            match packing.bits {
                8 => Columns::order::<1>(x, m, k, packing),
                4 => Columns::order::<2>(x, m, k, packing),
                _ => Columns::order::<4>(x, m, k, packing),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn order<const PER_BYTE: usize>(x: &[f32], m: usize, k: usize, packing: Packing) -> Columns {
        let columns = m.next_power_of_two();
        let group = 64 * PER_BYTE;
        let groups = k.div_ceil(group);
        let mut low = vec![0i8; groups * columns * group];
        let mut high = Vec::new();
        let mut outliers = vec![false; groups * columns];
        let mut start = vec![0i32; groups * columns * 16];
        let mut steps = vec![0f32; groups * columns * 16];
        for (column, x) in x.chunks_exact(k).enumerate().take(m) {
            let threshold = packing.detail.threshold(x);
            for (block, x) in x.chunks_exact(BLOCK).enumerate() {
                let at = block / PER_BYTE * columns + column;
                // The bytes of the group that this block fills.
                let bytes = BLOCK / PER_BYTE;
                let from = block % PER_BYTE * bytes;
                let block = Block::avx512(x, threshold);
                // SAFETY: as above.
                unsafe { spread::<PER_BYTE>(&block.low, &mut low[at * group + from..], packing.flip) };
                if block.outliers {
                    outliers[at] = true;
                    high.resize(low.len(), 0);
                    // SAFETY: as above.
                    unsafe { spread::<PER_BYTE>(&block.high, &mut high[at * group + from..], packing.flip) };
                }
                // Lanes hold 4, 8 or 16 elements.
                let lanes = BLOCK / (4 * PER_BYTE);
                let first = at * 16 + from / 4;
                let starts = &mut start[first..][..lanes];
                match PER_BYTE {
                    1 => block.sums::<4>(|lane, sum| starts[lane] = -packing.offset * sum),
                    2 => block.sums::<8>(|lane, sum| starts[lane] = packing.shift.of(sum) - packing.offset * sum),
                    _ => block.sums::<16>(|lane, sum| starts[lane] = -packing.offset * sum),
                }
                steps[first..][..lanes].fill(block.step);
            }
        }
        Columns { low, high, outliers, start, steps, columns }
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

/// Adds a product with at most [`MAX_COLUMNS`] rows of x. Rows go where they are stored.
pub(crate) fn add_gemv<'a>(
    rows: &InputRows<'a>,
    memo: &Memo<Packing, Columns>,
    w: Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    let &InputRows { x, m, k, .. } = rows;
    for w in StoredRows::of(&w) {
        let (bits, flip) = match w.codes {
            Codes::Bytes => (8, 0),
            Codes::Nibbles { high_first } => (4, usize::from(high_first)),
            Codes::Pairs => (2, 0),
        };
        let packing = Packing { bits, flip, offset: w.offset, shift: w.shift, detail: Detail::of(rows.input) };
        let x = memo.get(packing, || Columns::new(x, m, k, packing));
        add(Gemv { w, x, m, k, bias, y }, region);
    }
}

/// Numbers of IEEE half precision, padded with zeros to the length of `out`, a multiple of 16 that is no more than 15 longer: whole
/// registers are stored, since what a masked store wrote has to reach the cache before it can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
pub(super) unsafe fn halves(bits: &[u16], out: &mut [f32]) {
    for (bits, out) in bits.chunks(16).zip(out.chunks_exact_mut(16)) {
        // SAFETY: 16 floats, and the mask leaves the halves that there are.
        unsafe {
            let bits = match bits.len() {
                16 => _mm256_loadu_si256(bits.as_ptr().cast()),
                len => _mm256_maskz_loadu_epi16((1u16 << len) - 1, bits.as_ptr().cast()),
            };
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(bits));
        }
    }
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
/// Of blocks, decoded row by row.
const DECODED: u8 = 1;
/// Of blocks, looked up on the way in a table for the absmax that they share.
const NESTED: u8 = 2;

/// The scale of each code under one absmax, for one row in flight.
struct ScaleTable {
    absmax: usize,
    scales: [f32; 256],
}

impl ScaleTable {
    fn new() -> ScaleTable {
        ScaleTable { absmax: usize::MAX, scales: [0.0; 256] }
    }

    /// Makes it the table of this absmax.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    fn turn_to(&mut self, absmax: usize, nested: &Nested) {
        if self.absmax != absmax {
            let by = nested.absmax[absmax];
            for (scale, value) in self.scales.iter_mut().zip(nested.map) {
                *scale = value * by + nested.offset;
            }
            self.absmax = absmax;
        }
    }
}

/// Adds a product to a region.
fn add<'a>(gemv: Gemv<'a, Columns>, region: &mut Region<'a>) {
    let row_bytes = gemv.row_bytes();
    region.add(gemv.w.data.as_ptr(), (gemv.w.rows, gemv.w.stride), gemv.m * row_bytes, move |first, last| {
        // SAFETY: `kernels` has found AVX-512 VNNI and VBMI, the matrix was checked, and tasks have different rows.
        unsafe {
            match (gemv.w.codes, &gemv.w.scales) {
                (Codes::Nibbles { .. }, WeightScales::CodeBook(w, _)) if Nested::new(w, gemv.k).is_some() => {
                    gemv.columns::<4, NESTED>(first, last)
                }
                (Codes::Nibbles { .. }, WeightScales::CodeBook(..)) => gemv.columns::<4, DECODED>(first, last),
                (Codes::Nibbles { .. }, _) => gemv.columns::<4, ROWS>(first, last),
                (Codes::Bytes, WeightScales::Int8(_)) => gemv.columns::<8, DECODED>(first, last),
                (Codes::Bytes, _) => gemv.columns::<8, ROWS>(first, last),
                (Codes::Pairs, _) => gemv.columns::<2, ROWS>(first, last),
            }
        }
    });
}

impl Gemv<'_, Columns> {
    /// Bytes of a row that hold codes.
    fn row_bytes(&self) -> usize {
        match self.w.codes {
            Codes::Bytes => self.k,
            Codes::Nibbles { .. } => self.k / 2,
            Codes::Pairs => self.k / 4,
        }
    }

    /// # Safety
    /// As for `range`.
    unsafe fn columns<const BITS: usize, const SCALES: u8>(&self, first: usize, last: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.x.columns {
                1 => self.range::<BITS, SCALES, STREAMS, 1>(first, last),
                2 => self.range::<BITS, SCALES, STREAMS, 2>(first, last),
                // The sums of four rows would not stay in the registers.
                _ => self.range::<BITS, SCALES, 2, 4>(first, last),
            }
        }
    }

    /// Rows `first..last`, `R` of them in flight.
    ///
    /// # Safety
    /// The processor has AVX-512 VNNI and VBMI, the rows exist, and no other task writes their outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn range<const BITS: usize, const SCALES: u8, const R: usize, const M: usize>(
        &self,
        first: usize,
        last: usize,
    ) {
        let per_row = match self.w.scales {
            // One more: a group covers two blocks.
            WeightScales::CodeBook(..) if SCALES == DECODED => self.k / BLOCK + 1,
            WeightScales::Int8(_) => (self.k / BLOCK).next_multiple_of(16),
            _ => 0,
        };
        let mut scales = vec![0.0; R * per_row];
        // Streams far apart, each read in order: that is what hardware prefetchers follow.
        let apart = (last - first) / STREAMS;
        // The rest one at a time: `R` times the same row, to spare a kernel of its own.
        let rest = first + apart * STREAMS;
        let new_tables = || -> [ScaleTable; R] { std::array::from_fn(|_| ScaleTable::new()) };
        if R == STREAMS {
            let mut tables = new_tables();
            for row in (first..first + apart).chain(rest..last) {
                let apart = if row < rest { apart } else { 0 };
                // SAFETY: the rows lie before `last`.
                unsafe { self.rows::<BITS, SCALES, R, M>(row, apart, per_row, &mut scales, &mut tables) };
            }
            return;
        }
        let parts = STREAMS / R;
        let mut tables = [new_tables(), new_tables()];
        for i in 0..apart * parts + (last - rest) {
            let (row, apart, part) = match i < apart * parts {
                true => (first + i / parts + i % parts * R * apart, apart, i % parts),
                false => (rest + i - apart * parts, 0, 0),
            };
            // SAFETY: as above.
            unsafe { self.rows::<BITS, SCALES, R, M>(row, apart, per_row, &mut scales, &mut tables[part]) };
        }
    }

    /// Rows `row`, `row + apart`, ... (`R` of them) times `M` columns.
    ///
    /// # Safety
    /// As for `range`, and x has `M` columns ordered for `BITS`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn rows<const BITS: usize, const SCALES: u8, const R: usize, const M: usize>(
        &self,
        row: usize,
        apart: usize,
        per_row: usize,
        scales: &mut [f32],
        tables: &mut [ScaleTable; R],
    ) {
        let (k, row_bytes) = (self.k, self.row_bytes());
        // Where the scales of row `r` of `R` lie.
        let (mut w_scales, mut scale_stride) = (std::ptr::null(), per_row);
        let mut nested = Nested { codes: &[], map: &[0.0; 256], absmax: &[], shift: 0, offset: 0.0 };
        if let WeightScales::Int8(w) = &self.w.scales {
            for (r, scales) in scales.chunks_exact_mut(per_row).enumerate() {
                let stored = &w.scales[(row + r * apart) * (k / BLOCK)..][..k / BLOCK];
                // Rows of a stream follow each other, so that the scales of the next ones do.
                for line in (0..size_of_val(stored)).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(stored.as_ptr().wrapping_byte_add(SCALES_AHEAD + line).cast());
                }
                // SAFETY: the features are enabled, and there is room for whole registers.
                unsafe { halves(stored, scales) };
            }
            w_scales = scales.as_ptr();
        }
        if let WeightScales::CodeBook(w, _) = &self.w.scales {
            if SCALES == NESTED {
                nested = Nested::new(w, k).unwrap_or(nested);
            } else {
                w_scales = scales.as_ptr();
                match w.scales {
                    BlockScales::Single(stored) if w.block == BLOCK && k.is_multiple_of(2 * BLOCK) => {
                        w_scales = stored[row * k / BLOCK..].as_ptr();
                        scale_stride = apart * k / BLOCK;
                    }
                    _ => {
                        for r in 0..R {
                            block_scales(w, (row + r * apart) * k, &mut scales[r * per_row..(r + 1) * per_row - 1]);
                        }
                    }
                }
            }
        }
        // SAFETY: the last group of a row is read under a mask; x and decoded scales are padded to whole groups, and
        // the check of the matrix found a nested scale for each of its blocks.
        unsafe {
            let book = _mm_add_epi8(_mm_loadu_si128(self.w.table.as_ptr().cast()), _mm_set1_epi8(self.w.offset as i8));
            let book = _mm512_broadcast_i32x4(book);
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
            let mut total = [[_mm512_setzero_ps(); M]; R];
            let groups = row_bytes.div_ceil(64);
            let mut turn = 0;
            for g in 0..groups {
                if SCALES == NESTED && g == turn {
                    // The next group at which a row comes to another absmax.
                    turn = groups;
                    for (r, table) in tables.iter_mut().enumerate() {
                        let block = (row + r * apart) * (row_bytes / 32) + 2 * g;
                        table.turn_to(block >> nested.shift, &nested);
                        turn = turn.min(g + ((((block >> nested.shift) + 1) << nested.shift) - block) / 2);
                    }
                }
                let x = self.x.low.as_ptr().add(g * M * planes * 64);
                let start = self.x.start.as_ptr().add(g * M * 16);
                let steps = self.x.steps.as_ptr().add(g * M * 16);
                let outliers = self.x.outliers.as_ptr().add(g * M);
                let mut weights = [[_mm512_setzero_si512(); 4]; R];
                let mut w_scale = [_mm512_set1_ps(1.0); R];
                let (mut at, mut scale_at) = (codes.add(g * 64), scale_codes.wrapping_add(2 * g));
                let mut w_scales = w_scales.wrapping_add(if BITS == 8 { g } else { 2 * g });
                for r in 0..R {
                    // Into L2: rows are often a power of two apart, and would push each other and x out of L1.
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(AHEAD).cast());
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
                    if SCALES == DECODED && BITS == 8 {
                        w_scale[r] = _mm512_set1_ps(*w_scales);
                    } else if SCALES == DECODED {
                        let second = _mm_load_ss(w_scales.add(1));
                        w_scale[r] = _mm512_mask_broadcastss_ps(_mm512_set1_ps(*w_scales), 0xff00, second);
                    }
                    if SCALES == NESTED {
                        let of = |i: usize| tables[r].scales.as_ptr().add(usize::from(*scale_at.add(i)));
                        w_scale[r] = _mm512_mask_broadcastss_ps(_mm512_set1_ps(*of(0)), 0xff00, _mm_load_ss(of(1)));
                    }
                    (at, scale_at) = (at.wrapping_add(code_step), scale_at.wrapping_add(scale_step));
                    w_scales = w_scales.wrapping_add(scale_stride);
                }
                for m in 0..M {
                    let mut xs = [_mm512_setzero_si512(); 4];
                    for plane in 0..planes {
                        xs[plane] = _mm512_loadu_si512(x.add((m * planes + plane) * 64).cast());
                    }
                    let start = _mm512_loadu_si512(start.add(m * 16).cast());
                    let step = _mm512_loadu_ps(steps.add(m * 16));
                    let mut sums = [start; R];
                    for r in 0..R {
                        for plane in 0..planes {
                            sums[r] = _mm512_dpbusd_epi32(sums[r], weights[r][plane], xs[plane]);
                        }
                    }
                    if *outliers.add(m) {
                        let high = self.x.high.as_ptr().add((g * M + m) * planes * 64);
                        for plane in 0..planes {
                            xs[plane] = _mm512_loadu_si512(high.add(plane * 64).cast());
                        }
                        for r in 0..R {
                            let mut high = _mm512_setzero_si512();
                            for plane in 0..planes {
                                high = _mm512_dpbusd_epi32(high, weights[r][plane], xs[plane]);
                            }
                            sums[r] = _mm512_add_epi32(sums[r], _mm512_slli_epi32::<7>(high));
                        }
                    }
                    for r in 0..R {
                        let scale = if SCALES == ROWS { step } else { _mm512_mul_ps(step, w_scale[r]) };
                        total[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r]), scale, total[r][m]);
                    }
                }
            }
            for r in 0..R {
                let mut sums = [0.0; M];
                for m in 0..M {
                    sums[m] = _mm512_reduce_add_ps(total[r][m]);
                }
                self.store(row + r * apart, sums);
            }
        }
    }
}
