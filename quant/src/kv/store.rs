//! The store of keys, values or codes of past tokens.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor};

/// The number format of a [`KvStore`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// Exact; 4 bytes per number.
    F32,
    /// Half precision, two numbers per word; 2 bytes per number.
    #[default]
    F16,
}

impl KvFormat {
    /// The format that a store on this backend has when this one is asked for: where gradients are recorded always F32. Halves are
    /// integers there, and no gradient of keys and values passes through an integer.
    pub fn on<B: Backend>(self, device: &B::Device) -> Self {
        if B::ad_enabled(device) { Self::F32 } else { self }
    }
}

/// Rows of past tokens: `[b, heads, capacity, width]`, filled from the front.
#[derive(Clone, Debug)]
pub enum KvStore<B: Backend> {
    /// `[b, heads, capacity, width]`.
    F32(Tensor<B, 4>),
    /// `[b, heads, capacity, width / 2]` U32, the earlier number in the low half.
    F16(Tensor<B, 4, Int>),
}

impl<B: Backend> KvStore<B> {
    /// An empty store. An odd width is stored as F32, and [where gradients are recorded](KvFormat::on) every width.
    pub fn new(format: KvFormat, [b, heads, capacity, width]: [usize; 4], device: &B::Device) -> Self {
        match format.on::<B>(device) {
            KvFormat::F16 if width.is_multiple_of(2) => {
                Self::F16(Tensor::zeros([b, heads, capacity, width / 2], (device, DType::U32)))
            }
            _ => Self::F32(Tensor::zeros([b, heads, capacity, width], (device, DType::F32))),
        }
    }

    /// How its numbers are stored.
    pub fn format(&self) -> KvFormat {
        match self {
            Self::F32(_) => KvFormat::F32,
            Self::F16(_) => KvFormat::F16,
        }
    }

    /// `[b, heads, capacity, width]`, in numbers.
    pub fn dims(&self) -> [usize; 4] {
        match self {
            Self::F32(t) => t.dims(),
            Self::F16(t) => {
                let [b, heads, capacity, words] = t.dims();
                [b, heads, capacity, words * 2]
            }
        }
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.dims()[2]
    }

    /// Bytes held, free slots included.
    pub fn bytes(&self) -> usize {
        let numbers: usize = self.dims().iter().product();
        match self {
            Self::F32(_) => numbers * 4,
            Self::F16(_) => numbers * 2,
        }
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
        match self {
            Self::F32(t) => {
                let [b, heads, _, width] = t.dims();
                let new = Tensor::zeros([b, heads, capacity, width], (&t.device(), t.dtype()));
                let slots = [0..b, 0..heads, 0..tokens.len(), 0..width];
                let is_empty = tokens.is_empty();
                Self::F32(if is_empty { new } else { new.slice_assign(slots, t.clone().slice_dim(2, tokens)) })
            }
            Self::F16(t) => {
                let [b, heads, _, words] = t.dims();
                let new = Tensor::zeros([b, heads, capacity, words], (&t.device(), t.dtype()));
                let slots = [0..b, 0..heads, 0..tokens.len(), 0..words];
                let is_empty = tokens.is_empty();
                Self::F16(if is_empty { new } else { new.slice_assign(slots, t.clone().slice_dim(2, tokens)) })
            }
        }
    }

    /// The store with the first `count` tokens of another one from slot `at` on; none where the other is of another format.
    ///
    /// # Panics
    /// When one of the two has no such slots, or their rows differ.
    pub fn with_tokens(self, at: usize, other: &Self, count: usize) -> Option<Self> {
        match (self, other) {
            (Self::F32(t), Self::F32(new)) => {
                let [b, heads, _, width] = t.dims();
                let slots = [0..b, 0..heads, at..at + count, 0..width];
                Some(Self::F32(t.slice_assign(slots, new.clone().slice_dim(2, 0..count))))
            }
            (Self::F16(t), Self::F16(new)) => {
                let [b, heads, _, words] = t.dims();
                let slots = [0..b, 0..heads, at..at + count, 0..words];
                Some(Self::F16(t.slice_assign(slots, new.clone().slice_dim(2, 0..count))))
            }
            _ => None,
        }
    }
}
