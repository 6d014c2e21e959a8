//! Weights on their way back from a device, as they were before they were packed.

use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData, Transaction};
use bytes::Bytes;

use crate::error::{Error, Result};
use crate::format::INT8_BLOCK;
use crate::host::{FloatType, HostCodeBook4, HostInt8, HostRows, HostScales, HostStorage, HostWeight};
use crate::packed::{BlockScales, CodeBook4Weight, PackedWeight, RowsWeight};
use crate::read::read;

impl<B: Backend> PackedWeight<B> {
    /// The weight on the host, bit for bit what [`from_host`](Self::from_host) was given; of a code book, `stored` is said to be the type
    /// that it was made of, which a device does not know.
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails; [`Error::InParts`] for a weight in parts, of which a device with smaller buffers holds it.
    pub fn to_host(&self, stored: FloatType) -> Result<HostWeight> {
        let [n, k] = self.shape();
        let storage = match self {
            Self::Float(w) => {
                HostStorage::Dense(FloatType::F32, floats(w)?.into_iter().flat_map(f32::to_le_bytes).collect())
            }
            Self::Half(w) => HostStorage::Dense(w.float, bytes(&w.words, n * k * w.float.size())?),
            Self::CodeBook4(w) => HostStorage::CodeBook4(code_book(w, stored)?),
            Self::Int8(w) => HostStorage::Int8(HostInt8 {
                codes: bytes(&w.codes, n * k)?,
                scales: bytes(&w.scales, 2 * n * k.div_ceil(INT8_BLOCK))?,
            }),
            Self::Rows(w) => HostStorage::Rows(rows(w)?),
            Self::Split(_) => return Err(Error::InParts { n, k }),
        };
        Ok(HostWeight { n, k, storage })
    }
}

fn code_book<B: Backend>(w: &CodeBook4Weight<B>, stored: FloatType) -> Result<HostCodeBook4> {
    let elements = w.n * w.k;
    let blocks = elements.div_ceil(w.block);
    let code_book = floats(&w.code_book)?;
    let found = code_book.len();
    let code_book = <[f32; 16]>::try_from(code_book).map_err(|_| length("code book", w.n, w.k, found, 16))?;
    let scales = match &w.scales {
        BlockScales::Single(scales) => {
            HostScales::Single(floats(scales)?.into_iter().flat_map(f32::to_le_bytes).collect())
        }
        BlockScales::Double(scales) => HostScales::Double {
            codes: bytes(&scales.codes, blocks)?,
            map: floats(&scales.map)?,
            absmax: floats(&scales.absmax)?,
            block: scales.block,
            offset: scales.offset,
        },
    };
    Ok(HostCodeBook4 { codes: bytes(&w.codes, elements.div_ceil(2))?, code_book, block: w.block, scales, stored })
}

fn rows<B: Backend>(w: &RowsWeight<B>) -> Result<HostRows> {
    let part = |words: &Option<Param<Tensor<B, 1, Int>>>, length| {
        words.as_ref().map_or(Ok(Bytes::new()), |w| bytes(w, length))
    };
    let slots =
        w.slots.as_ref().map(|slots| numbers::<u32>(one(Transaction::default().register(slots.val()))?)).transpose()?;
    Ok(HostRows {
        wide: part(&w.wide, w.wide_rows * w.k)?,
        wide_rows: w.wide_rows,
        narrow: part(&w.narrow, (w.n - w.wide_rows) * w.narrow_stride())?,
        narrow_bits: w.narrow_bits as u32,
        scales: floats(&w.scales)?,
        slots,
    })
}

/// The first `length` bytes of words, or of U8; what follows is padding.
fn bytes<B: Backend>(words: &Param<Tensor<B, 1, Int>>, length: usize) -> Result<Bytes> {
    let data = one(Transaction::default().register(words.val()))?;
    let mut bytes = match data.dtype {
        DType::U8 => numbers::<u8>(data)?,
        _ => numbers::<u32>(data)?.into_iter().flat_map(u32::to_le_bytes).collect(),
    };
    bytes.truncate(length);
    Ok(bytes.into())
}

fn floats<B: Backend, const D: usize>(tensor: &Param<Tensor<B, D>>) -> Result<Vec<f32>> {
    numbers::<f32>(one(Transaction::default().register(tensor.val()))?)
}

fn one<B: Backend>(transaction: Transaction<B>) -> Result<TensorData> {
    read(transaction)?.pop().ok_or_else(no_numbers)
}

fn numbers<E: burn::tensor::Element>(data: TensorData) -> Result<Vec<E>> {
    data.convert::<E>().into_vec().map_err(|_| no_numbers())
}

fn no_numbers() -> Error {
    Error::Device("it gave no numbers".into())
}

fn length(part: &'static str, n: usize, k: usize, found: usize, expected: usize) -> Error {
    Error::Length { part, n, k, found, expected }
}
