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

/// A matrix and the elements from a row to the next: rows of a wider tensor are taken as they lie.
pub(super) fn rows<R: CubeRuntime>(t: Tensor<Cube<R>, 2>) -> (CubeTensor<R>, usize)
where
    R::Device: DeviceOps,
{
    let [m, n] = t.dims();
    let t = view(t);
    match (m, t.meta.strides()[0], t.meta.strides()[1]) {
        (2.., stride, step) if stride >= n && (step == 1 || n == 1) => (t, stride),
        (1, _, step) if step == 1 || n == 1 => (t, n),
        _ => (into_contiguous(t), n),
    }
}

/// The first `count` of dimension `dim`, as they lie. (burn copies a slice that does not end where a binding may.)
pub(super) fn first<R: CubeRuntime, const D: usize>(
    x: Tensor<Cube<R>, D>,
    dim: usize,
    count: usize,
) -> Tensor<Cube<R>, D>
where
    R::Device: DeviceOps,
{
    let mut t = view(x);
    assert!(count <= t.meta.shape[dim], "the first {count} of {:?}, dimension {dim}", t.meta.shape);
    t.meta.shape[dim] = count;
    float_tensor(t)
}

/// The same numbers in another shape: where they lie so that strides can say it, a view.
pub(super) fn reshape<R: CubeRuntime, const D: usize, const E: usize>(
    x: Tensor<Cube<R>, D>,
    shape: [usize; E],
) -> Tensor<Cube<R>, E>
where
    R::Device: DeviceOps,
{
    let dims = x.dims();
    let mut t = view(x);
    match strides_of(dims, t.meta.strides(), shape) {
        Some(strides) => {
            (t.meta.shape, t.meta.strides) = (Shape::from(shape), strides.into());
            float_tensor(t)
        }
        None => float_tensor::<R, D>(t).reshape(shape),
    }
}

/// The strides of elements in another shape, where there are such.
fn strides_of<const D: usize, const E: usize>(
    dims: [usize; D],
    strides: &[usize],
    shape: [usize; E],
) -> Option<[usize; E]> {
    if dims.contains(&0) || dims.iter().product::<usize>() != shape.iter().product::<usize>() {
        return None;
    }
    // Elements at one distance: how many, and that distance.
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (&dim, &stride) in dims.iter().zip(strides).filter(|(dim, _)| **dim > 1) {
        match runs.last_mut() {
            Some((count, step)) if *step == dim * stride => (*count, *step) = (*count * dim, stride),
            _ => runs.push((dim, stride)),
        }
    }
    let mut out = [1; E];
    let (mut left, mut step) = (1, 1);
    for (dim, stride) in shape.into_iter().zip(&mut out).rev() {
        if dim > 1 && left == 1 {
            (left, step) = runs.pop()?;
        }
        if !left.is_multiple_of(dim) {
            return None;
        }
        *stride = step;
        (left, step) = (left / dim, step * dim);
    }
    Some(out)
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

/// What a kernel takes of [`rows`]: it ends with the last one.
pub(super) fn row_buffer<R: CubeRuntime>(t: &CubeTensor<R>, stride: usize) -> Buffer {
    let shape = t.shape();
    let len = if shape[0] == 0 { 0 } else { (shape[0] - 1) * stride + shape[1] };
    Buffer::new(t.handle.clone(), len, t.dtype)
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

#[cfg(test)]
mod tests {
    use super::strides_of;

    /// Every element is found where it is in the other shape.
    fn check<const D: usize, const E: usize>(dims: [usize; D], strides: [usize; D], shape: [usize; E], is_view: bool) {
        fn places(dims: &[usize], strides: &[usize]) -> Vec<usize> {
            match (dims, strides) {
                ([dim, dims @ ..], [stride, strides @ ..]) => {
                    let inner = places(dims, strides);
                    (0..*dim).flat_map(|i| inner.iter().map(move |place| i * stride + place)).collect()
                }
                _ => vec![0],
            }
        }
        let found = strides_of(dims, &strides, shape);
        assert_eq!(found.is_some(), is_view, "{dims:?} at {strides:?} as {shape:?}: {found:?}");
        if let Some(found) = found {
            assert_eq!(places(&shape, &found), places(&dims, &strides), "{dims:?} at {strides:?} as {shape:?}");
        }
    }

    #[test]
    fn views_have_the_elements_in_their_order() {
        check([2, 3, 4], [12, 4, 1], [6, 4], true);
        check([2, 3, 4], [12, 4, 1], [24], true);
        check([6, 4], [4, 1], [1, 2, 3, 1, 4], true);
        // Queries beside their gates: heads apart, numbers of a head together.
        check([1, 3, 5, 4], [120, 40, 8, 1], [15, 4], true);
        check([1, 3, 5, 4], [120, 40, 8, 1], [3, 20], false);
        check([1, 3, 5, 4], [120, 40, 8, 1], [3, 5, 2, 2], true);
        check([1, 1, 5, 4], [7, 9, 8, 1], [5, 4], true);
        // Part of the slots of a cache, with one head and with several.
        check([1, 7, 1, 4], [80, 4, 80, 1], [7, 4], true);
        check([1, 7, 2, 4], [80, 4, 40, 1], [14, 4], false);
        check([3, 4], [1, 3], [12], false);
        check([3, 4], [1, 3], [3, 2, 2], true);
        check([2, 3], [3, 1], [3, 2], true);
        check([4, 3], [6, 1], [6, 2], false);
        check([1, 1], [5, 5], [1], true);
        check([0, 3], [3, 1], [3, 0], false);
        check([2, 3], [3, 1], [5], false);
        // One number for all.
        check([2, 3], [0, 0], [6], true);
    }
}
