//! 2 rows of x and more against 16 rows of the matrix at a time.
//!
//! Rows of the matrix are the lanes of a register: each holds four bytes of all 16, and four bytes of x are broadcast from memory. The sums
//! of a block, an integer for each row, become floats at once: conversion, scales and addition cost a sixteenth of those of a dot product
//! per row, and codes are transposed and looked up once for all rows of x. While a strip is multiplied the next one is prefetched, its bytes
//! in the order in which they lie: that is how memory is read fastest. A row's sums are added in the same order as in the tiles of
//! [`gemm`](super::gemm) and whatever its neighbours are.

use super::gemv::{Codes, Gemv, Packing, WeightScales, for_stored_rows, further};
use super::panel::{Order, WORDS};
use super::round::Block;
use super::row_scales::Nested;
use super::{BLOCK, OFFSET};
use crate::cpu::matmul::memo::Memo;
use crate::cpu::matmul::packed::block_scales;
use crate::cpu::matmul::types::InputRows;
use crate::cpu::matmul::weight::Weight;
use crate::cpu::pool::{Output, Region, for_each_chunk};
use std::arch::x86_64::*;

/// Rows of a strip: 32-bit lanes of a register.
const ROWS: usize = 16;
/// Rows of which a register holds 16 bytes before they are transposed.
const QUAD: usize = 4;
/// Bytes of a cache line, and of a register.
const LINE: usize = 64;

/// A block of a row of x, in the order of the codes.
struct Ordered {
    low: [i8; BLOCK],
    high: [i8; BLOCK],
    outliers: bool,
    step: f32,
    start: i32,
}

/// Where the high bytes of a block without outliers lie.
const NOWHERE: u32 = u32::MAX;

/// Rows of x. The bytes of blocks are in the order of the codes.
#[derive(Default)]
pub(crate) struct Tokens {
    /// `[block][token]`.
    low: Vec<[i8; BLOCK]>,
    /// `[block][token]`: what the offset of the weights adds, negated.
    start: Vec<i32>,
    /// `[block][token]`.
    steps: Vec<f32>,
    /// `[block][token]`: which of `high` is its own, or [`NOWHERE`].
    high_at: Vec<u32>,
    high: Vec<[i8; BLOCK]>,
}

impl Tokens {
    fn new(x: &[f32], m: usize, k: usize, packing: Packing) -> Tokens {
        let mut rounded: Vec<Vec<Ordered>> = Vec::new();
        rounded.resize_with(m, Vec::new);
        for_each_chunk(&mut rounded, 1, k, |token, blocks| {
            // SAFETY: `kernels` has found the features.
            blocks[0] = unsafe { Ordered::of(&x[token * k..(token + 1) * k], packing) };
        });
        let mut made = Tokens::default();
        for b in 0..k / BLOCK {
            for block in rounded.iter().map(|blocks| &blocks[b]) {
                made.low.push(block.low);
                made.start.push(block.start);
                made.steps.push(block.step);
                made.high_at.push(if block.outliers { made.high.len() as u32 } else { NOWHERE });
                made.high.extend(block.outliers.then_some(block.high));
            }
        }
        made
    }
}

impl Ordered {
    /// The blocks of a row.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI and VBMI.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn of(x: &[f32], packing: Packing) -> Vec<Ordered> {
        let order = match packing.codes {
            Codes::Bytes => Order::Natural,
            Codes::Nibbles { .. } => Order::EvenOdd,
            Codes::Pairs => Order::Quarters,
        };
        let threshold = packing.detail.threshold(x);
        let mut blocks = Vec::with_capacity(x.len() / BLOCK);
        for x in x.chunks_exact(BLOCK) {
            let block = Block::avx512(x, threshold);
            // Integers get the same offset as other codes.
            let start = Packing { offset: OFFSET, ..packing }.starts(block.eights()).iter().sum();
            let (low, high) = (order.apply(&block.low), order.apply(&block.high));
            blocks.push(Ordered { low, high, outliers: block.outliers, step: block.step, start });
        }
        blocks
    }
}

