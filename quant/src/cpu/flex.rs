//! The operations on burn-flex, in f32.

use std::borrow::Cow;

use burn::tensor::ops::{BoolTensor, FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{Bool, DType, Int, Shape, Tensor, TensorData};
use burn_flex::{Flex, FlexTensor};

use super::{HostTensors, bytes_of, host_operations, operations};
use crate::CompactBackend;
use crate::halting::{HaltRecord, HaltState, HaltStep};
use crate::kv::{KvStore, Rotary};
use crate::modules::{Linear, SwiGlu};
use crate::ops::{AttentionSpan, CachedKv, CausalConv, DeltaGates, DeltaRule, Norm};
use crate::packed::PackedWeight;

impl CompactBackend for Flex {
    host_operations!();
}

impl HostTensors for Flex {
    fn floats(t: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        elements(t)
    }

    fn into_floats(t: FloatTensor<Self>) -> Vec<f32> {
        t.into_data().into_vec().expect("an F32 tensor")
    }

    fn from_floats(values: Vec<f32>, shape: Shape) -> FloatTensor<Self> {
        FlexTensor::from_data(TensorData::new(values, shape))
    }

    fn reshaped(t: FloatTensor<Self>, shape: Shape) -> FloatTensor<Self> {
        <Self as FloatTensorOps<Self>>::float_reshape(t, shape)
    }

    fn bytes(t: &IntTensor<Self>) -> Cow<'_, [u8]> {
        match t.dtype() {
            DType::U8 => elements(t),
            _ => bytes_of(Self::words(t)),
        }
    }

    fn words(t: &IntTensor<Self>) -> Cow<'_, [u32]> {
        elements(t)
    }

    fn into_words(t: IntTensor<Self>) -> Vec<u32> {
        t.into_data().into_vec().expect("a U32 tensor")
    }

    fn from_words(values: Vec<u32>, shape: Shape) -> IntTensor<Self> {
        FlexTensor::from_data(TensorData::new(values, shape))
    }

    fn integers(t: &IntTensor<Self>) -> Vec<i64> {
        match t.dtype() {
            DType::I64 => elements::<i64>(t).into_owned(),
            DType::U32 => elements::<u32>(t).iter().map(|&x| x.into()).collect(),
            _ => elements::<i32>(t).iter().map(|&x| x.into()).collect(),
        }
    }

    fn from_integers(values: Vec<i64>, shape: Shape) -> IntTensor<Self> {
        FlexTensor::from_data(TensorData::new(values, shape).convert::<i32>())
    }

    fn flags(t: &BoolTensor<Self>) -> Cow<'_, [bool]> {
        Cow::Owned(t.to_contiguous().bytes().iter().map(|&x| x != 0).collect())
    }

    fn from_flags(values: Vec<bool>, shape: Shape) -> BoolTensor<Self> {
        FlexTensor::from_data(TensorData::new(values, shape))
    }
}

fn elements<E: burn::tensor::Element + bytemuck::Pod>(t: &FlexTensor) -> Cow<'_, [E]> {
    match t.as_slice() {
        Some(slice) => Cow::Borrowed(slice),
        None => Cow::Owned(t.to_contiguous().as_slice().expect("a contiguous tensor").to_vec()),
    }
}
