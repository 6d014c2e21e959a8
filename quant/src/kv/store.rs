//! The store of keys, values or codes of past tokens.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{BasicOps, DType, Int, Tensor};
use emberlm_backends::types::{KV_BLOCK, KvFormat};

/// Rows of past tokens: `[b, heads, capacity, width]`, filled from the front.
#[derive(Clone, Debug)]
pub enum KvStore<B: Backend> {
    /// `[b, heads, capacity, width]`.
    F32(Tensor<B, 4>),
    /// `[b, heads, capacity, width / 2]` U32, the earlier number in the low half.
    F16(Tensor<B, 4, Int>),
    /// 8 bits.
    Q8 {
        /// `[b, heads, capacity, width / 4]` U32, the earliest number in the lowest byte, signed.
        codes: Tensor<B, 4, Int>,
        /// `[b, heads, capacity, width / KV_BLOCK]`, rounded up.
        scales: Tensor<B, 4>,
    },
}

impl<B: Backend> KvStore<B> {
    /// The format that a store on this backend has when `format` is asked for: where gradients are recorded always F32. Words are
    /// integers, and no gradient of keys and values passes through an integer.
    pub fn format_on(format: KvFormat, device: &B::Device) -> KvFormat {
        if B::ad_enabled(device) { KvFormat::F32 } else { format }
    }

    /// An empty store. Widths that do not fill words are stored [in a larger format](KvFormat::of_width), and
    /// [where gradients are recorded](Self::format_on) all as F32.
    pub fn new(format: KvFormat, [b, heads, capacity, width]: [usize; 4], device: &B::Device) -> Self {
        let words = |words| Tensor::zeros([b, heads, capacity, words], (device, DType::U32));
        let floats = |floats| Tensor::zeros([b, heads, capacity, floats], (device, DType::F32));
        match Self::format_on(format, device).of_width(width) {
            KvFormat::F32 => Self::F32(floats(width)),
            KvFormat::F16 => Self::F16(words(width / 2)),
            KvFormat::Q8 => Self::Q8 { codes: words(width / 4), scales: floats(width.div_ceil(KV_BLOCK)) },
        }
    }

    /// What its numbers are stored as.
    pub fn format(&self) -> KvFormat {
        match self {
            Self::F32(_) => KvFormat::F32,
            Self::F16(_) => KvFormat::F16,
            Self::Q8 { .. } => KvFormat::Q8,
        }
    }

    /// `[b, heads, capacity, width]`, in numbers.
    pub fn dims(&self) -> [usize; 4] {
        let words = match self {
            Self::F32(t) => return t.dims(),
            Self::F16(words) | Self::Q8 { codes: words, .. } => words,
        };
        let [b, heads, capacity, words] = words.dims();
        [b, heads, capacity, words * self.format().per_word()]
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.dims()[2]
    }

    /// Bytes held, free slots included.
    pub fn bytes(&self) -> usize {
        let [b, heads, capacity, width] = self.dims();
        b * heads * capacity * self.format().bytes(width)
    }

    /// The same rows with room for `capacity` tokens; a smaller capacity keeps the first ones.
    pub fn with_capacity(self, capacity: usize) -> Self {
        self.copied(0..self.capacity().min(capacity), capacity)
    }

    /// Some of its tokens as a store of their own with room for `capacity` tokens. (A slice alone may be a view, which keeps all of the
    /// memory.)
    ///
    /// # Panics
    /// When it has no such slots, or they are more than the capacity.
    pub fn copied(&self, tokens: Range<usize>, capacity: usize) -> Self {
        let floats = |t: &Tensor<B, 4>| {
            let [b, heads, _, width] = t.dims();
            let new = Tensor::zeros([b, heads, capacity, width], (&t.device(), t.dtype()));
            assigned(new, 0, t, tokens.clone())
        };
        let words = |t: &Tensor<B, 4, Int>| {
            let [b, heads, _, words] = t.dims();
            let new = Tensor::zeros([b, heads, capacity, words], (&t.device(), t.dtype()));
            assigned(new, 0, t, tokens.clone())
        };
        match self {
            Self::F32(t) => Self::F32(floats(t)),
            Self::F16(t) => Self::F16(words(t)),
            Self::Q8 { codes, scales } => Self::Q8 { codes: words(codes), scales: floats(scales) },
        }
    }

    /// The store with the first `count` tokens of another one from slot `at` on; none where the other is of another format.
    ///
    /// # Panics
    /// When one of the two has no such slots, or their rows differ.
    pub fn with_tokens(self, at: usize, other: &Self, count: usize) -> Option<Self> {
        match (self, other) {
            (Self::F32(t), Self::F32(new)) => Some(Self::F32(assigned(t, at, new, 0..count))),
            (Self::F16(t), Self::F16(new)) => Some(Self::F16(assigned(t, at, new, 0..count))),
            (Self::Q8 { codes, scales }, Self::Q8 { codes: new_codes, scales: new_scales }) => Some(Self::Q8 {
                codes: assigned(codes, at, new_codes, 0..count),
                scales: assigned(scales, at, new_scales, 0..count),
            }),
            _ => None,
        }
    }
}

/// `to` with `tokens` of `from` from slot `at` on.
fn assigned<B: Backend, K: BasicOps<B>>(
    to: Tensor<B, 4, K>,
    at: usize,
    from: &Tensor<B, 4, K>,
    tokens: Range<usize>,
) -> Tensor<B, 4, K> {
    if tokens.is_empty() {
        return to;
    }
    let [b, heads, _, width] = to.dims();
    let slots = [0..b, 0..heads, at..at + tokens.len(), 0..width];
    to.slice_assign(slots, from.clone().slice_dim(2, tokens))
}
