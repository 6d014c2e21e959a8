//! The operations on CPU backends: tensors are unwrapped to slices and handed to [`emberlm_backends::cpu`].

mod decoded;
#[cfg(feature = "flex")]
mod flex;
mod held;
mod kv;
#[cfg(feature = "ndarray")]
mod ndarray;
mod operations;
mod spans;

use std::borrow::Cow;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{Bool, Int, Shape, Tensor, TensorPrimitive};

use crate::CompactBackend;

/// A backend whose tensors live in host memory as f32 and integers.
trait HostTensors: CompactBackend {
    /// Row-major numbers; a copy when the tensor is a strided view.
    fn floats(t: &FloatTensor<Self>) -> Cow<'_, [f32]>;
    /// The numbers as a vector: the tensor's own buffer when nothing else holds it.
    fn into_floats(t: FloatTensor<Self>) -> Vec<f32>;
    fn from_floats(values: Vec<f32>, shape: Shape) -> FloatTensor<Self>;
    /// The same numbers in another shape, without a copy where they are row-major.
    fn reshaped(t: FloatTensor<Self>, shape: Shape) -> FloatTensor<Self>;
    /// The bytes of a packed tensor, of U32 words or of U8. Packed tensors are always contiguous.
    fn bytes(t: &IntTensor<Self>) -> Cow<'_, [u8]>;
    /// U32 words, contiguous too.
    fn words(t: &IntTensor<Self>) -> Cow<'_, [u32]>;
    fn into_words(t: IntTensor<Self>) -> Vec<u32>;
    fn from_words(values: Vec<u32>, shape: Shape) -> IntTensor<Self>;
    /// Integers of any width.
    fn integers(t: &IntTensor<Self>) -> Vec<i64>;
    /// Integers in the backend's default width.
    fn from_integers(values: Vec<i64>, shape: Shape) -> IntTensor<Self>;
    fn flags(t: &BoolTensor<Self>) -> Cow<'_, [bool]>;
    fn from_flags(values: Vec<bool>, shape: Shape) -> BoolTensor<Self>;
}

fn bytes_of(words: Cow<'_, [u32]>) -> Cow<'_, [u8]> {
    match words {
        Cow::Borrowed(words) => Cow::Borrowed(bytemuck::cast_slice(words)),
        Cow::Owned(words) => Cow::Owned(bytemuck::cast_slice(&words).to_vec()),
    }
}

fn float_primitive<B: Backend, const D: usize>(t: Tensor<B, D>) -> FloatTensor<B> {
    t.into_primitive().tensor()
}

fn float_tensor<B: HostTensors, const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(B::from_floats(values, Shape::from(shape))))
}

fn int_tensor<B: HostTensors, const D: usize>(values: Vec<i64>, shape: [usize; D]) -> Tensor<B, D, Int> {
    Tensor::from_primitive(B::from_integers(values, Shape::from(shape)))
}

fn bool_tensor<B: HostTensors, const D: usize>(values: Vec<bool>, shape: [usize; D]) -> Tensor<B, D, Bool> {
    Tensor::from_primitive(B::from_flags(values, Shape::from(shape)))
}

/// Overrides the operations of [`CompactBackend`](crate::CompactBackend) with those of [`operations`].
macro_rules! host_operations {
    () => {
        const SHARES_HOST_MEMORY: bool = true;
        const READS_KV_PARTS: bool = true;

        fn memory(_device: &Self::Device) -> Option<usize> {
            emberlm_backends::cpu::memory()
        }

        fn first_unknown_id<const D: usize>(ids: &Tensor<Self, D, Int>, rows: usize) -> Option<i64> {
            operations::first_unknown_id(ids, rows)
        }

        fn host_floats<const D: usize>(x: &Tensor<Self, D>) -> Option<Vec<f32>> {
            Some(operations::host_floats(x))
        }

        fn computes_with(_device: &Self::Device, activations: crate::Activations) -> bool {
            activations != crate::Activations::F16
        }

        fn between_operations(_activations: crate::Activations) -> crate::host::FloatType {
            crate::host::FloatType::F32
        }

        fn run_pass<T: Send>(activations: crate::Activations, f: impl FnOnce() -> T + Send) -> crate::Result<T> {
            Ok(operations::run_pass(activations, f))
        }

        fn reshape<const D: usize, const E: usize>(x: Tensor<Self, D>, shape: [usize; E]) -> Tensor<Self, E> {
            operations::reshape(x, shape)
        }

        fn packed_head(x: Tensor<Self, 2>, w: &PackedWeight<Self>, bias: Option<Tensor<Self, 1>>) -> Tensor<Self, 2> {
            operations::packed_head(x, w, bias)
        }

        crate::kernels::kernel_operations!(operations);
    };
}
use host_operations;
