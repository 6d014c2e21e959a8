//! 5 rows of x and more against 16 rows of the matrix at a time: the lanes of a vector are rows of the matrix.
//!
//! 64 bytes of each row are transposed, so that a register holds a word of every row, and words of x are broadcast from memory. What a
//! block costs beyond its products (integers to floats, scales) is paid for 16 rows at once, and codes are looked up once for up to 8
//! rows of x. While a strip is multiplied the next one is prefetched, its bytes in the order in which they lie: that is how memory is
//! read fastest. A row's sums are added in the same order as in the tiles of [`gemm`](super::gemm) and whatever its neighbours are.

use super::BLOCK;
use super::book::Shift;
use super::gemv::{Codes, Gemv, StoredRows, WeightScales};
use super::panel::{Order, Panel};
use super::round::Detail;
use super::rows::{Nested, halves};
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::packed::block_scales;
use crate::cpu::matmul::types::InputRows;
use crate::cpu::matmul::weight::{BlockScales, Weight};
use crate::cpu::pool::{Output, Region, for_each_chunk};
use std::arch::x86_64::*;

/// Rows of a strip: 32-bit lanes of a register.
const ROWS: usize = 16;
/// Bytes of a row that are transposed at once: a cache line, for rows are often a power of two apart.
const GROUP: usize = 64;
/// Groups that are transposed before they are multiplied.
const CHUNK: usize = 2;
/// Rows of x whose sums stay in the registers.
const TOKENS: usize = 8;

/// What the order and the sums of x depend on.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Packing {
    order: Order,
    shift: Shift,
    detail: Detail,
}

/// x in panels of up to [`TOKENS`] rows, as even as can be.
pub(crate) struct Panels(Vec<Panel>);

impl Panels {
    fn new(x: &[f32], m: usize, k: usize, packing: Packing) -> Panels {
        let each = m.div_ceil(m.div_ceil(TOKENS).max(1)).max(1);
        let mut panels: Vec<Panel> =
            (0..m).step_by(each).map(|first| Panel::words(first, each.min(m - first))).collect();
        for_each_chunk(&mut panels, 1, each * k, |_, panel| {
            // SAFETY: `kernels` has found the features.
            unsafe { panel[0].fill(x, k, packing.order, packing.shift, packing.detail) };
        });
        Panels(panels)
    }
}

/// Adds a product with a few rows of x. Rows go where they are stored.
pub(super) fn add<'a>(
    rows: &InputRows<'a>,
    memo: &Memo<Packing, Panels>,
    w: Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    let &InputRows { x, m, k, .. } = rows;
    for w in StoredRows::of(&w) {
        let order = match w.codes {
            Codes::Bytes => Order::Natural,
            Codes::Nibbles { .. } => Order::EvenOdd,
            Codes::Pairs => Order::Quarters,
        };
        let packing = Packing { order, shift: w.shift, detail: Detail::of(rows.input) };
        let x = memo.get(packing, || Panels::new(x, m, k, packing));
        let (data, stride, count) = (w.data.as_ptr(), w.stride, w.rows);
        let gemv = Gemv { w, x, m, k, bias, y };
        region.add_tiles(ROWS, (data, stride), count, m * k, move |first, last| {
            // SAFETY: `kernels` has found AVX-512 VNNI and VBMI, the matrix was checked, and tasks have different rows.
            unsafe {
                match gemv.w.codes {
                    Codes::Bytes => gemv.strips::<8>(first, last),
                    Codes::Nibbles { .. } => gemv.strips::<4>(first, last),
                    Codes::Pairs => gemv.strips::<2>(first, last),
                }
            }
        });
    }
}

/// Memory for a strip.
struct Scratch {
    /// `[group of a chunk][word][row]`.
    words: [__m512i; CHUNK * ROWS],
    /// `[block][row]`.
    scales: Vec<f32>,
    /// `[token][row]`.
    totals: Vec<f32>,
    /// The absmax of the scales of each row, up to block `valid`.
    absmax: [f32; ROWS],
    valid: usize,
}

/// 16 rows that follow each other; the last of the matrix stands for those beyond it.
#[derive(Clone, Copy)]
struct Strip {
    first: usize,
    height: usize,
}

