//! Linear layers, embeddings and the SwiGLU block.

use burn::module::Param;
use burn::tensor::backend::DeviceOps;
use burn::tensor::{Bool, Int, Tensor, TensorMetadata};
use burn_cubecl::CubeRuntime;
use emberlm_backends::cube::{self, Buffer, Matrix};

use super::tensor::{Cube, buffer, flags, float_tensor, floats, ints, unset};
use crate::host::FloatType;
use crate::modules::SwiGlu;
use crate::packed::{BlockScales, PackedWeight};
use crate::{split, swiglu};

pub(super) fn packed_linear<R: CubeRuntime>(
    x: Tensor<Cube<R>, 2>,
    w: &PackedWeight<Cube<R>>,
    bias: Option<Tensor<Cube<R>, 1>>,
) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    if let PackedWeight::Split(w) = w {
        return split::linear(x, w, bias, packed_linear);
    }
    let [m, _] = x.dims();
    let (x, w) = (floats(x), weight(w));
    let bias = bias.map(|bias| buffer(&floats(bias)));
    let y = unset(&x, [m, w.n], x.dtype);
    let p = cube::Linear { bias: bias.as_ref(), active: None };
    cube::linear(&x.client, &buffer(&x), m, &w, &buffer(&y), p);
    float_tensor(y)
}

pub(super) fn packed_embed<R: CubeRuntime>(
    ids: Tensor<Cube<R>, 1, Int>,
    w: &PackedWeight<Cube<R>>,
) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    if let PackedWeight::Split(w) = w {
        return split::embed(ids, w);
    }
    let (ids, w) = (ints(ids), weight(w));
    let y = unset(&ids, [ids.shape()[0], w.k], burn::tensor::DType::F32);
    cube::embed(&ids.client, &buffer(&ids), &w, &buffer(&y));
    float_tensor(y)
}

pub(super) fn swiglu_mlp<R: CubeRuntime>(
    x: Tensor<Cube<R>, 2>,
    mlp: &SwiGlu<Cube<R>>,
    active: Option<Tensor<Cube<R>, 1, Bool>>,
) -> Tensor<Cube<R>, 2>
where
    R::Device: DeviceOps,
{
    let SwiGlu { gate_proj, up_proj, down_proj } = mlp;
    if swiglu::needs_layers(mlp) {
        return swiglu::by_layers(x, mlp, active);
    }
    let [m, h] = x.dims();
    let x = floats(x);
    let [gate, up, down] = [gate_proj, up_proj, down_proj].map(|layer| weight(&layer.weight));
    let active = active.map(flags);
    let active = active.as_ref().map(buffer);
    let inner = unset(&x, [m, gate.n], x.dtype);
    cube::gated_linear(&x.client, &buffer(&x), m, &gate, &up, &buffer(&inner), active.as_ref());
    let y = unset(&x, [m, h], x.dtype);
    let p = cube::Linear { bias: None, active: active.as_ref() };
    cube::linear(&x.client, &buffer(&inner), m, &down, &buffer(&y), p);
    float_tensor(y)
}

/// What the kernels take of a weight.
fn weight<R: CubeRuntime>(w: &PackedWeight<Cube<R>>) -> cube::Weight
where
    R::Device: DeviceOps,
{
    let [n, k] = w.shape();
    let data = match w {
        PackedWeight::Float(w) => Matrix::F32(float_buffer(w)),
        PackedWeight::Half(w) if w.float == FloatType::F16 => Matrix::F16(int_buffer(&w.words)),
        PackedWeight::Half(w) => Matrix::Bf16(int_buffer(&w.words)),
        PackedWeight::CodeBook4(w) => Matrix::CodeBook4(cube::CodeBook4 {
            codes: int_buffer(&w.codes),
            code_book: float_buffer(&w.code_book),
            block: w.block,
            scales: match &w.scales {
                BlockScales::Single(scales) => cube::BlockScales::Single(float_buffer(scales)),
                BlockScales::Double(d) => cube::BlockScales::Double {
                    codes: int_buffer(&d.codes),
                    map: float_buffer(&d.map),
                    absmax: float_buffer(&d.absmax),
                    block: d.block,
                    offset: d.offset,
                },
            },
        }),
        PackedWeight::Int8(w) => {
            Matrix::Int8(cube::Int8 { codes: int_buffer(&w.codes), scales: int_buffer(&w.scales) })
        }
        PackedWeight::Rows(w) => Matrix::Rows(cube::Rows {
            wide: w.wide.as_ref().map(int_buffer),
            wide_rows: w.wide_rows,
            narrow: w.narrow.as_ref().map(int_buffer),
            narrow_stride: w.narrow_stride(),
            narrow_bits: w.narrow_bits,
            scales: float_buffer(&w.scales),
            slots: w.slots.as_ref().map(int_buffer),
        }),
        PackedWeight::Split(_) => unreachable!("the operations see to the parts"),
    };
    cube::Weight { n, k, data }
}

fn float_buffer<R: CubeRuntime, const D: usize>(t: &Param<Tensor<Cube<R>, D>>) -> Buffer
where
    R::Device: DeviceOps,
{
    buffer(&floats(t.val()))
}

fn int_buffer<R: CubeRuntime>(t: &Param<Tensor<Cube<R>, 1, Int>>) -> Buffer
where
    R::Device: DeviceOps,
{
    buffer(&ints(t.val()))
}
