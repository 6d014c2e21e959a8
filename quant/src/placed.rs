//! Weights on their way to a device.

use burn::module::{Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{AllocationProperty, DType, Int, Tensor, TensorData};
use bytes::Bytes;

use crate::CompactBackend;
use crate::error::Result;
use crate::format;
use crate::host::{FloatType, HostCodeBook4, HostRows, HostScales, HostStorage, HostWeight, copy_of};
use crate::packed::{
    BlockScales, CodeBook4Weight, DoubleScales, HalfWeight, Int8Weight, PackedWeight, RowsWeight, SplitWeight,
    WeightPart,
};

impl<B: CompactBackend> PackedWeight<B> {
    /// Puts a host weight on a device. A device in host memory shares its buffers ([`shares`](Self::shares)).
    ///
    /// # Panics
    /// May panic, at once or in an operation, when [`format::check`] finds a fault with the weight.
    pub fn from_host(weight: HostWeight, device: &B::Device) -> Self {
        let HostWeight { n, k, storage } = weight;
        match storage {
            HostStorage::Dense(FloatType::F32, data) => Self::Float(float_param(data, [n, k], device)),
            HostStorage::Dense(float, data) => Self::Half(HalfWeight { words: halves(data, device), float, n, k }),
            HostStorage::CodeBook4(w) => Self::CodeBook4(CodeBook4Weight::from_host(w, n, k, device)),
            HostStorage::Int8(w) => {
                let (codes, scales) = (bytes(w.codes, device), halves(w.scales, device));
                Self::Int8(Int8Weight { codes, scales, n, k })
            }
            HostStorage::Rows(w) => Self::Rows(RowsWeight::from_host(w, n, k, device)),
        }
    }

    /// As [`from_host`](Self::from_host), in parts when a buffer would be beyond `limit`.
    ///
    /// # Errors
    /// When not even a few rows fit.
    pub fn from_host_within(
        weight: HostWeight,
        limit: impl Into<format::BufferLimit>,
        device: &B::Device,
    ) -> Result<Self> {
        let limit = limit.into();
        if limit.holds(&weight) {
            return Ok(Self::from_host(weight, device));
        }
        let (n, k) = (weight.n, weight.k);
        let parts =
            format::split_rows(weight, limit)?.into_iter().flat_map(|part| match Self::from_host(part, device) {
                Self::Float(w) => vec![WeightPart::Float(w)],
                Self::Half(w) => vec![WeightPart::Half(w)],
                Self::CodeBook4(w) => vec![WeightPart::CodeBook4(w)],
                Self::Int8(w) => vec![WeightPart::Int8(w)],
                Self::Rows(w) => vec![WeightPart::Rows(w)],
                Self::Split(w) => w.parts,
            });
        Ok(Self::Split(SplitWeight { parts: parts.collect(), n, k }))
    }

    /// Whether a device goes on reading the large buffer of a weight that was put on it; otherwise it has a copy. Codes are shared at any
    /// place, numbers where their type is aligned.
    pub fn shares(weight: &HostWeight) -> bool {
        let (data, element) = match &weight.storage {
            HostStorage::Dense(float, data) => (data, float.size()),
            HostStorage::CodeBook4(w) => (&w.codes, 1),
            HostStorage::Int8(w) => (&w.codes, 1),
            HostStorage::Rows(w) if w.wide.is_empty() => (&w.narrow, 1),
            HostStorage::Rows(w) => (&w.wide, 1),
        };
        B::SHARES_HOST_MEMORY && is_aligned(data, element)
    }
}

impl<B: CompactBackend> CodeBook4Weight<B> {
    fn from_host(w: HostCodeBook4, n: usize, k: usize, device: &B::Device) -> Self {
        let scales = match w.scales {
            HostScales::Single(data) => {
                let blocks = data.len() / 4;
                BlockScales::Single(frozen(float_tensor(data, [blocks], device)))
            }
            HostScales::Double { codes, map, absmax, block, offset } => BlockScales::Double(DoubleScales {
                codes: bytes(codes, device),
                map: floats(map, device),
                absmax: floats(absmax, device),
                block,
                offset,
            }),
        };
        Self {
            codes: bytes(w.codes, device),
            code_book: floats(w.code_book.to_vec(), device),
            scales,
            block: w.block,
            n,
            k,
        }
    }
}

impl<B: CompactBackend> RowsWeight<B> {
    fn from_host(w: HostRows, n: usize, k: usize, device: &B::Device) -> Self {
        let narrow_rows = n - w.wide_rows;
        let narrow_bits = w.narrow_bits as usize;
        Self {
            wide: (w.wide_rows > 0).then(|| bytes(w.wide, device)),
            narrow: (narrow_rows > 0).then(|| bytes(w.narrow, device)),
            scales: floats(w.scales, device),
            slots: w.slots.map(|s| frozen_int(Tensor::from_data(TensorData::new(s, [n]), (device, DType::U32)))),
            wide_rows: w.wide_rows,
            narrow_bits,
            n,
            k,
        }
    }
}

/// Bytes as words.
fn bytes<B: CompactBackend>(data: Bytes, device: &B::Device) -> Param<Tensor<B, 1, Int>> {
    words(data, 1, device)
}

/// Numbers of 16 bits as words.
fn halves<B: CompactBackend>(data: Bytes, device: &B::Device) -> Param<Tensor<B, 1, Int>> {
    words(data, 2, device)
}

/// U32 words, shared with the source when it is aligned and whole. What is not, and whose elements are: shared as U8 where the device is in
/// host memory, else copied and padded with zeros. In files of bitsandbytes most codes are at odd places, behind texts of any length.
fn words<B: CompactBackend>(data: Bytes, element: usize, device: &B::Device) -> Param<Tensor<B, 1, Int>> {
    let len = data.len();
    let count = len.div_ceil(4);
    let in_place = B::SHARES_HOST_MEMORY && is_aligned(&data, element);
    let data = match whole(data, count * 4) {
        Ok(words) => TensorData::from_bytes(words, [count], DType::U32),
        Err(data) if in_place => {
            TensorData::from_bytes(burn::tensor::Bytes::from_shared(data, AllocationProperty::Other), [len], DType::U8)
        }
        Err(data) => TensorData::from_bytes(padded(&data, count * 4), [count], DType::U32),
    };
    let dtype = data.dtype;
    frozen_int(Tensor::from_data(data, (device, dtype)))
}

fn is_aligned(data: &[u8], element: usize) -> bool {
    (data.as_ptr() as usize).is_multiple_of(element)
}

/// The buffer itself, when it has `len` bytes and is aligned to 4.
fn whole(data: Bytes, len: usize) -> std::result::Result<burn::tensor::Bytes, Bytes> {
    match data.len() == len && is_aligned(&data, 4) {
        true => Ok(burn::tensor::Bytes::from_shared(data, AllocationProperty::Other)),
        false => Err(data),
    }
}

/// Bytes from which on a copy is worth large pages and several threads.
const LARGE: usize = 1 << 20;

/// A copy of `len` bytes, zeros at the end, that is aligned to 4.
fn padded(data: &[u8], len: usize) -> burn::tensor::Bytes {
    if len >= LARGE {
        return burn::tensor::Bytes::from_shared(Bytes::from_owner(copy_of(data, len)), AllocationProperty::Other);
    }
    let mut copy = vec![0u32; len / 4];
    bytemuck::cast_slice_mut::<u32, u8>(&mut copy)[..data.len()].copy_from_slice(data);
    burn::tensor::Bytes::from_elems(copy)
}

fn float_tensor<B: Backend, const D: usize>(data: Bytes, shape: [usize; D], device: &B::Device) -> Tensor<B, D> {
    let len = data.len();
    let data = whole(data, len).unwrap_or_else(|data| padded(&data, len));
    Tensor::from_data(TensorData::from_bytes(data, shape, DType::F32), (device, DType::F32))
}

fn float_param<B: Backend, const D: usize>(data: Bytes, shape: [usize; D], device: &B::Device) -> Param<Tensor<B, D>> {
    Param::from_tensor(float_tensor(data, shape, device))
}

/// Side data of a quantised weight: a parameter that no optimiser moves.
fn floats<B: Backend>(values: Vec<f32>, device: &B::Device) -> Param<Tensor<B, 1>> {
    let len = values.len();
    frozen(Tensor::from_data(TensorData::new(values, [len]), (device, DType::F32)))
}

fn frozen<B: Backend>(tensor: Tensor<B, 1>) -> Param<Tensor<B, 1>> {
    Param::initialized(ParamId::new(), tensor.set_require_grad(false))
}

fn frozen_int<B: Backend>(tensor: Tensor<B, 1, Int>) -> Param<Tensor<B, 1, Int>> {
    Param::initialized(ParamId::new(), tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small and large ones, of any length.
    #[test]
    fn bytes_at_odd_places_are_copied_whole() {
        for len in [0, 1, 4, 4095, LARGE - 1, LARGE, LARGE + 3, 3 * LARGE + 2] {
            let file: Bytes = (0..len + 8).map(|i| (i * 31 % 251) as u8).collect::<Vec<u8>>().into();
            for start in 0..5 {
                let (data, length) = (file.slice(start..start + len), len.div_ceil(4) * 4);
                let got = whole(data.clone(), length).unwrap_or_else(|data| padded(&data, length));
                assert_eq!((got.len(), &got[..len]), (length, &data[..]), "{len} bytes from {start}");
                assert!(got[len..].iter().all(|&byte| byte == 0), "{len} bytes from {start}");
                assert!(is_aligned(&got, 4));
            }
        }
    }
}
