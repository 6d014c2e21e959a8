//! The shape of an attention call, and where its keys and values lie.

use crate::cube::launch::{Buffer, MAX_ELEMENTS};

/// The shape of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Rows of the batch.
    pub batch: usize,
    /// New tokens, whose keys and values are among the stored ones.
    pub seq: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head `h` reads head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of a query and a key.
    pub key_dim: usize,
    /// Elements of a value and a result.
    pub value_dim: usize,
    /// Tokens before the new ones.
    pub past: usize,
    /// Multiplies every score.
    pub scale: f32,
}

/// One sequence of a call over several.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpan<'a> {
    /// What is stored of its keys.
    pub k: &'a KvRows,
    /// What is stored of its values.
    pub v: &'a KvRows,
    /// The shape of this sequence alone.
    pub shape: Attention,
}

/// Stored keys or values: `width` numbers from `b * batch + head * heads + token * tokens` on.
#[derive(Clone, Debug)]
pub struct KvRows {
    /// F32 numbers, or U32 words of two F16.
    pub buffer: Buffer,
    /// Whether the buffer holds F16.
    pub halves: bool,
    /// Numbers from a row of the batch to the next.
    pub batch_stride: usize,
    /// Numbers from a head to the next.
    pub head_stride: usize,
    /// Numbers from a token to the next.
    pub token_stride: usize,
}

impl KvRows {
    /// A store `[b, heads, capacity, width]`.
    pub fn of_store(buffer: Buffer, halves: bool, heads: usize, capacity: usize, width: usize) -> Self {
        let head_stride = capacity.saturating_mul(width);
        Self { buffer, halves, batch_stride: heads.saturating_mul(head_stride), head_stride, token_stride: width }
    }

    /// Rows `[b, t, heads, width]`.
    pub fn of_tokens(buffer: Buffer, tokens: usize, heads: usize, width: usize) -> Self {
        let token_stride = heads.saturating_mul(width);
        let batch_stride = tokens.saturating_mul(token_stride);
        Self { buffer, halves: false, batch_stride, head_stride: width, token_stride }
    }

    /// Of a call that has rows, heads and tokens.
    pub(super) fn check(&self, name: &str, p: &Attention, width: usize) {
        let places = [
            (p.batch - 1, self.batch_stride),
            (p.kv_heads - 1, self.head_stride),
            (p.past.saturating_add(p.seq - 1), self.token_stride),
        ];
        let end = places.iter().try_fold(width, |sum, &(i, stride)| sum.checked_add(i.checked_mul(stride)?));
        let held = self.buffer.len * if self.halves { 2 } else { 1 };
        assert!(end.is_some_and(|end| end <= held), "{name} holds {held} numbers, attention reads {end:?}");
        // Strides of what has one place are not bounded by that.
        assert!(places.iter().all(|&(_, stride)| stride <= MAX_ELEMENTS), "{name} is {self:?}");
        self.buffer.check_words(name);
    }

    /// Whether every row starts at a multiple of `chunk` numbers and is a multiple of it long.
    pub(super) fn divides_into(&self, chunk: usize, width: usize) -> bool {
        [self.batch_stride, self.head_stride, self.token_stride, width].iter().all(|n| n % chunk == 0)
    }

    /// How many U32 words so many numbers take: a word holds two halves, or one float.
    pub(super) fn words(&self, numbers: usize) -> u32 {
        (if self.halves { numbers / 2 } else { numbers }) as u32
    }
}
