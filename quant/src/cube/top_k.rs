//! The largest numbers of a row.

use burn::tensor::backend::DeviceOps;
use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::CubeRuntime;
use emberlm_backends::cube::{self, MAX_TOP_K, TopK};

use super::tensor::{Cube, buffer, float_tensor, floats, int_tensor, unset};
use crate::reference;

pub(super) fn top_k<R: CubeRuntime>(x: Tensor<Cube<R>, 2>, k: usize) -> (Tensor<Cube<R>, 2>, Tensor<Cube<R>, 2, Int>)
where
    R::Device: DeviceOps,
{
    if k > MAX_TOP_K {
        return reference::top_k(x, k);
    }
    let [m, n] = x.dims();
    let x = floats(x);
    let (values, columns) = (unset(&x, [m, k], DType::F32), unset(&x, [m, k], DType::I32));
    cube::top_k(&x.client, &buffer(&x), &buffer(&values), &buffer(&columns), TopK { m, n, k });
    (float_tensor(values), int_tensor(columns))
}
