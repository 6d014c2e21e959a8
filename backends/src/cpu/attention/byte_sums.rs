//! Sums over keys, values and hidden values in 8 bits as whole numbers, where the processor multiplies those faster than floats.

use crate::cpu::Level;
use crate::cpu::attention::ahead::Next;
use crate::cpu::attention::q8::Q8Rows;
use crate::cpu::attention::types::{Attention, KeyValue};
#[cfg(target_arch = "x86_64")]
use crate::cpu::attention::{vnni, words};
use crate::cpu::cache::CacheSlice;
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::bytes::avx2::Instruction;
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::dot::{Maddubs, VnniEvex, VnniVex};
use crate::types::KV_BLOCK;

/// The kernels that compute them.
#[derive(Clone, Copy)]
pub(super) enum ByteSums {
    /// [`vnni`].
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// [`words`].
    #[cfg(target_arch = "x86_64")]
    Words(Instruction),
}

/// The queries of a call as whole numbers.
pub(super) enum ByteQueries {
    #[cfg(target_arch = "x86_64")]
    Vnni(vnni::IntQueries),
    #[cfg(target_arch = "x86_64")]
    Words(words::WordQueries, Instruction),
}

impl ByteSums {
    /// Those of `rows` queries of each kv head over `kv`; none where it is not in 8 bits, or floats are better.
    pub(super) fn new(level: Level, kv: &KeyValue, rows: usize, p: &Attention) -> Option<ByteSums> {
        // Hidden values are read by the queries of all heads.
        let (parts, width, rows) = match kv {
            KeyValue::Plain(parts) => (parts, p.head_dim, rows),
            KeyValue::Hidden { values, output } => (values, output.weight.k, rows * p.kv_heads),
            KeyValue::Compressed { .. } => return None,
        };
        let stored = parts.iter().any(|part| matches!(part, CacheSlice::Q8 { .. }));
        let fits = stored && width.is_multiple_of(KV_BLOCK) && width > 0;
        #[cfg(target_arch = "x86_64")]
        return match level {
            _ if !fits => None,
            Level::Avx512 => vnni::available().then_some(ByteSums::Vnni),
            Level::Avx2 | Level::AvxVnni if rows <= words::MAX_ROWS => Some(ByteSums::Words(Instruction::of(level))),
            _ => None,
        };
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (fits, level, rows);
            None
        }
    }

    /// `q [rows, width]` as whole numbers.
    pub(super) fn queries(self, q: &[f32], width: usize) -> ByteQueries {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (q, width);
        match self {
            #[cfg(target_arch = "x86_64")]
            ByteSums::Vnni => ByteQueries::Vnni(vnni::IntQueries::new(q, width)),
            #[cfg(target_arch = "x86_64")]
            ByteSums::Words(instruction) => ByteQueries::Words(words::WordQueries::new(q, width), instruction),
        }
    }

    /// `out[r] += Σ weights[r][i] values[i]` for rows of `TILE` weights, which are 0 from `values` on. `next` is prefetched meanwhile.
    ///
    /// # Panics
    /// If a slice does not have its shape.
    #[inline(always)]
    pub(super) fn weigh(self, weights: &[f32], rows: usize, values: Q8Rows, out: &mut [f32], next: Option<Next>) {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (weights, rows, values, out, next);
        // SAFETY: `new` found the instructions.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            match self {
                ByteSums::Vnni => vnni::weigh(weights, rows, values, out, next),
                ByteSums::Words(Instruction::Maddubs) => words::weigh::<Maddubs>(weights, rows, values, out, next),
                ByteSums::Words(Instruction::VnniVex) => words::weigh::<VnniVex>(weights, rows, values, out, next),
                ByteSums::Words(Instruction::VnniEvex) => words::weigh::<VnniEvex>(weights, rows, values, out, next),
            }
        }
    }
}

impl ByteQueries {
    /// Whether [`scores`](Self::scores) asks for what is farther away, too.
    pub(super) fn fetches_far(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self, ByteQueries::Vnni(_));
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// `scores[r][i] = query[first + r] · keys[i]` for `rows` queries, rows of `TILE` scores. `next` is prefetched meanwhile.
    ///
    /// # Panics
    /// If a slice does not have its shape.
    #[inline(always)]
    pub(super) fn scores(&self, first: usize, rows: usize, keys: Q8Rows, scores: &mut [f32], next: Option<Next>) {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (first, rows, keys, scores, next);
        // SAFETY: `ByteSums::new` found the instructions.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            match self {
                ByteQueries::Vnni(queries) => vnni::scores(queries, first, rows, keys, scores, next),
                ByteQueries::Words(queries, instruction) => {
                    let scores_of = match instruction {
                        Instruction::Maddubs => words::scores::<Maddubs>,
                        Instruction::VnniVex => words::scores::<VnniVex>,
                        Instruction::VnniEvex => words::scores::<VnniEvex>,
                    };
                    scores_of(queries, first, rows, keys, scores, next);
                }
            }
        }
    }
}
