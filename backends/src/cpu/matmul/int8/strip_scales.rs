//! The scales of 16 rows of a matrix that are the lanes of registers, a block of each at a time.

use super::BLOCK;
use super::gemv::{Nested, WeightScales};
use crate::cpu::matmul::packed::block_scales;
use crate::cpu::matmul::weight::CodeBook4;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a strip: 32-bit lanes of a register.
pub(super) const ROWS: usize = 16;
/// Bytes of a cache line, and of a register.
const LINE: usize = 64;

/// 16 rows that follow each other; the last of the matrix stands for those beyond it.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    pub(super) first: usize,
    /// Those that exist.
    pub(super) height: usize,
}

impl Strip {
    fn row(self, r: usize) -> usize {
        self.first + r.min(self.height - 1)
    }

    /// The lanes of rows that exist.
    pub(super) fn mask(self) -> u16 {
        u16::MAX >> (ROWS - self.height)
    }
}

/// Decodes the scales of strips.
pub(super) struct StripScales<'a> {
    stored: StoredScales<'a>,
    blocks: usize,
    /// `[block][row]`, blocks up to a multiple of [`ROWS`].
    scales: Vec<f32>,
}

enum StoredScales<'a> {
    PerRow(&'a [f32]),
    Nested(Box<NestedScales<'a>>),
    OfBlocks(OfBlocks<'a>),
}

/// Scales of blocks that are got at row by row.
enum OfBlocks<'a> {
    /// As they are used.
    Floats(&'a [f32]),
    /// IEEE half precision.
    Halves(&'a [u16]),
    /// What else code books have.
    CodeBook(CodeBook4<'a>),
}

impl<'a> StripScales<'a> {
    /// Those of rows of `k` elements.
    pub(super) fn new(scales: &WeightScales<'a>, k: usize) -> StripScales<'a> {
        let stored = match (scales, scales.floats_from(k, 0)) {
            (_, Some(scales)) => StoredScales::OfBlocks(OfBlocks::Floats(scales)),
            (WeightScales::PerRow(scales), _) => StoredScales::PerRow(scales),
            (WeightScales::Int8(w), _) => StoredScales::OfBlocks(OfBlocks::Halves(w.scales)),
            (WeightScales::CodeBook(w, _), _) => match Nested::in_groups(w, k) {
                Some(nested) => StoredScales::Nested(Box::new(NestedScales::new(nested))),
                None => StoredScales::OfBlocks(OfBlocks::CodeBook(*w)),
            },
        };
        let blocks = k / BLOCK;
        StripScales { stored, blocks, scales: vec![0.0; blocks.next_multiple_of(ROWS) * ROWS] }
    }

    /// The scales of a strip, `[block][row]`.
    ///
    /// # Safety
    /// The processor has AVX-512 with VBMI, the matrix was checked, and the strip has a row of it.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    pub(super) unsafe fn of(&mut self, strip: Strip) -> &[f32] {
        let blocks = self.blocks;
        // SAFETY: the mask leaves the rows that exist, and the buffers are as long as the loads and stores.
        unsafe {
            match &self.stored {
                StoredScales::PerRow(stored) => {
                    let row = _mm512_maskz_loadu_ps(strip.mask(), stored.as_ptr().add(strip.first));
                    self.scales.chunks_exact_mut(ROWS).for_each(|to| _mm512_storeu_ps(to.as_mut_ptr(), row));
                }
                StoredScales::Nested(nested) => nested.decode(strip, blocks, &mut self.scales),
                StoredScales::OfBlocks(stored) => {
                    for (i, to) in self.scales.chunks_exact_mut(ROWS * ROWS).enumerate() {
                        stored.transpose(strip, blocks, i * ROWS..blocks.min((i + 1) * ROWS), to);
                    }
                }
            }
        }
        &self.scales
    }
}

impl OfBlocks<'_> {
    /// The scales of up to 16 blocks of the rows of a strip, `[block][row]`. Floats are transposed where they are stored; others are decoded
    /// first.
    ///
    /// # Safety
    /// The processor has AVX-512, the rows have these blocks, and `to` has room for 16.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    unsafe fn transpose(&self, strip: Strip, blocks: usize, range: Range<usize>, to: &mut [f32]) {
        let count = range.len();
        let (mut decoded, mut rows) = ([[0.0; ROWS]; ROWS], [std::ptr::null(); ROWS]);
        for (r, (decoded, at)) in decoded.iter_mut().zip(&mut rows).enumerate() {
            let block = strip.row(r) * blocks + range.start;
            match self {
                OfBlocks::Floats(scales) => {
                    *at = scales[block..][..count].as_ptr().cast();
                    continue;
                }
                // SAFETY: the caller's promise of the processor.
                OfBlocks::Halves(scales) => unsafe { halves(&scales[block..][..count], decoded) },
                OfBlocks::CodeBook(w) => block_scales(w, block * BLOCK, &mut decoded[..count]),
            }
            *at = decoded.as_ptr().cast();
        }
        // SAFETY: each row has so many floats, and `to` room for a block of 16 of them.
        unsafe { transpose(&rows, size_of::<f32>() * count, to.as_mut_ptr().cast()) };
    }
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
        let Nested { codes, absmax, offset, .. } = self.nested;
        let shift = self.nested.shift();
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
