//! The shape of an attention call, and where its keys and values lie.

use crate::cube::cache::CacheBuffer;
use crate::cube::launch::{Buffer, MAX_ELEMENTS, f32_type};
use crate::types::{KV_BLOCK, KvFormat};

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

/// Stored keys or values: `width` numbers from `b * batch + head * heads + token * tokens` on. Of 8 bits they are rows one after the other,
/// `width / KV_BLOCK` scales, rounded up, for each.
#[derive(Clone, Debug)]
pub struct KvRows {
    /// The numbers.
    pub data: CacheBuffer,
    /// Numbers from a row of the batch to the next.
    pub batch_stride: usize,
    /// Numbers from a head to the next.
    pub head_stride: usize,
    /// Numbers from a token to the next.
    pub token_stride: usize,
}

impl KvRows {
    /// A store `[b, heads, capacity, width]`.
    pub fn of_store(data: CacheBuffer, heads: usize, capacity: usize, width: usize) -> Self {
        let head_stride = capacity.saturating_mul(width);
        Self { data, batch_stride: heads.saturating_mul(head_stride), head_stride, token_stride: width }
    }

    /// Rows `[b, t, heads, width]` in F32.
    pub fn of_tokens(buffer: Buffer, tokens: usize, heads: usize, width: usize) -> Self {
        let token_stride = heads.saturating_mul(width);
        let batch_stride = tokens.saturating_mul(token_stride);
        Self { data: CacheBuffer::F32(buffer), batch_stride, head_stride: width, token_stride }
    }

    /// Of a call that has rows, heads and tokens.
    pub(super) fn check(&self, name: &str, p: &Attention, width: usize) {
        let places = [
            (p.batch - 1, self.batch_stride),
            (p.kv_heads - 1, self.head_stride),
            (p.past.saturating_add(p.seq - 1), self.token_stride),
        ];
        let end = places.iter().try_fold(width, |sum, &(i, stride)| sum.checked_add(i.checked_mul(stride)?));
        let held = self.data.words().len.saturating_mul(self.data.format().per_word());
        assert!(end.is_some_and(|end| end <= held), "{name} holds {held} numbers, attention reads {end:?}");
        // Strides of what has one place are not bounded by that.
        assert!(places.iter().all(|&(_, stride)| stride <= MAX_ELEMENTS), "{name} is {self:?}");
        self.data.words().check_words(name);
        if let Some(scales) = self.data.scales() {
            assert!(width > 0 && self.divides_into(width, width), "{name} in 8 bits is no rows of {width}: {self:?}");
            scales.check("scales of rows", &[held / width, width.div_ceil(KV_BLOCK)]);
            scales.check_type("scales of rows", f32_type());
        }
    }

    /// Whether every row starts at a multiple of `chunk` numbers and is a multiple of it long.
    pub(super) fn divides_into(&self, chunk: usize, width: usize) -> bool {
        [self.batch_stride, self.head_stride, self.token_stride, width].iter().all(|n| n % chunk == 0)
    }

    /// How many U32 words so many numbers take.
    pub(super) fn words(&self, numbers: usize) -> u32 {
        (numbers / self.data.format().per_word()) as u32
    }

    pub(super) fn format(&self) -> KvFormat {
        self.data.format()
    }
}
