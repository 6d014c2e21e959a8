//! The store of keys, values or codes of past tokens.

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
        match self {
            Self::F32(t) => Self::F32(resized(t, capacity)),
            Self::F16(t) => {
                let [b, heads, held, words] = t.dims();
                let kept = held.min(capacity);
                let grown = Tensor::zeros([b, heads, capacity, words], (&t.device(), DType::U32));
                Self::F16(grown.slice_assign([0..b, 0..heads, 0..kept, 0..words], t.slice([0..b, 0..heads, 0..kept])))
            }
        }
    }
}

fn resized<B: Backend>(t: Tensor<B, 4>, capacity: usize) -> Tensor<B, 4> {
    let [b, heads, held, width] = t.dims();
    let kept = held.min(capacity);
    let grown = Tensor::zeros([b, heads, capacity, width], &t.device());
    grown.slice_assign([0..b, 0..heads, 0..kept, 0..width], t.slice([0..b, 0..heads, 0..kept]))
}