impl Strip {
    fn row(self, r: usize) -> usize {
        self.first + r.min(self.height - 1)
    }

    /// The lanes of rows that exist.
    fn mask(self) -> u16 {
        u16::MAX >> (ROWS - self.height)
    }
}

impl Gemv<'_, Panels> {
    /// Rows `first..last`.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI and VBMI, the rows exist, and no other task writes their outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn strips<const BITS: usize>(&self, first: usize, last: usize) {
        let mut scratch = Scratch {
            words: [_mm512_setzero_si512(); CHUNK * ROWS],
            scales: vec![0.0; (self.k / BLOCK).next_multiple_of(ROWS) * ROWS],
            totals: vec![0.0; self.m * ROWS],
            absmax: [0.0; ROWS],
            valid: 0,
        };
        for first in (first..last).step_by(ROWS) {
            let strip = Strip { first, height: ROWS.min(last - first) };
            // SAFETY: the caller's promise.
            unsafe { self.strip::<BITS>(strip, &mut scratch) };
        }
    }

    /// # Safety
    /// As for `strips`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn strip<const BITS: usize>(&self, strip: Strip, scratch: &mut Scratch) {
        let (planes, blocks) = (8 / BITS, self.k / BLOCK);
        let row_bytes = self.k * BITS / 8;
        let groups = row_bytes.div_ceil(GROUP);
        let nested = match &self.w.scales {
            WeightScales::CodeBook(w, _) => Nested::new(w, self.k),
            _ => None,
        };
        scratch.totals.fill(0.0);
        scratch.valid = 0;
        let next = self.next(strip, groups);
        // SAFETY: bytes beyond a row are masked out; x, scales and totals have all blocks and rows of x that are added.
        unsafe {
            if nested.is_none() {
                self.scales(strip, &mut scratch.scales);
            }
            let rows: [*const u8; ROWS] =
                std::array::from_fn(|r| self.w.data.as_ptr().add(strip.row(r) * self.w.stride));
            let table = self.table();
            for from in (0..groups).step_by(CHUNK) {
                let count = CHUNK.min(groups - from);
                for g in 0..count {
                    let at = (from + g) * GROUP;
                    next.prefetch(from + g);
                    let to = scratch.words.as_mut_ptr().add(g * ROWS);
                    transpose::<BITS>(&rows, at, GROUP.min(row_bytes - at), to);
                }
                let first = from * planes;
                let count = (count * planes).min(blocks - first);
                if let Some(nested) = &nested {
                    nested_scales(nested, strip, blocks, (first, count), scratch);
                }
                for panel in &self.x.0 {
                    let m = panel.tokens;
                    let part = Part {
                        blocks: count,
                        w: scratch.words.as_ptr(),
                        table,
                        scales: scratch.scales.as_ptr().add(first * ROWS),
                        low: panel.low.as_ptr().add(first * (BLOCK / 4) * m),
                        start: panel.start.as_ptr().add(first * m),
                        steps: panel.steps.as_ptr().add(first * m),
                        high: panel.high.as_ptr(),
                        places: panel.places.as_ptr(),
                        begins: panel.begins.as_ptr().add(first),
                        totals: scratch.totals.as_mut_ptr().add(panel.first * ROWS),
                    };
                    let high_first = matches!(self.w.codes, Codes::Nibbles { high_first: true });
                    if high_first { part.columns::<BITS, true>(m) } else { part.columns::<BITS, false>(m) }
                }
            }
            self.write(strip, &scratch.totals);
        }
    }

    /// Writes the outputs of a strip.
    ///
    /// # Safety
    /// As for `strips`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn write(&self, strip: Strip, totals: &[f32]) {
        let factor = match &self.w.scales {
            WeightScales::CodeBook(_, factor) => *factor,
            _ => 1.0,
        };
        let column = self.w.column + strip.first;
        // SAFETY: the mask leaves the columns that exist.
        unsafe {
            let bias = match self.bias {
                Some(bias) => _mm512_maskz_loadu_ps(strip.mask(), bias.as_ptr().add(column)),
                None => _mm512_setzero_ps(),
            };
            for (token, total) in totals.chunks_exact(ROWS).enumerate() {
                let y = _mm512_mul_ps(_mm512_loadu_ps(total.as_ptr()), _mm512_set1_ps(factor));
                _mm512_mask_storeu_ps(self.y.at(token, column), strip.mask(), _mm512_add_ps(y, bias));
            }
        }
    }

    /// The unsigned byte of each code, in a register so often that the bits above a code do not matter.
    fn table(&self) -> [u8; 64] {
        let codes = if self.w.codes == Codes::Pairs { 4 } else { 16 };
        std::array::from_fn(|i| self.w.table[i % codes] as u8 ^ 0x80)
    }

    /// The scales of a strip, `[block][row]`.
    ///
    /// # Safety
    /// As for `strips`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn scales(&self, strip: Strip, scales: &mut [f32]) {
        // SAFETY: the mask leaves the rows that exist, and the buffers are as long as the loads and stores.
        unsafe {
            if let WeightScales::PerRow(stored) = &self.w.scales {
                let row = _mm512_maskz_loadu_ps(strip.mask(), stored.as_ptr().add(strip.first));
                scales.chunks_exact_mut(ROWS).for_each(|to| _mm512_storeu_ps(to.as_mut_ptr(), row));
                return;
            }
            let blocks = self.k / BLOCK;
            for (i, to) in scales.chunks_exact_mut(ROWS * ROWS).enumerate() {
                let (first, count) = (i * ROWS, ROWS.min(blocks - i * ROWS));
                let mut of_rows = [[0.0; ROWS]; ROWS];
                for (r, of_row) in of_rows.iter_mut().enumerate() {
                    let row = strip.row(r);
                    match &self.w.scales {
                        WeightScales::Int8(w) => halves(&w.scales[row * blocks + first..][..count], of_row),
                        WeightScales::CodeBook(w, _) => {
                            block_scales(w, row * self.k + first * BLOCK, &mut of_row[..count]);
                        }
                        WeightScales::PerRow(_) => {}
                    }
                }
                let rows = std::array::from_fn(|r| of_rows[r].as_ptr().cast());
                transpose::<32>(&rows, 0, GROUP, to.as_mut_ptr().cast());
            }
        }
    }

    /// What is prefetched meanwhile: the rows after a strip and their scales.
    fn next(&self, strip: Strip, groups: usize) -> Next {
        let row = strip.first + ROWS;
        let scales = |data: *const u8, block: usize| {
            let of_row = self.k / BLOCK * block;
            (data.wrapping_add(row.wrapping_mul(of_row)), (ROWS * of_row).div_ceil(groups.max(1)))
        };
        let (scales, scale_bytes) = match &self.w.scales {
            WeightScales::Int8(w) => scales(w.scales.as_ptr().cast(), 2),
            WeightScales::CodeBook(w, _) if w.block == BLOCK => match w.scales {
                BlockScales::Single(single) => scales(single.as_ptr().cast(), 4),
                BlockScales::Double { codes, .. } => scales(codes.as_ptr(), 1),
            },
            _ => (std::ptr::null(), 0),
        };
        let codes = self.w.data.as_ptr().wrapping_add(row.wrapping_mul(self.w.stride));
        Next { codes, scales, scale_bytes }
    }
}

