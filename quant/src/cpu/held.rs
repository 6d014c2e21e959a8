//! Packed weights as the borrowed matrices of the kernels.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use emberlm_backends::cpu;
use emberlm_backends::types::{BlockScales, CodeBook4, Int8, IntegerRows, Matrix};

use super::{HostTensors, float_primitive};
use crate::modules::Linear;
use crate::packed::PackedWeight;
use crate::stored::{StoredWeight, stored};

/// The tensors of a weight, kept alive while a kernel reads them.
pub(super) struct HeldWeight<B: Backend>(StoredWeight<FloatTensor<B>, IntTensor<B>>);

impl<B: HostTensors> HeldWeight<B> {
    pub(super) fn new(w: &PackedWeight<B>) -> Self {
        Self(stored(w, |floats| floats, |words| words))
    }

    /// Calls `f` with the borrowed matrix.
    pub(super) fn with<T>(&self, f: impl FnOnce(cpu::Weight<'_>) -> T) -> T {
        let StoredWeight { n, k, ref data } = self.0;
        let weight = |data| cpu::Weight { n, k, data };
        match data {
            Matrix::F32(t) => f(weight(cpu::Matrix::F32(&B::floats(t)))),
            Matrix::F16(t) => f(weight(cpu::Matrix::F16(bytemuck::cast_slice(&B::bytes(t)[..2 * n * k])))),
            Matrix::Bf16(t) => f(weight(cpu::Matrix::Bf16(bytemuck::cast_slice(&B::bytes(t)[..2 * n * k])))),
            Matrix::CodeBook4(CodeBook4 { codes, code_book, block, scales }) => {
                let codes = B::bytes(codes);
                let code_book = B::floats(code_book);
                let code_book: &[f32; 16] = code_book.as_ref().try_into().expect("a code book of 16");
                let matrix = |scales| {
                    let codes = codes.as_ref();
                    cpu::Matrix::CodeBook4(cpu::CodeBook4 { codes, code_book, block: *block, scales })
                };
                match scales {
                    BlockScales::Single(absmax) => f(weight(matrix(cpu::BlockScales::Single(&B::floats(absmax))))),
                    BlockScales::Double { codes, map, absmax, block, offset } => {
                        f(weight(matrix(cpu::BlockScales::Double {
                            codes: &B::bytes(codes),
                            map: &B::floats(map),
                            absmax: &B::floats(absmax),
                            block: *block,
                            offset: *offset,
                        })))
                    }
                }
            }
            Matrix::Int8(Int8 { codes, scales }) => f(weight(cpu::Matrix::Int8(cpu::Int8 {
                codes: &B::bytes(codes)[..n * k],
                scales: bytemuck::cast_slice(&B::bytes(scales)[..2 * n * k.div_ceil(cpu::INT8_BLOCK)]),
            }))),
            Matrix::IntegerRows(IntegerRows { wide, wide_rows, narrow, narrow_stride, narrow_bits, scales, slots }) => {
                let wide = wide.as_ref().map(B::bytes);
                let narrow = narrow.as_ref().map(B::bytes);
                let slots = slots.as_ref().map(B::words);
                let narrow_rows = n - wide_rows;
                f(weight(cpu::Matrix::IntegerRows(cpu::IntegerRows {
                    wide: wide.as_ref().map_or(&[], |w| &w[..wide_rows * k]),
                    wide_rows: *wide_rows,
                    narrow: narrow.as_ref().map_or(&[], |w| &w[..narrow_rows * narrow_stride]),
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
        self.weight.0.n
    }

    /// Calls `f` with the borrowed layer.
    pub(super) fn with<T>(&self, f: impl FnOnce(cpu::Layer<'_>) -> T) -> T {
        let bias = self.bias.as_ref().map(B::floats);
        self.weight.with(|weight| f(cpu::Layer { weight, bias: bias.as_deref() }))
    }
}

#[cfg(all(test, feature = "ndarray"))]
mod tests {
    use burn_ndarray::NdArray;
    use bytes::Bytes;

    use super::*;
    use crate::format;
    use crate::host::{FloatType, HostStorage, HostWeight};

    /// A checkpoint that is mapped is not in memory a second time, wherever in a file its codes are.
    #[test]
    fn kernels_read_the_bytes_of_the_file() {
        let dense = HostStorage::Dense(FloatType::F32, (0..64 * 64).flat_map(|i| (i as f32).to_le_bytes()).collect());
        let dense = HostWeight { n: 64, k: 64, storage: dense };
        for place in 0..8 {
            let mut weight = format::quantize_nf4(&dense, true).expect("finite");
            let HostStorage::CodeBook4(w) = &mut weight.storage else { panic!("no code book") };
            let mut room = vec![0u8; w.codes.len() + 128];
            let start = room.as_ptr().align_offset(64) + place;
            room[start..start + w.codes.len()].copy_from_slice(&w.codes);
            w.codes = Bytes::from(room).slice(start..start + w.codes.len());
            let address = w.codes.as_ptr();
            let packed = PackedWeight::<NdArray>::from_host(weight, &Default::default());
            HeldWeight::new(&packed).with(|weight| {
                let Matrix::CodeBook4(w) = weight.data else { panic!("no code book") };
                assert_eq!(w.codes.as_ptr(), address, "at {place}");
            });
        }
    }
}