/// Adds a product with a few rows of x. Rows go where they are stored.
pub(super) fn add<'a>(
    rows: &InputRows<'a>,
    memo: &Memo<Packing, Tokens>,
    w: Weight<'a>,
    bias: Option<&'a [f32]>,
    y: Output<'a>,
    region: &mut Region<'a>,
) {
    let &InputRows { x, m, k, .. } = rows;
    for_stored_rows(
        rows,
        memo,
        &w,
        bias,
        y,
        |packing| Tokens::new(x, m, k, packing),
        |gemv| {
            let (data, stride, count) = (gemv.w.data.as_ptr(), gemv.w.stride, gemv.w.rows);
            region.add_tiles(ROWS, (data, stride), count, m * k, move |first, last| {
                // SAFETY: `kernels` has found AVX-512 VNNI and VBMI, the matrix was checked, and tasks have different rows.
                unsafe {
                    match gemv.w.codes {
                        Codes::Bytes => gemv.strips::<8, false>(first, last),
                        Codes::Nibbles { high_first: true } => gemv.strips::<4, true>(first, last),
                        Codes::Nibbles { high_first: false } => gemv.strips::<4, false>(first, last),
                        Codes::Pairs => gemv.strips::<2, false>(first, last),
                    }
                }
            });
        },
    );
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

impl Gemv<'_, Tokens> {
    /// Rows `first..last`.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI and VBMI, the rows exist, and no other task writes their outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    unsafe fn strips<const BITS: usize, const HIGH_FIRST: bool>(&self, first: usize, last: usize) {
        let blocks = self.k / BLOCK;
        let nested = match &self.w.scales {
            WeightScales::CodeBook(w, _) => Nested::new(w, self.k).map(NestedScales::new),
            _ => None,
        };
        let mut scales = vec![0.0; blocks.next_multiple_of(ROWS) * ROWS];
        let mut totals = vec![0.0; self.m * ROWS];
        let table = self.table();
        for first in (first..last).step_by(ROWS) {
            let strip = Strip { first, height: ROWS.min(last - first) };
            totals.fill(0.0);
            // SAFETY: the rows have these blocks; scales and totals have all blocks and rows of x that are added.
            unsafe {
                match &nested {
                    Some(nested) => nested.decode(strip, blocks, &mut scales),
                    None => self.scales(strip, &mut scales),
                }
                let next = self.next(strip.first + ROWS, ROWS);
                let table = _mm512_loadu_si512(table.as_ptr().cast());
                let rows: [*const u8; ROWS] = self.w.starts(strip.first, strip.height);
                for b in 0..blocks {
                    next.prefetch(b);
                    let rows = further(rows, b * (8 * BITS));
                    let w = words::<BITS, HIGH_FIRST>(&rows, table);
                    let scales = _mm512_loadu_ps(scales.as_ptr().add(b * ROWS));
                    self.block(b, &w, scales, totals.as_mut_ptr());
                }
                self.write(strip, &totals);
            }
        }
    }

    /// Adds the products of a block with all rows of x to their totals, `[token][row]`.
    ///
    /// # Safety
    /// As for `strips`, and the totals exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn block(&self, block: usize, w: &Words, scales: __m512, totals: *mut f32) {
        let x = &*self.x;
        // SAFETY: x has the block, for `m` tokens.
        unsafe {
            for token in 0..self.m {
                let at = block * self.m + token;
                let mut sum = _mm512_set1_epi32(*x.start.as_ptr().add(at));
                let high_at = *x.high_at.as_ptr().add(at);
                if high_at != NOWHERE {
                    let high = products(w, x.high.as_ptr().add(high_at as usize).cast(), _mm512_setzero_si512());
                    sum = _mm512_add_epi32(sum, _mm512_slli_epi32::<7>(high));
                }
                let sum = products(w, x.low.as_ptr().add(at).cast(), sum);
                let scales = _mm512_mul_ps(scales, _mm512_set1_ps(*x.steps.as_ptr().add(at)));
                let total = totals.add(token * ROWS);
                let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales, _mm512_loadu_ps(total));
                _mm512_storeu_ps(total, sum);
            }
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
                // Floats are transposed where they are stored.
                let (mut decoded, mut rows) = ([[0.0; ROWS]; ROWS], [std::ptr::null(); ROWS]);
                for (r, (decoded, at)) in decoded.iter_mut().zip(&mut rows).enumerate() {
                    let row = strip.row(r);
                    *at = match (&self.w.scales, self.w.scales.floats_from(self.k, row)) {
                        (_, Some(stored)) => stored[first..][..count].as_ptr(),
                        (WeightScales::CodeBook(w, _), _) => {
                            block_scales(w, row * self.k + first * BLOCK, &mut decoded[..count]);
                            decoded.as_ptr()
                        }
                        (WeightScales::Int8(w), _) => {
                            halves(&w.scales[row * blocks + first..][..count], decoded);
                            decoded.as_ptr()
                        }
                        (WeightScales::PerRow(_), _) => decoded.as_ptr(),
                    }
                    .cast();
                }
                transpose(&rows, size_of::<f32>() * count, to.as_mut_ptr().cast());
            }
        }
    }
}

/// A block of 16 rows as unsigned bytes: four of every row in each register, in the order of [`Order`].
type Words = [__m512i; WORDS];

