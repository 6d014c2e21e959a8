//! Stored keys, values or codes as the borrowed parts that kernels read.

use std::borrow::Cow;

use burn::tensor::ops::{FloatTensor, IntTensor};
use emberlm_backends::cpu;

use super::{HostTensors, float_primitive};
use crate::kv::{KvParts, KvStore};
use crate::ops::{AttentionShape, CachedKv};

/// The shape of attention of queries of these dimensions.
pub(super) fn geometry<B: HostTensors>(
    [batch, seq, heads, head_dim]: [usize; 4],
    kv: &CachedKv<'_, B>,
) -> cpu::Attention {
    let AttentionShape { past, kv_heads, scale } = kv.shape;
    cpu::Attention { batch, seq, heads, kv_heads, head_dim, past, capacity: past + seq, scale: scale as f32 }
}

/// The parts of one side of a cache, kept alive while a kernel reads them.
pub(super) struct HeldParts<B: HostTensors>(Vec<HeldStore<B>>);

enum HeldStore<B: HostTensors> {
    F32(FloatTensor<B>),
    F16(IntTensor<B>),
    Q8 { codes: IntTensor<B>, scales: FloatTensor<B> },
}

/// Their numbers.
pub(super) struct PartNumbers<'a>(Vec<Numbers<'a>>);

enum Numbers<'a> {
    F32(Cow<'a, [f32]>),
    F16(Cow<'a, [u32]>),
    Q8 { codes: Cow<'a, [u32]>, scales: Cow<'a, [f32]> },
}

impl<B: HostTensors> HeldParts<B> {
    pub(super) fn new(parts: KvParts<'_, B>) -> Self {
        let held = |store: &KvStore<B>| match store {
            KvStore::F32(t) => HeldStore::F32(float_primitive(t.clone())),
            KvStore::F16(t) => HeldStore::F16(t.clone().into_primitive()),
            KvStore::Q8 { codes, scales } => {
                HeldStore::Q8 { codes: codes.clone().into_primitive(), scales: float_primitive(scales.clone()) }
            }
        };
        Self(parts.iter().map(held).collect())
    }

    pub(super) fn numbers(&self) -> PartNumbers<'_> {
        PartNumbers(self.0.iter().map(HeldStore::numbers).collect())
    }
}

impl<B: HostTensors> HeldStore<B> {
    fn numbers(&self) -> Numbers<'_> {
        match self {
            Self::F32(t) => Numbers::F32(B::floats(t)),
            Self::F16(t) => Numbers::F16(B::words(t)),
            Self::Q8 { codes, scales } => Numbers::Q8 { codes: B::words(codes), scales: B::floats(scales) },
        }
    }
}

impl PartNumbers<'_> {
    /// Keys or values.
    pub(super) fn slices(&self) -> Vec<cpu::CacheSlice<'_>> {
        self.0.iter().map(Numbers::slice).collect()
    }

    /// Codes.
    pub(super) fn codes(&self) -> Vec<&[f32]> {
        self.0.iter().map(Numbers::floats).collect()
    }
}

impl Numbers<'_> {
    fn slice(&self) -> cpu::CacheSlice<'_> {
        match self {
            Self::F32(numbers) => cpu::CacheSlice::F32(numbers),
            Self::F16(words) => cpu::CacheSlice::F16(bytemuck::cast_slice(words)),
            Self::Q8 { codes, scales } => cpu::CacheSlice::Q8 { codes: bytemuck::cast_slice(codes), scales },
        }
    }

    fn floats(&self) -> &[f32] {
        match self {
            Self::F32(numbers) => numbers,
            Self::F16(_) | Self::Q8 { .. } => unreachable!("codes are stored as F32"),
        }
    }
}
