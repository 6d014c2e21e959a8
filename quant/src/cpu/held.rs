//! Packed weights as the borrowed matrices of the kernels.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use emberlm_backends::cpu;

use super::{HostTensors, float_primitive};
use crate::host::FloatType;
use crate::modules::Linear;
use crate::packed::{BlockScales, PackedWeight};

/// The tensors of a weight, kept alive while a kernel reads them.
pub(super) struct HeldWeight<B: Backend> {
    n: usize,
    k: usize,
    tensors: Tensors<B>,
}

enum Tensors<B: Backend> {
    Float(FloatTensor<B>),
    Half(FloatType, IntTensor<B>),
    CodeBook4 {
        codes: IntTensor<B>,
        code_book: FloatTensor<B>,
        block: usize,
        scales: Scales<B>,
    },
    Int8 {
        codes: IntTensor<B>,
        scales: IntTensor<B>,
    },
    Rows {
        wide: Option<IntTensor<B>>,
        narrow: Option<IntTensor<B>>,
        scales: FloatTensor<B>,
        slots: Option<IntTensor<B>>,
        wide_rows: usize,
        narrow_bits: u32,
        narrow_stride: usize,
    },
}

enum Scales<B: Backend> {
    Single(FloatTensor<B>),
    Double { codes: IntTensor<B>, map: FloatTensor<B>, absmax: FloatTensor<B>, block: usize, offset: f32 },
}

impl<B: HostTensors> HeldWeight<B> {
    pub(super) fn new(w: &PackedWeight<B>) -> Self {
        let [n, k] = w.shape();
        let tensors = match w {
            PackedWeight::Float(w) => Tensors::Float(float_primitive(w.val())),
            PackedWeight::Half(w) => Tensors::Half(w.float, w.words.val().into_primitive()),
            PackedWeight::CodeBook4(w) => Tensors::CodeBook4 {
                codes: w.codes.val().into_primitive(),
                code_book: float_primitive(w.code_book.val()),
                block: w.block,
                scales: match &w.scales {
                    BlockScales::Single(absmax) => Scales::Single(float_primitive(absmax.val())),
                    BlockScales::Double(d) => Scales::Double {
                        codes: d.codes.val().into_primitive(),
                        map: float_primitive(d.map.val()),
                        absmax: float_primitive(d.absmax.val()),
                        block: d.block,
                        offset: d.offset,
                    },
                },
            },
            PackedWeight::Int8(w) => {
                Tensors::Int8 { codes: w.codes.val().into_primitive(), scales: w.scales.val().into_primitive() }
            }
            PackedWeight::Rows(w) => Tensors::Rows {
                wide: w.wide.as_ref().map(|t| t.val().into_primitive()),
                narrow: w.narrow.as_ref().map(|t| t.val().into_primitive()),
                scales: float_primitive(w.scales.val()),
                slots: w.slots.as_ref().map(|t| t.val().into_primitive()),
                wide_rows: w.wide_rows,
                narrow_bits: w.narrow_bits as u32,
                narrow_stride: w.narrow_stride(),
            },
            PackedWeight::Split(_) => unreachable!("the operations see to the parts"),
        };
        Self { n, k, tensors }
    }

    /// Calls `f` with the borrowed matrix.
    pub(super) fn with<T>(&self, f: impl FnOnce(cpu::Weight<'_>) -> T) -> T {
        let Self { n, k, ref tensors } = *self;
        let weight = |data| cpu::Weight { n, k, data };
        match tensors {
            Tensors::Float(t) => f(weight(cpu::Matrix::F32(&B::floats(t)))),
            Tensors::Half(float, t) => {
                let words = B::words(t);
                let halves = &bytemuck::cast_slice::<u32, u16>(&words)[..n * k];
                f(weight(match float {
                    FloatType::F16 => cpu::Matrix::F16(halves),
                    _ => cpu::Matrix::Bf16(halves),
                }))
            }
            Tensors::CodeBook4 { codes, code_book, block, scales } => {
                let codes = B::words(codes);
                let code_book = B::floats(code_book);
                let code_book: &[f32; 16] = code_book.as_ref().try_into().expect("a code book of 16");
                let matrix = |scales| {
                    cpu::Matrix::CodeBook4(cpu::CodeBook4 {
                        codes: bytemuck::cast_slice(&codes),
                        code_book,
                        block: *block,
                        scales,
                    })
                };
                match scales {
                    Scales::Single(absmax) => f(weight(matrix(cpu::BlockScales::Single(&B::floats(absmax))))),
                    Scales::Double { codes, map, absmax, block, offset } => {
                        f(weight(matrix(cpu::BlockScales::Double {
                            codes: bytemuck::cast_slice(&B::words(codes)),
                            map: &B::floats(map),
                            absmax: &B::floats(absmax),
                            block: *block,
                            offset: *offset,
                        })))
                    }
                }
            }
            Tensors::Int8 { codes, scales } => f(weight(cpu::Matrix::Int8(cpu::Int8 {
                codes: &bytemuck::cast_slice(&B::words(codes))[..n * k],
                scales: &bytemuck::cast_slice(&B::words(scales))[..n * k.div_ceil(cpu::INT8_BLOCK)],
            }))),
            Tensors::Rows { wide, narrow, scales, slots, wide_rows, narrow_bits, narrow_stride } => {
                let wide = wide.as_ref().map(B::words);
                let narrow = narrow.as_ref().map(B::words);
                let slots = slots.as_ref().map(B::words);
                let narrow_rows = n - wide_rows;
                f(weight(cpu::Matrix::Rows(cpu::Rows {
                    wide: wide.as_ref().map_or(&[], |w| &bytemuck::cast_slice(w)[..wide_rows * k]),
                    wide_rows: *wide_rows,
                    narrow: narrow.as_ref().map_or(&[], |w| &bytemuck::cast_slice(w)[..narrow_rows * narrow_stride]),
                    narrow_stride: *narrow_stride,
                    narrow_bits: *narrow_bits,
                    scales: &B::floats(scales),
                    slots: slots.as_deref(),
                })))
            }
        }
    }
}

/// A linear layer kept alive while a kernel reads it.
pub(super) struct HeldLinear<B: Backend> {
    weight: HeldWeight<B>,
    bias: Option<FloatTensor<B>>,
}

impl<B: HostTensors> HeldLinear<B> {
    pub(super) fn new(layer: &Linear<B>) -> Self {
        let bias = layer.bias.as_ref().map(|b| float_primitive(b.val()));
        Self { weight: HeldWeight::new(&layer.weight), bias }
    }

    pub(super) fn outputs(&self) -> usize {
        self.weight.n
    }

    /// Calls `f` with the borrowed layer.
    pub(super) fn with<T>(&self, f: impl FnOnce(cpu::Layer<'_>) -> T) -> T {
        let bias = self.bias.as_ref().map(B::floats);
        self.weight.with(|weight| f(cpu::Layer { weight, bias: bias.as_deref() }))
    }
}
