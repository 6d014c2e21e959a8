//! Packed weights as the kernels' description of a matrix.

use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};
use emberlm_backends::types::{self, BlockScales, CodeBook4, Int8, IntegerRows, Matrix};

use crate::host::FloatType;
use crate::packed::{self, PackedWeight};

/// A matrix whose numbers are in two kinds of tensors or buffers, of floats `F` and of words `I`.
pub(crate) type StoredWeight<F, I> = types::Weight<F, I, I, Option<I>, I, F>;

/// The description of a weight that is not split, each tensor given to `floats` or `ints`.
///
/// # Panics
/// When the weight is split: the operations see to the parts.
pub(crate) fn stored<B: Backend, F, I>(
    w: &PackedWeight<B>,
    floats: impl Fn(FloatTensor<B>) -> F,
    ints: impl Fn(IntTensor<B>) -> I,
) -> StoredWeight<F, I> {
    let [n, k] = w.shape();
    let floats_of = |t: &Param<Tensor<B, 1>>| floats(t.val().into_primitive().tensor());
    let words_of = |t: &Param<Tensor<B, 1, Int>>| ints(t.val().into_primitive());
    let data = match w {
        PackedWeight::Float(w) => Matrix::F32(floats(w.val().into_primitive().tensor())),
        PackedWeight::Half(w) if w.float == FloatType::F16 => Matrix::F16(words_of(&w.words)),
        PackedWeight::Half(w) => Matrix::Bf16(words_of(&w.words)),
        PackedWeight::CodeBook4(w) => Matrix::CodeBook4(CodeBook4 {
            codes: words_of(&w.codes),
            code_book: floats_of(&w.code_book),
            block: w.block,
            scales: match &w.scales {
                packed::BlockScales::Single(scales) => BlockScales::Single(floats_of(scales)),
                packed::BlockScales::Double(d) => BlockScales::Double {
                    codes: words_of(&d.codes),
                    map: floats_of(&d.map),
                    absmax: floats_of(&d.absmax),
                    block: d.block,
                    offset: d.offset,
                },
            },
        }),
        PackedWeight::Int8(w) => Matrix::Int8(Int8 { codes: words_of(&w.codes), scales: words_of(&w.scales) }),
        PackedWeight::Rows(w) => Matrix::IntegerRows(IntegerRows {
            wide: w.wide.as_ref().map(words_of),
            wide_rows: w.wide_rows,
            narrow: w.narrow.as_ref().map(words_of),
            narrow_stride: w.narrow_stride(),
            narrow_bits: w.narrow_bits as u32,
            scales: floats_of(&w.scales),
            slots: w.slots.as_ref().map(words_of),
        }),
        PackedWeight::Split(_) => unreachable!("the operations see to the parts"),
    };
    types::Weight { n, k, data }
}