/// What is to be prefetched. Only hints.
#[derive(Clone, Copy)]
struct Next {
    codes: *const u8,
    scales: *const u8,
    /// Per group.
    scale_bytes: usize,
}

impl Next {
    /// What belongs to a group, into L2.
    #[inline(always)]
    fn prefetch(self, group: usize) {
        // SAFETY: hints, no accesses.
        unsafe {
            for r in 0..ROWS {
                _mm_prefetch::<_MM_HINT_T1>(self.codes.wrapping_add((group * ROWS + r) * GROUP).cast());
            }
            for line in (0..self.scale_bytes).step_by(64) {
                _mm_prefetch::<_MM_HINT_T1>(self.scales.wrapping_add(group * self.scale_bytes + line).cast());
            }
        }
    }
}

/// Decodes the scales of `count` blocks from block `first` on, of rows of `blocks` blocks.
///
/// # Safety
/// The processor has AVX-512, the matrix was checked, and the rows have these blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn nested_scales(
    nested: &Nested,
    strip: Strip,
    blocks: usize,
    (first, count): (usize, usize),
    scratch: &mut Scratch,
) {
    // SAFETY: the check of the matrix found a code for each block and an absmax for each of these; codes are below 256.
    unsafe {
        let to = scratch.scales.as_mut_ptr();
        let map = nested.map.as_ptr();
        for r in 0..ROWS {
            let codes = nested.codes.as_ptr().add(strip.row(r) * blocks + first);
            let to = to.add(first * ROWS + r);
            for b in 0..count {
                *to.add(b * ROWS) = *map.add(usize::from(*codes.add(b)));
            }
        }
        for b in first..first + count {
            if b >= scratch.valid {
                scratch.valid = usize::MAX;
                for r in 0..ROWS {
                    let block = strip.row(r) * blocks + b;
                    scratch.absmax[r] = nested.absmax[block >> nested.shift];
                    let left = (((block >> nested.shift) + 1) << nested.shift) - block;
                    scratch.valid = scratch.valid.min(b + left);
                }
            }
            let to = to.add(b * ROWS);
            let scaled = _mm512_mul_ps(_mm512_loadu_ps(to), _mm512_loadu_ps(scratch.absmax.as_ptr()));
            _mm512_storeu_ps(to, _mm512_add_ps(scaled, _mm512_set1_ps(nested.offset)));
        }
    }
}

