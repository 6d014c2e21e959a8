//! The operations on burn-ndarray, in f32.

use std::borrow::Cow;

use burn::tensor::ops::{BoolTensor, FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{Bool, Int, Shape, Tensor, TensorData};
use burn_ndarray::{IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray};

use super::{HostTensors, bytes_of, host_operations, operations};
use crate::CompactBackend;
use crate::halting::{HaltRecord, HaltState, HaltStep};
use crate::kv::{KvStore, Rotary};
use crate::modules::{Linear, SwiGlu};
use crate::ops::{AttentionSpan, CachedKv, CausalConv, DeltaGates, DeltaRule, Norm};
use crate::packed::PackedWeight;

impl<I: IntNdArrayElement, Q: QuantElement> CompactBackend for NdArray<f32, I, Q>
where
    NdArrayTensor: From<SharedArray<I>>,
{
    host_operations!();
}

/// The elements of a storage (whose type has no public name), borrowed where they are contiguous.
macro_rules! row_major {
    ($storage:expr) => {
        match $storage.view().to_slice() {
            Some(slice) => Cow::Borrowed(slice),
            None => Cow::Owned($storage.view().iter().copied().collect()),
        }
    };
}

impl<I: IntNdArrayElement, Q: QuantElement> HostTensors for NdArray<f32, I, Q>
where
    NdArrayTensor: From<SharedArray<I>>,
{
    fn floats(t: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        match t {
            NdArrayTensor::F32(storage) => row_major!(storage),
            other => unexpected(other, "F32"),
        }
    }

    fn into_floats(t: FloatTensor<Self>) -> Vec<f32> {
        match t {
            NdArrayTensor::F32(storage) => into_vec(storage.into_owned()),
            other => unexpected(&other, "F32"),
        }
    }

    fn from_floats(values: Vec<f32>, shape: Shape) -> FloatTensor<Self> {
        NdArrayTensor::from_data(TensorData::new(values, shape))
    }

    fn reshaped(t: FloatTensor<Self>, shape: Shape) -> FloatTensor<Self> {
        match t {
            // The backend's own reshape always copies.
            NdArrayTensor::F32(storage) if storage.is_owned() && storage.view().is_standard_layout() => {
                let array = storage.into_owned().into_shape_with_order(&shape[..]);
                NdArrayTensor::F32(array.expect("shapes of one size").into())
            }
            other => <Self as FloatTensorOps<Self>>::float_reshape(other, shape),
        }
    }

    fn bytes(t: &IntTensor<Self>) -> Cow<'_, [u8]> {
        match t {
            NdArrayTensor::U8(storage) => row_major!(storage),
            words => bytes_of(Self::words(words)),
        }
    }

    fn words(t: &IntTensor<Self>) -> Cow<'_, [u32]> {
        match t {
            NdArrayTensor::U32(storage) => row_major!(storage),
            other => unexpected(other, "U32"),
        }
    }

    fn into_words(t: IntTensor<Self>) -> Vec<u32> {
        match t {
            NdArrayTensor::U32(storage) => into_vec(storage.into_owned()),
            other => unexpected(&other, "U32"),
        }
    }

    fn from_words(values: Vec<u32>, shape: Shape) -> IntTensor<Self> {
        NdArrayTensor::from_data(TensorData::new(values, shape))
    }

    fn integers(t: &IntTensor<Self>) -> Vec<i64> {
        match t {
            NdArrayTensor::I64(storage) => row_major!(storage).into_owned(),
            NdArrayTensor::I32(storage) => row_major!(storage).iter().map(|&x| x.into()).collect(),
            NdArrayTensor::U32(storage) => row_major!(storage).iter().map(|&x| x.into()).collect(),
            other => unexpected(other, "I64, I32 or U32"),
        }
    }

    fn from_integers(values: Vec<i64>, shape: Shape) -> IntTensor<Self> {
        NdArrayTensor::from_data(TensorData::new(values, shape).convert::<I>())
    }

    fn flags(t: &BoolTensor<Self>) -> Cow<'_, [bool]> {
        match t {
            NdArrayTensor::Bool(storage) => row_major!(storage),
            other => unexpected(other, "Bool"),
        }
    }

    fn from_flags(values: Vec<bool>, shape: Shape) -> BoolTensor<Self> {
        NdArrayTensor::from_data(TensorData::new(values, shape))
    }
}

fn into_vec<E: burn::tensor::Element>(array: SharedArray<E>) -> Vec<E> {
    let array = array.into_owned(); // copies only when the buffer is shared
    if !array.is_standard_layout() {
        return array.iter().copied().collect();
    }
    let len = array.len();
    match array.into_raw_vec_and_offset() {
        (values, None | Some(0)) if values.len() == len => values,
        (values, offset) => values[offset.unwrap_or(0)..][..len].to_vec(),
    }
}

/// Every tensor of a model on this backend has one type; another one is a mistake of the caller.
fn unexpected(found: &NdArrayTensor, expected: &str) -> ! {
    panic!("a tensor of {:?} where the operation takes {expected}", burn::tensor::TensorMetadata::dtype(found))
}
