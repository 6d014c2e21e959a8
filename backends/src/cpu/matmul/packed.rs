//! Matrix-vector products on packed 4- and 2-bit codes, a few columns of x at a time.
//!
//! A word of 32 bits holds 8 (or 16) codes. Instead of unpacking them in order, a vector of words is shifted in place and
//! looked up, so lane `l` of shift `s` holds element `(word l, code s)`; x is permuted once per call to that order. Four rows
//! are in flight, each prefetched ahead: one alone waits for memory.

use crate::cpu::matmul::weight::CodeBook4;
use crate::cpu::pool::Output;
use crate::cpu::simd::{Kernel, Simd};

/// The most columns of x that one pass handles.
pub(crate) const MAX_COLUMNS: usize = 8;

/// How many bytes ahead of its loads a row is prefetched.
pub(crate) const AHEAD: usize = 2048;

/// x permuted to the order in which codes leave the words: `[group][shift][column][lane]`, padded with zeros.
pub(crate) struct PermutedX {
    values: Vec<f32>,
    columns: usize,
}

/// Where code `s` of a word lies among its elements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// The even element in the high nibble.
    HighFirst,
    /// The first element in the lowest bits.
    LowFirst,
}

impl PermutedX {
    /// Permutes `x [m, k]` for vectors of `lanes`; `m` at most [`MAX_COLUMNS`], padded to a size with its own kernel.
    pub(crate) fn new(x: &[f32], m: usize, k: usize, lanes: usize, bits: usize, order: Order) -> PermutedX {
        let columns = m.next_power_of_two();
        let per_word = 32 / bits;
        let group = lanes * per_word;
        let mut values = vec![0.0; k.div_ceil(group) * group * columns];
        let flip = usize::from(order == Order::HighFirst);
        for (column, x) in x.chunks_exact(k).enumerate().take(m) {
            let out = &mut values[column * lanes..];
            if bits == 4 {
                permute::<8>(x, lanes, columns * lanes, flip, out);
            } else {
                permute::<16>(x, lanes, columns * lanes, flip, out);
            }
        }
        PermutedX { values, columns }
    }
}

/// Puts element `e` of word `l` of each group at `(e ^ flip) * step + l`.
#[inline]
fn permute<const PER_WORD: usize>(x: &[f32], lanes: usize, step: usize, flip: usize, out: &mut [f32]) {
    for (g, x) in x.chunks(lanes * PER_WORD).enumerate() {
        let out = &mut out[g * step * PER_WORD..];
        let mut words = x.chunks_exact(PER_WORD);
        let mut l = 0;
        for word in &mut words {
            for e in 0..PER_WORD {
                out[(e ^ flip) * step + l] = word[e];
            }
            l += 1;
        }
        for (e, &value) in words.remainder().iter().enumerate() {
            out[(e ^ flip) * step + l] = value;
        }
    }
}

/// Rows `first..last` of a packed matrix times x.
pub(crate) struct PackedRows<'a> {
    pub(crate) codes: &'a [u8],
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
    /// Bytes of a row that hold codes.
    pub(crate) row_bytes: usize,
    pub(crate) bits: usize,
    pub(crate) book: &'a [f32; 16],
    pub(crate) scales: PackedScales<'a>,
    pub(crate) x: &'a PermutedX,
    pub(crate) m: usize,
    pub(crate) first: usize,
    pub(crate) last: usize,
    /// Column of the output that row 0 of the matrix goes to.
    pub(crate) column: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) y: Output<'a>,
}

/// The scales of packed rows.
pub(crate) enum PackedScales<'a> {
    /// One per row.
    PerRow(&'a [f32]),
    /// Per block of a multiple of 64 elements; rows have `k` elements, a multiple of 64.
    PerBlock(&'a CodeBook4<'a>, usize),
}

impl Kernel for PackedRows<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: `S` is enabled; `rows` says what it needs of the slices, which their check and the padding of x give.
        unsafe {
            match (&self.scales, self.bits) {
                (PackedScales::PerBlock(..), _) => self.columns::<S, 4, true>(),
                (PackedScales::PerRow(_), 4) => self.columns::<S, 4, false>(),
                _ => self.columns::<S, 2, false>(),
            }
        }
    }
}