/// Transposes up to 64 bytes of each row, at `at`: word `i` of row `r` becomes word `r` of vector `i`. Signed bytes, of which `BITS` is 8,
/// become unsigned.
///
/// # Safety
/// The processor has AVX-512; the rows have these bytes, and `to` has room for 16 vectors.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn transpose<const BITS: usize>(rows: &[*const u8; ROWS], at: usize, bytes: usize, to: *mut __m512i) {
    let mut lines = [_mm512_setzero_si512(); ROWS];
    // SAFETY: the caller's promise; what is beyond a row is masked out.
    unsafe {
        if bytes == GROUP {
            for r in 0..ROWS {
                lines[r] = _mm512_loadu_si512(rows[r].add(at).cast());
            }
        } else {
            for r in 0..ROWS {
                lines[r] = _mm512_maskz_loadu_epi8((1 << bytes) - 1, rows[r].add(at).cast());
            }
        }
    }
    let rows = lines;
    let (mut a, mut b) = ([_mm512_setzero_si512(); ROWS], [_mm512_setzero_si512(); ROWS]);
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..4 {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    // The even and the odd quarters of rows 0 to 7, then of rows 8 to 15.
    for i in 0..4 {
        a[i] = _mm512_shuffle_i32x4::<0x88>(b[i], b[4 + i]);
        a[4 + i] = _mm512_shuffle_i32x4::<0xdd>(b[i], b[4 + i]);
        a[8 + i] = _mm512_shuffle_i32x4::<0x88>(b[8 + i], b[12 + i]);
        a[12 + i] = _mm512_shuffle_i32x4::<0xdd>(b[8 + i], b[12 + i]);
    }
    for i in 0..8 {
        b[i] = _mm512_shuffle_i32x4::<0x88>(a[i], a[8 + i]);
        b[8 + i] = _mm512_shuffle_i32x4::<0xdd>(a[i], a[8 + i]);
    }
    for i in 0..ROWS {
        let words = if BITS == 8 { _mm512_xor_si512(b[i], _mm512_set1_epi8(-128)) } else { b[i] };
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.add(i).cast(), words) };
    }
}

/// Some blocks of a strip and a panel.
struct Part {
    blocks: usize,
    w: *const __m512i,
    table: [u8; 64],
    scales: *const f32,
    low: *const i32,
    start: *const i32,
    steps: *const f32,
    high: *const i32,
    places: *const u32,
    begins: *const u32,
    totals: *mut f32,
}

