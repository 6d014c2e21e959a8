//! Between burn's tensors and the buffers of the kernels.

use burn::tensor::backend::DeviceOps;
use burn::tensor::{Bool, DType, Int, Shape, Tensor, TensorMetadata, TensorPrimitive};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime};
use emberlm_backends::cube::Buffer;

/// The backend of these tensors.
pub(super) type Cube<R> = CubeBackend<R, f32, i32, u32>;

/// The tensor as it lies in memory, strides and all.
pub(super) fn view<R: CubeRuntime, const D: usize>(t: Tensor<Cube<R>, D>) -> CubeTensor<R>
where
    R::Device: DeviceOps,
{
    t.into_primitive().tensor()
}

/// The numbers of a tensor, row-major.
pub(super) fn floats<R: CubeRuntime, const D: usize>(t: Tensor<Cube<R>, D>) -> CubeTensor<R>
where
    R::Device: DeviceOps,
{
    into_contiguous(view(t))
}

/// The integers of a tensor, row-major.
pub(super) fn ints<R: CubeRuntime, const D: usize>(t: Tensor<Cube<R>, D, Int>) -> CubeTensor<R>
where
    R::Device: DeviceOps,
{
    into_contiguous(t.into_primitive())
}

/// The flags of a tensor, row-major, as U32.
pub(super) fn flags<R: CubeRuntime, const D: usize>(t: Tensor<Cube<R>, D, Bool>) -> CubeTensor<R>
where
    R::Device: DeviceOps,
{
    let mut t = t.into_primitive();
    t.dtype = DType::U32;
    into_contiguous(t)
}

/// A row-major tensor that nothing else holds, so that a kernel may write into it: the given one or a copy.
pub(super) fn own<R: CubeRuntime>(t: CubeTensor<R>) -> CubeTensor<R> {
    if t.can_mut() { t } else { t.copy() }
}

/// A tensor on the same device whose numbers are not set yet.
pub(super) fn unset<R: CubeRuntime>(like: &CubeTensor<R>, shape: impl Into<Shape>, dtype: DType) -> CubeTensor<R> {
    let shape = shape.into();
    let bytes = shape.num_elements() * dtype.size();
    let handle = like.client.empty(bytes.max(4));
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

/// What a kernel takes of a row-major tensor.
pub(super) fn buffer<R: CubeRuntime>(t: &CubeTensor<R>) -> Buffer {
    Buffer::new(t.handle.clone(), t.shape().num_elements(), t.dtype)
}

pub(super) fn float_tensor<R: CubeRuntime, const D: usize>(t: CubeTensor<R>) -> Tensor<Cube<R>, D>
where
    R::Device: DeviceOps,
{
    Tensor::from_primitive(TensorPrimitive::Float(t))
}

pub(super) fn int_tensor<R: CubeRuntime, const D: usize>(t: CubeTensor<R>) -> Tensor<Cube<R>, D, Int>
where
    R::Device: DeviceOps,
{
    Tensor::from_primitive(t)
}

pub(super) fn bool_tensor<R: CubeRuntime, const D: usize>(
    mut t: CubeTensor<R>,
    dtype: DType,
) -> Tensor<Cube<R>, D, Bool>
where
    R::Device: DeviceOps,
{
    t.dtype = dtype;
    Tensor::from_primitive(t)
}
