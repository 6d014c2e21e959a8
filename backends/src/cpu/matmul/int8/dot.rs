//! A block of some rows of the matrix times one of 8 rows of x on aarch64, by instructions that add 4 or 8 products to a sum.
//!
//! With `sdot` the lanes are tokens, and words of the weight are broadcast; with `smmla` a register holds the sums of two rows and two
//! tokens.

use super::BLOCK;
use std::arch::aarch64::*;

/// Rows of the matrix whose products with a panel are computed at once.
pub(super) const STRIP: usize = 8;
/// Tokens of a panel: two vectors of sums.
pub(super) const PANEL: usize = 8;
/// Sums of a vector.
pub(super) const LANES: usize = 4;
/// Sums of a strip and a panel.
pub(super) const SUMS: usize = STRIP * PANEL;

/// A block of a tile and of a panel.
pub(super) struct Part {
    pub(super) strips: usize,
    /// `[strip]`, as [`Dot::put`] orders them.
    pub(super) w: *const i8,
    /// `[row]`.
    pub(super) scales: *const f32,
    pub(super) low: *const i8,
    pub(super) high: *const i8,
    pub(super) places: *const u8,
    /// The first of its outliers and the one after its last.
    pub(super) outliers: (u32, u32),
    pub(super) start: *const i32,
    pub(super) steps: *const f32,
    /// `[strip][vector of tokens][row]`.
    pub(super) totals: *mut f32,
}

impl Part {
    /// Adds the products of the strips and `V` vectors of tokens to their totals.
    ///
    /// # Safety
    /// `D` is enabled, and the pointers are valid for them.
    #[inline(always)]
    unsafe fn add<D: Dot, const V: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            for strip in 0..self.strips {
                let w = self.w.add(strip * STRIP * BLOCK);
                let mut sums = [[vdupq_n_s32(0); V]; STRIP];
                for v in 0..V {
                    let start = D::tokens(self.start.add(v * LANES).cast());
                    for r in 0..STRIP {
                        sums[r][v] = vreinterpretq_s32_f32(start[r % 2]);
                    }
                }
                let (begin, end) = (self.outliers.0 as usize, self.outliers.1 as usize);
                if begin < end {
                    let mut high = [[vdupq_n_s32(0); V]; STRIP];
                    for i in begin..end {
                        let place = usize::from(*self.places.add(i));
                        D::chunk(w, place, self.high.add(i * PANEL * D::CHUNK), &mut high);
                    }
                    for r in 0..STRIP {
                        for v in 0..V {
                            sums[r][v] = vaddq_s32(sums[r][v], vshlq_n_s32::<7>(high[r][v]));
                        }
                    }
                }
                D::block(w, self.low, &mut sums);
                let scales = D::scales([0, LANES].map(|r| vld1q_f32(self.scales.add(strip * STRIP + r))));
                for v in 0..V {
                    let steps = D::tokens(self.steps.add(v * LANES));
                    for r in 0..STRIP {
                        let total = self.totals.add(strip * SUMS + (v * STRIP + r) * LANES);
                        let scale = vmulq_f32(scales[r], steps[r % 2]);
                        vst1q_f32(total, vfmaq_f32(vld1q_f32(total), vcvtq_f32_s32(sums[r][v]), scale));
                    }
                }
            }
        }
    }
}

/// What an instruction does with a block of [`STRIP`] rows and `V` vectors of tokens. The sums of rows `r` and `r + 1`, `r` even, may be
/// mixed in their two vectors until [`rows`](Dot::rows); [`tokens`](Dot::tokens) and [`scales`](Dot::scales) mix in the same way.
///
/// # Safety
/// The processor has the instruction, and pointers are valid for what is read or written.
pub(super) trait Dot {
    /// Elements whose products are added at once.
    const CHUNK: usize;