impl Part {
    /// [`add`](Self::add) of `m` rows of x.
    ///
    /// # Safety
    /// As for `add`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn columns<const BITS: usize, const HIGH_FIRST: bool>(&self, m: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match m {
                1 => self.add::<BITS, HIGH_FIRST, 1>(),
                2 => self.add::<BITS, HIGH_FIRST, 2>(),
                3 => self.add::<BITS, HIGH_FIRST, 3>(),
                4 => self.add::<BITS, HIGH_FIRST, 4>(),
                5 => self.add::<BITS, HIGH_FIRST, 5>(),
                6 => self.add::<BITS, HIGH_FIRST, 6>(),
                7 => self.add::<BITS, HIGH_FIRST, 7>(),
                _ => self.add::<BITS, HIGH_FIRST, TOKENS>(),
            }
        }
    }

    /// Adds the products with `M` rows of x to their totals.
    ///
    /// # Safety
    /// The pointers are valid for them.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn add<const BITS: usize, const HIGH_FIRST: bool, const M: usize>(&self) {
        let zero = _mm512_setzero_si512();
        // Bytes of a row in a block, in words.
        let depth = BLOCK * BITS / 32;
        // SAFETY: the caller's promise.
        unsafe {
            let table = _mm512_loadu_si512(self.table.as_ptr().cast());
            let mut total = [_mm512_setzero_ps(); M];
            for (m, total) in total.iter_mut().enumerate() {
                *total = _mm512_loadu_ps(self.totals.add(m * ROWS));
            }
            for b in 0..self.blocks {
                let words = self.w.add(b * depth);
                let mut sums = [zero; M];
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_set1_epi32(*self.start.add(b * M + m));
                }
                let (begin, end) = (*self.begins.add(b) as usize, *self.begins.add(b + 1) as usize);
                if begin < end {
                    let mut high = [zero; M];
                    for i in begin..end {
                        let place = *self.places.add(i) as usize;
                        let w = *words.add(place % depth);
                        let w = code::<BITS>(w, plane::<BITS, HIGH_FIRST>(place / depth), table);
                        for (m, high) in high.iter_mut().enumerate() {
                            let x = _mm512_set1_epi32(*self.high.add(i * M + m));
                            *high = _mm512_dpbusd_epi32(*high, w, x);
                        }
                    }
                    for (sum, high) in sums.iter_mut().zip(high) {
                        *sum = _mm512_add_epi32(_mm512_slli_epi32::<7>(high), *sum);
                    }
                }
                // With few sums every second word goes to others, for one addition has to wait for the one before.
                let mut others = [zero; M];
                let low = self.low.add(b * (BLOCK / 4) * M);
                let step = if BITS == 8 { 2 } else { 1 };
                for i in (0..depth).step_by(step) {
                    for j in 0..step {
                        let w = *words.add(i + j);
                        for p in 0..8 / BITS {
                            let w = code::<BITS>(w, plane::<BITS, HIGH_FIRST>(p), table);
                            let x = low.add((p * depth + i + j) * M);
                            for m in 0..M {
                                let x = _mm512_set1_epi32(*x.add(m));
                                if M <= 4 && (j + p) % 2 == 1 {
                                    others[m] = _mm512_dpbusd_epi32(others[m], w, x);
                                } else {
                                    sums[m] = _mm512_dpbusd_epi32(sums[m], w, x);
                                }
                            }
                        }
                    }
                }
                let scale = _mm512_loadu_ps(self.scales.add(b * ROWS));
                for m in 0..M {
                    let sum = if M <= 4 { _mm512_add_epi32(sums[m], others[m]) } else { sums[m] };
                    let step = _mm512_set1_ps(*self.steps.add(b * M + m));
                    total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, step), total[m]);
                }
            }
            for (m, total) in total.iter().enumerate() {
                _mm512_storeu_ps(self.totals.add(m * ROWS), *total);
            }
        }
    }
}

/// Which bits of a byte hold the elements that come `p`th in the order of a block.
#[inline(always)]
const fn plane<const BITS: usize, const HIGH_FIRST: bool>(p: usize) -> usize {
    if BITS == 4 && HIGH_FIRST { 1 - p } else { p }
}

/// The bytes of the codes of a plane.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn code<const BITS: usize>(words: __m512i, plane: usize, table: __m512i) -> __m512i {
    match (BITS, plane) {
        (8, _) => words,
        (_, 0) => _mm512_permutexvar_epi8(words, table),
        _ => {
            let by = _mm_cvtsi32_si128((BITS * plane) as i32);
            _mm512_permutexvar_epi8(_mm512_srl_epi16(words, by), table)
        }
    }
}
