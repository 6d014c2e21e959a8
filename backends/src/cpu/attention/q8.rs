//! Keys and values in 8 bits, and what they are as floats.

use crate::cpu::simd::Simd;
use crate::types::KV_BLOCK;

/// Keys or values of consecutive positions of one head.
#[derive(Clone, Copy)]
pub(super) struct Q8Rows<'a> {
    /// `[count, width]`.
    pub(super) codes: &'a [i8],
    /// `[count, width / KV_BLOCK]`, rounded up.
    pub(super) scales: &'a [f32],
    pub(super) width: usize,
}

impl<'a> Q8Rows<'a> {
    /// `count` rows of a cache in 8 bits, the first of which is row `first` of all its heads and positions.
    pub(super) fn new(codes: &'a [i8], scales: &'a [f32], width: usize, first: usize, count: usize) -> Self {
        let blocks = width.div_ceil(KV_BLOCK);
        Q8Rows {
            codes: &codes[first * width..(first + count) * width],
            scales: &scales[first * blocks..(first + count) * blocks],
            width,
        }
    }

    /// As floats, `[count, width]`.
    ///
    /// # Safety
    /// `S` must be enabled.
    #[inline(always)]
    pub(super) unsafe fn floats<S: Simd>(&self, to: &mut [f32]) {
        let blocks = self.width.div_ceil(KV_BLOCK);
        let rows = self.codes.chunks_exact(self.width).zip(self.scales.chunks_exact(blocks));
        for ((codes, scales), to) in rows.zip(to.chunks_exact_mut(self.width)) {
            for ((codes, scale), to) in codes.chunks(KV_BLOCK).zip(scales).zip(to.chunks_mut(KV_BLOCK)) {
                let whole = codes.len() / S::LANES * S::LANES;
                // SAFETY: `S` is enabled, and every access is inside the slices, which have one length.
                unsafe {
                    let scale = S::splat(*scale);
                    for i in (0..whole).step_by(S::LANES) {
                        S::store(to.as_mut_ptr().add(i), S::mul(S::load_i8(codes.as_ptr().add(i).cast()), scale));
                    }
                }
                for (to, code) in to[whole..].iter_mut().zip(&codes[whole..]) {
                    *to = f32::from(*code) * scale;
                }
            }
        }
    }
}