impl PackedRows<'_> {
    #[inline(always)]
    unsafe fn columns<S: Simd, const BITS: usize, const BLOCKS: bool>(&self) {
        // SAFETY: as for `call`.
        unsafe {
            match (self.x.columns, S::REGISTERS) {
                (1, 16..) => self.range::<S, BITS, BLOCKS, 4, 1>(),
                (2, 32..) => self.range::<S, BITS, BLOCKS, 4, 2>(),
                (4, 32..) => self.range::<S, BITS, BLOCKS, 4, 4>(),
                (8, 32..) => self.range::<S, BITS, BLOCKS, 2, 8>(),
                (2, 16..) => self.range::<S, BITS, BLOCKS, 2, 2>(),
                (4, 16..) => self.range::<S, BITS, BLOCKS, 2, 4>(),
                (1, _) => self.range::<S, BITS, BLOCKS, 1, 1>(),
                (2, _) => self.range::<S, BITS, BLOCKS, 1, 2>(),
                (4, _) => self.range::<S, BITS, BLOCKS, 1, 4>(),
                _ => self.range::<S, BITS, BLOCKS, 1, 8>(),
            }
        }
    }

    #[inline(always)]
    unsafe fn range<S: Simd, const BITS: usize, const BLOCKS: bool, const R: usize, const M: usize>(&self) {
        let per_row = match self.scales {
            // One more: a group of AVX-512 covers two blocks.
            PackedScales::PerBlock(_, k) => k / 64 + 1,
            PackedScales::PerRow(_) => 0,
        };
        let mut scales = vec![0.0; R * per_row];
        // `R` streams far apart, each read in order: that is what hardware prefetchers follow.
        let apart = (self.last - self.first) / R;
        // The rest one at a time: `R` times the same row, to spare a kernel of its own.
        let rest = self.first + apart * R;
        // SAFETY: as for `call`; all rows lie before `last`.
        unsafe {
            for row in (self.first..self.first + apart).chain(rest..self.last) {
                let apart = if row < rest { apart } else { 0 };
                self.rows::<S, BITS, BLOCKS, R, M>(row, apart, per_row, &mut scales);
            }
        }
    }

    /// Rows `row`, `row + apart`, ... (`R` of them) times `M` columns.
    ///
    /// # Safety
    /// The rows exist, x is permuted for `S` and `BITS` with `M` columns, and no other task writes these outputs.
    #[inline(always)]
    unsafe fn rows<S: Simd, const BITS: usize, const BLOCKS: bool, const R: usize, const M: usize>(
        &self,
        row: usize,
        apart: usize,
        per_row: usize,
        scales: &mut [f32],
    ) {
        // SAFETY: the caller's promise; a group of codes is read whole only where the row has it whole.
        unsafe {
            if let PackedScales::PerBlock(w, k) = self.scales {
                for r in 0..R {
                    block_scales(w, (row + r * apart) * k, &mut scales[r * per_row..(r + 1) * per_row - 1]);
                }
            }
            let scales = scales.as_ptr();
            let book = S::book(self.book);
            let group_bytes = 4 * S::LANES;
            let group_x = S::LANES * (32 / BITS) * M;
            let groups = self.row_bytes / group_bytes;
            let codes = self.codes.as_ptr().add(row * self.stride);
            let x = self.x.values.as_ptr();
            let mut total = [[S::splat(0.0); M]; R];
            // Lookups read three bytes beyond a group: the last groups of the matrix come from a padded copy.
            let readable = self.codes.len() - (row + (R - 1) * apart) * self.stride;
            let whole = groups.min(readable.saturating_sub(3) / group_bytes);
            let stream = apart * self.stride;
            let mut words = [codes; R];
            let mut padded = [[0u8; 68]; R];
            for g in 0..self.row_bytes.div_ceil(group_bytes) {
                let at = codes.add(g * group_bytes);
                for r in 0..R {
                    words[r] = at.add(r * stream);
                    S::prefetch(at.wrapping_add(r * stream + AHEAD));
                }
                if g >= whole {
                    let length = group_bytes.min(self.row_bytes - g * group_bytes);
                    for r in 0..R {
                        std::ptr::copy_nonoverlapping(words[r], padded[r].as_mut_ptr(), length);
                        padded[r][length..].fill(0);
                        words[r] = padded[r].as_ptr();
                    }
                }
                let x = x.add(g * group_x);
                group::<S, BITS, BLOCKS, R, M>(book, &words, scales, per_row, g, x, &mut total);
            }
            for r in 0..R {
                let scale = match self.scales {
                    PackedScales::PerRow(scales) => scales[row + r * apart],
                    PackedScales::PerBlock(..) => 1.0,
                };
                let j = self.column + row + r * apart;
                let bias = self.bias.map_or(0.0, |bias| bias[j]);
                for m in 0..M {
                    if m < self.m {
                        self.y.set(m, j, S::sum(total[r][m]) * scale + bias);
                    }
                }
            }
        }
    }
}