/// The words of 16 rows.
///
/// # Safety
/// The processor has AVX-512 with VNNI and VBMI, and the rows have a block where the pointers point.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn words<const BITS: usize, const HIGH_FIRST: bool>(rows: &[*const u8; ROWS], table: __m512i) -> Words {
    let zero = _mm512_setzero_si512();
    // 16 bytes of four rows are a register; a block of theirs is so many.
    let count = BITS / 2;
    let mut packed = [[zero; QUAD]; 4];
    for q in 0..QUAD {
        // SAFETY: the caller's promise.
        let parts = unsafe { parts::<BITS>([rows[q], rows[q + QUAD], rows[q + 2 * QUAD], rows[q + 3 * QUAD]]) };
        for i in 0..count {
            packed[i][q] = parts[i];
        }
    }
    let mut words = [zero; WORDS];
    for i in 0..count {
        let four = transpose_quads(packed[i]);
        for (k, &word) in four.iter().enumerate() {
            let at = 4 * i + k;
            match BITS {
                8 => words[at] = _mm512_xor_si512(word, _mm512_set1_epi8(-128)),
                4 => {
                    let (low, high) = if HIGH_FIRST { (at + WORDS / 2, at) } else { (at, at + WORDS / 2) };
                    words[low] = code::<0>(word, table);
                    words[high] = code::<4>(word, table);
                }
                _ => {
                    words[at] = code::<0>(word, table);
                    words[at + WORDS / 4] = code::<2>(word, table);
                    words[at + WORDS / 2] = code::<4>(word, table);
                    words[at + WORDS / 4 * 3] = code::<6>(word, table);
                }
            }
        }
    }
    words
}

/// A block of four rows: 16 bytes of each in every register that it takes.
///
/// # Safety
/// The processor has AVX-512, and the rows have a block at `at`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn parts<const BITS: usize>([a, b, c, d]: [*const u8; QUAD]) -> [__m512i; 4] {
    let mut parts = [_mm512_setzero_si512(); 4];
    // SAFETY: a block has 8 bytes per bit of a code.
    unsafe {
        match BITS {
            8 => {
                let (a, b) = (_mm512_loadu_si512(a.cast()), _mm512_loadu_si512(b.cast()));
                let (c, d) = (_mm512_loadu_si512(c.cast()), _mm512_loadu_si512(d.cast()));
                let (low, high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
                let (low2, high2) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
                parts = [
                    _mm512_shuffle_i32x4::<0x88>(low, low2),
                    _mm512_shuffle_i32x4::<0xdd>(low, low2),
                    _mm512_shuffle_i32x4::<0x88>(high, high2),
                    _mm512_shuffle_i32x4::<0xdd>(high, high2),
                ];
            }
            4 => {
                let (a, b) = (_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast()));
                let (c, d) = (_mm256_loadu_si256(c.cast()), _mm256_loadu_si256(d.cast()));
                let a = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
                let c = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(c), d);
                parts[0] = _mm512_shuffle_i32x4::<0x88>(a, c);
                parts[1] = _mm512_shuffle_i32x4::<0xdd>(a, c);
            }
            _ => {
                let part = _mm512_castsi128_si512(_mm_loadu_si128(a.cast()));
                let part = _mm512_inserti32x4::<1>(part, _mm_loadu_si128(b.cast()));
                let part = _mm512_inserti32x4::<2>(part, _mm_loadu_si128(c.cast()));
                parts[0] = _mm512_inserti32x4::<3>(part, _mm_loadu_si128(d.cast()));
            }
        }
    }
    parts
}

/// Transposes words of rows: register `q` has four of rows `q`, `q + 4`, `q + 8` and `q + 12`; then each has one of all rows, in order.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_quads([a, b, c, d]: [__m512i; QUAD]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab2, cd2) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab2, cd2),
        _mm512_unpackhi_epi64(ab2, cd2),
    ]
}

/// The bytes of the codes from bit `SHIFT` of each byte on; the table does not mind the bits above them.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn code<const SHIFT: u32>(bytes: __m512i, table: __m512i) -> __m512i {
    let bytes = if SHIFT == 0 { bytes } else { _mm512_srli_epi16::<SHIFT>(bytes) };
    _mm512_permutexvar_epi8(bytes, table)
}

/// Adds the products of a block of 16 rows with one of x, in the order of the words, to a sum for each row.
///
/// # Safety
/// The processor has AVX-512 with VNNI, and x has 64 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn products(w: &Words, x: *const i8, sum: __m512i) -> __m512i {
    // Two sums, since the next product would wait for the last.
    let mut sums = [sum, _mm512_setzero_si512()];
    for (i, w) in w.iter().enumerate() {
        // SAFETY: the caller's promise.
        let x = unsafe { _mm512_set1_epi32(x.cast::<i32>().add(i).read_unaligned()) };
        sums[i % 2] = _mm512_dpbusd_epi32(sums[i % 2], *w, x);
    }
    _mm512_add_epi32(sums[0], sums[1])
}

