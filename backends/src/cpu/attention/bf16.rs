//! Sums of the hidden values of a tile in BF16, two positions in one instruction (`vdpbf16ps`).
//!
//! Weights are rounded relative to the highest score so far, whose own weight is exact, hidden values by half of 1/256 of themselves: about what 8
//! bits cost the keys beside which this is done.

use crate::cpu::Level;
use crate::types::KV_TILE as TILE;
use std::arch::x86_64::*;

/// Numbers of a vector of sums, each of a pair of positions.
const LANES: usize = 16;
/// Rows and vectors of columns whose sums are in registers at the same time.
const ROWS: usize = 8;
const VECTORS: usize = 2;
/// Pairs of positions in a tile.
const PAIRS: usize = TILE / 2;

/// Whether values of `width` numbers can be summed so.
pub(super) fn fits(level: Level, width: usize) -> bool {
    level.multiplies_bf16() && width > 0 && width.is_multiple_of(VECTORS * LANES)
}

/// `out[r] += Σ weights[r][i] values[i]` for rows of `TILE` weights, which are 0 from `values` on. The tile of values is overwritten.
///
/// # Panics
/// If a slice does not have its shape, or the width does not [fit](fits).
///
/// # Safety
/// The processor multiplies BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn weigh(weights: &[f32], tile: &mut [f32], count: usize, width: usize, out: &mut [f32]) {
    let rows = out.len() / width;
    assert!(width.is_multiple_of(VECTORS * LANES) && (1..=TILE).contains(&count));
    assert!(weights.len() >= rows * TILE && tile.len() >= TILE * width && out.len() == rows * width);
    tile[count * width..count.next_multiple_of(2) * width].fill(0.0);
    let pairs = count.div_ceil(2);
    // SAFETY: the features are enabled; a tile has `2 * pairs` values.
    unsafe { pair_up(tile, pairs, width) };
    for first in (0..rows).step_by(ROWS) {
        let some = ROWS.min(rows - first);
        let mut words = [[0; PAIRS]; ROWS];
        for (words, weights) in words.iter_mut().zip(weights[first * TILE..(first + some) * TILE].chunks_exact(TILE)) {
            // SAFETY: the features are enabled, and a row has `TILE` weights.
            *words = unsafe { rounded(weights) };
        }
        for column in (0..width).step_by(VECTORS * LANES) {
            let columns = Columns {
                words: &words,
                values: tile[column..].as_ptr().cast(),
                pairs,
                width,
                out: out[first * width + column..].as_mut_ptr(),
            };
            // SAFETY: the features are enabled; the vectors of columns end in the width, and `some` rows are there.
            unsafe {
                match some {
                    ROWS => columns.sum::<ROWS>(0),
                    _ => (0..some).for_each(|r| columns.sum::<1>(r)),
                }
            }
        }
    }
}

/// The values of two positions, side by side in BF16, in place of the first half of the tile.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pair_up(tile: &mut [f32], pairs: usize, width: usize) {
    // Number `i` of both, one after the other.
    let mut places = [0u16; 2 * LANES];
    for (i, place) in places.iter_mut().enumerate() {
        *place = (i / 2 + i % 2 * LANES) as u16;
    }
    let tile = tile.as_mut_ptr();
    // SAFETY: the features are enabled; a pair is written where what it is made of, or a pair before, was read.
    unsafe {
        let places = _mm512_loadu_si512(places.as_ptr().cast());
        for pair in 0..pairs {
            for column in (0..width).step_by(LANES) {
                let at = tile.add(2 * pair * width + column);
                let both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(at.add(width)), _mm512_loadu_ps(at));
                let ordered = _mm512_permutexvar_epi16(places, std::mem::transmute::<__m512bh, __m512i>(both));
                _mm512_storeu_si512(tile.add(pair * width + column).cast(), ordered);
            }
        }
    }
}

/// The weights of a row in BF16, two in a word.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rounded(weights: &[f32]) -> [u32; PAIRS] {
    let mut words = [0; PAIRS];
    for i in (0..TILE).step_by(2 * LANES) {
        // SAFETY: the features are enabled, and a row has `TILE` weights.
        unsafe {
            let at = weights.as_ptr().add(i);
            let some = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(at.add(LANES)), _mm512_loadu_ps(at));
            let some = std::mem::transmute::<__m512bh, __m512i>(some);
            _mm512_storeu_si512(words.as_mut_ptr().add(i / 2).cast(), some);
        }
    }
    words
}

/// Some columns of a tile against the weights of some rows.
struct Columns<'a> {
    words: &'a [[u32; PAIRS]; ROWS],
    /// Pairs of values, a row every `width` words.
    values: *const i32,
    pairs: usize,
    width: usize,
    out: *mut f32,
}

impl Columns<'_> {
    /// The sums of `R` rows from `row` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn sum<const R: usize>(&self, row: usize) {
        // SAFETY: the features are enabled, and the caller has checked the slices.
        unsafe {
            let out = self.out.add(row * self.width);
            let mut sums = [[_mm512_setzero_ps(); VECTORS]; R];
            for r in 0..R {
                for v in 0..VECTORS {
                    sums[r][v] = _mm512_loadu_ps(out.add(r * self.width + v * LANES));
                }
            }
            for pair in 0..self.pairs {
                let mut values = [_mm512_setzero_si512(); VECTORS];
                for v in 0..VECTORS {
                    values[v] = _mm512_loadu_si512(self.values.add(pair * self.width + v * LANES).cast());
                }
                for r in 0..R {
                    let weights = _mm512_set1_epi32(*self.words.get_unchecked(row + r).get_unchecked(pair) as i32);
                    for v in 0..VECTORS {
                        let (weights, values) = (
                            std::mem::transmute::<__m512i, __m512bh>(weights),
                            std::mem::transmute::<__m512i, __m512bh>(values[v]),
                        );
                        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], weights, values);
                    }
                }
            }
            for r in 0..R {
                for v in 0..VECTORS {
                    _mm512_storeu_ps(out.add(r * self.width + v * LANES), sums[r][v]);
                }
            }
        }
    }
}