    /// Puts a block of row `r` among those of its strip.
    unsafe fn put(bytes: [int8x16_t; 4], r: usize, to: *mut i8);
    /// The values of four tokens, for two rows.
    unsafe fn tokens(from: *const f32) -> [float32x4_t; 2];
    /// The values of the rows, for any four tokens.
    unsafe fn scales(rows: [float32x4_t; 2]) -> [float32x4_t; STRIP];
    /// Adds the products with one chunk of the block.
    unsafe fn chunk<const V: usize>(w: *const i8, place: usize, x: *const i8, sums: &mut [[int32x4_t; V]; STRIP]);
    /// Adds the products with all chunks.
    unsafe fn block<const V: usize>(w: *const i8, x: *const i8, sums: &mut [[int32x4_t; V]; STRIP]);
    /// The sums of two rows, apart.
    unsafe fn rows(sums: [float32x4_t; 2]) -> [float32x4_t; 2];
    /// [`Part::add`], compiled for the instruction.
    unsafe fn add<const V: usize>(part: &Part);
}

// The intrinsics of both instructions are not stable, so that they are written out.

/// Of the dot product, which every processor with these kernels has.
pub(super) struct Sdot;

/// Adds the products of four words of x and word `LANE` of a row.
///
/// # Safety
/// The dot product is enabled.
#[inline(always)]
unsafe fn sdot_word<const LANE: i32>(sums: &mut int32x4_t, x: int8x16_t, w: int8x16_t) {
    // SAFETY: registers alone.
    unsafe {
        std::arch::asm!(
            "sdot {sums:v}.4s, {x:v}.16b, {w:v}.4b[{lane}]",
            sums = inout(vreg) *sums,
            x = in(vreg) x,
            w = in(vreg) w,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// Rows lie by 16 bytes, `[quarter][row]`.
// SAFETY (every block): called only where the dot product is enabled, with pointers valid for a strip, a chunk of a panel or a panel.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Dot for Sdot {
    const CHUNK: usize = 4;

    #[inline(always)]
    unsafe fn put(bytes: [int8x16_t; 4], r: usize, to: *mut i8) {
        for (i, bytes) in bytes.into_iter().enumerate() {
            unsafe { vst1q_s8(to.add((i * STRIP + r) * 16), bytes) };
        }
    }
    #[inline(always)]
    unsafe fn tokens(from: *const f32) -> [float32x4_t; 2] {
        unsafe { [vld1q_f32(from); 2] }
    }
    #[inline(always)]
    unsafe fn scales([a, b]: [float32x4_t; 2]) -> [float32x4_t; STRIP] {
        unsafe {
            [
                vdupq_laneq_f32::<0>(a),
                vdupq_laneq_f32::<1>(a),
                vdupq_laneq_f32::<2>(a),
                vdupq_laneq_f32::<3>(a),
                vdupq_laneq_f32::<0>(b),
                vdupq_laneq_f32::<1>(b),
                vdupq_laneq_f32::<2>(b),
                vdupq_laneq_f32::<3>(b),
            ]
        }
    }
    #[inline(always)]
    unsafe fn chunk<const V: usize>(w: *const i8, place: usize, x: *const i8, sums: &mut [[int32x4_t; V]; STRIP]) {
        unsafe {
            let w = w.add(place / 4 * STRIP * 16 + place % 4 * 4);
            for r in 0..STRIP {
                let w = vreinterpretq_s8_s32(vdupq_n_s32(w.add(r * 16).cast::<i32>().read_unaligned()));
                for v in 0..V {
                    sdot_word::<0>(&mut sums[r][v], vld1q_s8(x.add(v * LANES * 4)), w);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn block<const V: usize>(w: *const i8, x: *const i8, sums: &mut [[int32x4_t; V]; STRIP]) {
        unsafe {
            for i in 0..4 {
                let mut ws = [vdupq_n_s8(0); STRIP];
                for r in 0..STRIP {
                    ws[r] = vld1q_s8(w.add((i * STRIP + r) * 16));
                }
                let x = x.add(i * 16 * PANEL);
                macro_rules! words {
                    ($($lane:literal),*) => { $(
                        for v in 0..V {
                            let x = vld1q_s8(x.add(($lane * PANEL + v * LANES) * 4));
                            for r in 0..STRIP {
                                sdot_word::<$lane>(&mut sums[r][v], x, ws[r]);
                            }
                        }
                    )* };
                }
                words!(0, 1, 2, 3);
            }
        }
    }
    #[inline(always)]
    unsafe fn rows(sums: [float32x4_t; 2]) -> [float32x4_t; 2] {
        sums
    }
    #[inline(always)]
    unsafe fn add<const V: usize>(part: &Part) {
        #[target_feature(enable = "neon,dotprod")]
        unsafe fn add<const V: usize>(part: &Part) {
            unsafe { part.add::<Sdot, V>() }
        }
        unsafe { add::<V>(part) }
    }
}

/// Of i8mm (Apple M2, Neoverse V1 and N2 and later).
pub(super) struct Smmla;

/// Rows lie in pairs by 8 bytes, `[chunk][pair][row]`. Of the sums of a pair, the first vector has those of tokens 0 and 1, of either row,
/// the second those of tokens 2 and 3.
// SAFETY (every block): called only where i8mm is enabled, with pointers valid for a strip, a chunk of a panel or a panel.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Dot for Smmla {
    const CHUNK: usize = 8;

    #[inline(always)]
    unsafe fn put(bytes: [int8x16_t; 4], r: usize, to: *mut i8) {
        for (i, bytes) in bytes.into_iter().enumerate() {
            unsafe {
                let to = to.add(2 * i * STRIP * 8 + r * 8);
                vst1_s8(to, vget_low_s8(bytes));
                vst1_s8(to.add(STRIP * 8), vget_high_s8(bytes));
            }
        }
    }
    #[inline(always)]
    unsafe fn tokens(from: *const f32) -> [float32x4_t; 2] {
        unsafe { [0, 2].map(|i| vcombine_f32(vld1_f32(from.add(i)), vld1_f32(from.add(i)))) }
    }
    #[inline(always)]
    unsafe fn scales([a, b]: [float32x4_t; 2]) -> [float32x4_t; STRIP] {
        unsafe {
            let pairs = [vzip1q_f32(a, a), vzip2q_f32(a, a), vzip1q_f32(b, b), vzip2q_f32(b, b)];
            std::array::from_fn(|r| pairs[r / 2])
        }
    }
    #[inline(always)]
    unsafe fn chunk<const V: usize>(w: *const i8, place: usize, x: *const i8, sums: &mut [[int32x4_t; V]; STRIP]) {
        unsafe {
            let w = w.add(place * STRIP * 8);
            let mut xs = [[vdupq_n_s8(0); 2]; V];
            for v in 0..V {
                xs[v] = [vld1q_s8(x.add(v * LANES * 8)), vld1q_s8(x.add((v * LANES + 2) * 8))];
            }
            for r in 0..STRIP {
                let w = vld1q_s8(w.add(r / 2 * 16));
                for v in 0..V {
                    std::arch::asm!(
                        "smmla {sums:v}.4s, {w:v}.16b, {x:v}.16b",
                        sums = inout(vreg) sums[r][v],
                        w = in(vreg) w,
                        x = in(vreg) xs[v][r % 2],
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn block<const V: usize>(w: *const i8, x: *const i8, sums: &mut [[int32x4_t; V]; STRIP]) {
        for place in 0..BLOCK / 8 {
            unsafe { Self::chunk(w, place, x.add(place * 8 * PANEL), sums) };
        }
    }
    #[inline(always)]
    unsafe fn rows(sums: [float32x4_t; 2]) -> [float32x4_t; 2] {
        unsafe {
            let [a, b] = sums.map(|sums| vreinterpretq_f64_f32(sums));
            [vreinterpretq_f32_f64(vtrn1q_f64(a, b)), vreinterpretq_f32_f64(vtrn2q_f64(a, b))]
        }
    }
    #[inline(always)]
    unsafe fn add<const V: usize>(part: &Part) {
        #[target_feature(enable = "neon,i8mm")]
        unsafe fn add<const V: usize>(part: &Part) {
            unsafe { part.add::<Smmla, V>() }
        }
        unsafe { add::<V>(part) }
    }
}