/// Numbers of IEEE half precision, padded with zeros to the length of `out`, a multiple of 16 that is no more than 15 longer: whole
/// registers are stored, since what a masked store wrote has to reach the cache before it can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn halves(bits: &[u16], out: &mut [f32]) {
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

/// Decodes quantised block scales 64 at a time.
struct NestedScales<'a> {
    nested: Nested<'a>,
    /// Byte `p` of each number of the map.
    planes: [[u8; 256]; 4],
}

impl<'a> NestedScales<'a> {
    fn new(nested: Nested<'a>) -> NestedScales<'a> {
        let planes = std::array::from_fn(|p| std::array::from_fn(|code| nested.map[code].to_le_bytes()[p]));
        NestedScales { nested, planes }
    }

    /// The scales of a strip of rows of `blocks` blocks, `[block][row]`.
    ///
    /// # Safety
    /// The processor has AVX-512 with VBMI, the matrix was checked, and the rows and scales have these blocks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    unsafe fn decode(&self, strip: Strip, blocks: usize, scales: &mut [f32]) {
        let Nested { codes, absmax, shift, offset, .. } = self.nested;
        // Of each row, up to block `valid`.
        let (mut factors, mut valid) = ([0.0; ROWS], 0);
        let mut words = [_mm512_setzero_si512(); ROWS];
        // SAFETY: the check of the matrix found a code for each block and an absmax for each of these.
        unsafe {
            for from in (0..blocks).step_by(LINE) {
                let rows = std::array::from_fn(|r| codes.as_ptr().add(strip.row(r) * blocks + from));
                transpose(&rows, LINE.min(blocks - from), words.as_mut_ptr());
                for (i, b) in (from..blocks.min(from + LINE)).enumerate() {
                    if b >= valid {
                        valid = usize::MAX;
                        for (r, factor) in factors.iter_mut().enumerate() {
                            let block = strip.row(r) * blocks + b;
                            *factor = absmax[block >> shift];
                            valid = valid.min(b + ((((block >> shift) + 1) << shift) - block));
                        }
                    }
                    // Four blocks of each row are looked up at once.
                    if i % 4 == 0 {
                        self.look_up(words[i / 4], scales.as_mut_ptr().add(b * ROWS), (blocks - b).min(4));
                    }
                    let scale = scales.as_mut_ptr().add(b * ROWS);
                    let scaled = _mm512_mul_ps(_mm512_loadu_ps(scale), _mm512_loadu_ps(factors.as_ptr()));
                    _mm512_storeu_ps(scale, _mm512_add_ps(scaled, _mm512_set1_ps(offset)));
                }
            }
        }
    }

    /// What the map has for the first `blocks` of four codes of each row, `[block][row]`.
    ///
    /// # Safety
    /// The processor has AVX-512 with VBMI, and there is room for them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    #[inline]
    unsafe fn look_up(&self, codes: __m512i, to: *mut f32, blocks: usize) {
        // SAFETY: planes have 256 bytes.
        unsafe {
            let upper = _mm512_movepi8_mask(codes);
            let mut bytes = [codes; 4];
            for (bytes, plane) in bytes.iter_mut().zip(&self.planes) {
                let part = |i: usize| _mm512_loadu_si512(plane.as_ptr().add(64 * i).cast());
                let low = _mm512_permutex2var_epi8(part(0), codes, part(1));
                let high = _mm512_permutex2var_epi8(part(2), codes, part(3));
                *bytes = _mm512_mask_blend_epi8(upper, low, high);
            }
            for block in 0..blocks {
                // Byte `block` of each word, of the first and of the second plane.
                let first = _mm512_set1_epi16((block + (64 + block) * 256) as i16);
                let words = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
                let from = _mm512_add_epi8(first, _mm512_mullo_epi32(words, _mm512_set1_epi32(0x0101_0101)));
                let low = _mm512_permutex2var_epi8(bytes[0], from, bytes[1]);
                let high = _mm512_permutex2var_epi8(bytes[2], from, bytes[3]);
                let value = _mm512_mask_blend_epi16(0xaaaa_aaaa, low, high);
                _mm512_storeu_si512(to.add(block * ROWS).cast(), value);
            }
        }
    }
}

/// Transposes up to 64 bytes of each row: word `i` of row `r` becomes word `r` of vector `i`.
///
/// # Safety
/// The processor has AVX-512; the rows have these bytes, and `to` has room for 16 vectors.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn transpose(rows: &[*const u8; ROWS], bytes: usize, to: *mut __m512i) {
    let mut lines = [_mm512_setzero_si512(); ROWS];
    for (line, row) in lines.iter_mut().zip(rows) {
        // SAFETY: the caller's promise; what is beyond a row is masked out.
        *line = unsafe { _mm512_maskz_loadu_epi8(u64::MAX >> (LINE - bytes), row.cast()) };
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
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.add(i).cast(), b[i]) };
    }
}