/// One group of words per row against the x of that group.
#[inline(always)]
unsafe fn group<S: Simd, const BITS: usize, const BLOCKS: bool, const R: usize, const M: usize>(
    book: S::Book,
    words: &[*const u8; R],
    scales: *const f32,
    per_row: usize,
    g: usize,
    x: *const f32,
    total: &mut [[S::V; M]; R],
) {
    // SAFETY: x holds the group's elements for `M` columns, `scales` those of the group.
    unsafe {
        let mut scale = [S::splat(0.0); R];
        if BLOCKS {
            for r in 0..R {
                scale[r] = S::group_scale(scales.add(r * per_row), g);
            }
        }
        // With few columns a block is summed first and scaled once; with more it is cheaper to scale the weight.
        let late = BLOCKS && M <= 2;
        let early = BLOCKS && M > 2;
        let mut block = [[S::splat(0.0); M]; R];
        // One column has too few sums to hide the latency of an addition: every second code goes to its own.
        let mut odd = [[S::splat(0.0); M]; R];
        let sums = if late { &mut block } else { &mut *total };
        macro_rules! codes_at {
            ($($shift:literal)*) => {$(
                let at = x.add($shift / BITS * M * S::LANES);
                for r in 0..R {
                    let mut w = S::lookup::<$shift>(book, words[r]);
                    if early {
                        w = S::mul(w, scale[r]);
                    }
                    for m in 0..M {
                        let x = S::load(at.add(m * S::LANES));
                        if M == 1 && $shift / BITS % 2 == 1 {
                            odd[r][m] = S::fma(w, x, odd[r][m]);
                        } else {
                            sums[r][m] = S::fma(w, x, sums[r][m]);
                        }
                    }
                }
            )*};
        }
        if BITS == 4 {
            codes_at!(0 4 8 12 16 20 24 28);
        } else {
            codes_at!(0 2 4 6 8 10 12 14 16 18 20 22 24 26 28 30);
        }
        if M == 1 {
            for r in 0..R {
                sums[r][0] = S::add(sums[r][0], odd[r][0]);
            }
        }
        if late {
            for r in 0..R {
                for m in 0..M {
                    total[r][m] = S::fma(block[r][m], scale[r], total[r][m]);
                }
            }
        }
    }
}

/// The scale of every 64 elements from `element` on; `w.block` and `element` are multiples of 64.
#[inline(always)]
pub(crate) fn block_scales(w: &CodeBook4, element: usize, out: &mut [f32]) {
    use crate::cpu::matmul::weight::BlockScales;
    if w.block != 64 {
        for (i, out) in out.iter_mut().enumerate() {
            *out = w.scales.get((element + 64 * i) / w.block);
        }
        return;
    }
    let first = element / 64;
    match w.scales {
        BlockScales::Single(scales) => out.copy_from_slice(&scales[first..first + out.len()]),
        BlockScales::Double { codes, map, absmax, block, offset } => {
            let Ok(map) = <&[f32; 256]>::try_from(map) else {
                return;
            };
            let codes = &codes[first..first + out.len()];
            let mut done = 0;
            while done < out.len() {
                let at = first + done;
                let end = out.len().min(done + block - at % block);
                let absmax = absmax[at / block];
                // Codes are read and scales are computed eight at a time.
                let (codes, last_codes) = codes[done..end].as_chunks::<8>();
                let (out, last) = out[done..end].as_chunks_mut::<8>();
                for (out, codes) in out.iter_mut().zip(codes) {
                    let found: [f32; 8] = std::array::from_fn(|i| map[usize::from(codes[i])]);
                    *out = found.map(|value| value * absmax + offset);
                }
                for (out, &code) in last.iter_mut().zip(last_codes) {
                    *out = map[usize::from(code)] * absmax + offset;
                }
                done = end;
            }
        }
    }
}
