//! Random weights, made directly in the storage asked for: no dense copy exists at any time.
//!
//! Numbers have the spread of an initialised model, so that activations stay in range; they mean nothing.

use std::collections::HashMap;

use bytes::Bytes;
use emberlm_model::checkpoint::StorageKind;
use emberlm_model::{Architecture, QuantizeOnLoad, Result, SourceEntry, TensorRole, WeightSource};
use emberlm_quant::format::{self, INT8_BLOCK};
use emberlm_quant::host::{
    FloatType, HostCodeBook4, HostInt8, HostRows, HostScales, HostStorage, HostWeight, WeightBuffer, on_threads,
};
use rayon::prelude::*;

/// Standard deviation of a weight.
const SPREAD: f32 = 0.02;

/// Elements per block of 4-bit storages, and scales per nested scale.
const BLOCK: usize = 64;
const NESTED: usize = 256;

/// A generator of the weights of one architecture.
#[derive(Clone, Debug)]
pub struct RandomWeights {
    seed: u64,
    roles: HashMap<String, TensorRole>,
    linears: StorageKind,
    query_key_value: StorageKind,
    table: StorageKind,
}

impl RandomWeights {
    /// Linears as `quantize` says, or BF16; embedding and head as `quantize_head` says, or BF16.
    pub fn new(
        architecture: &Architecture,
        quantize: Option<QuantizeOnLoad>,
        quantize_head: Option<QuantizeOnLoad>,
        seed: u64,
    ) -> Self {
        let linears = stored(quantize);
        let roles = architecture.tensors().into_iter().map(|tensor| (tensor.name, tensor.role)).collect();
        Self { seed, roles, linears, query_key_value: linears, table: stored(quantize_head) }
    }

    /// The storages of Nano compact: F16 query, key and value projections, an int8 embedding, the other linears in rows of 4 and
    /// of 8 bits mixed so that the published size of the 3B model comes out.
    pub fn nano(architecture: &Architecture, seed: u64) -> Self {
        let plain = Self::new(architecture, None, Some(QuantizeOnLoad::Int8Rows), seed);
        Self { linears: StorageKind::MixedRows { bits: 4 }, query_key_value: StorageKind::F16, ..plain }
    }

    fn storage(&self, name: &str) -> StorageKind {
        match self.roles.get(name) {
            Some(TensorRole::Embedding | TensorRole::Head) => self.table,
            Some(TensorRole::SmallProjection) => StorageKind::F16,
            _ if ["q_proj", "k_proj", "v_proj"].iter().any(|part| name.contains(part)) => self.query_key_value,
            _ => self.linears,
        }
    }

    /// A generator for one tensor.
    fn stream(&self, name: &str) -> Stream {
        Stream(
            name.bytes()
                .fold(self.seed ^ 0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3)),
        )
    }
}

fn stored(quantize: Option<QuantizeOnLoad>) -> StorageKind {
    quantize.map_or(StorageKind::Bf16, QuantizeOnLoad::storage)
}

/// Rows of 8 bits among `n` mixed ones: the share that gives the published 2.34 GiB of the 3B model.
fn wide_rows(n: usize) -> usize {
    n * 41 / 100
}

impl WeightSource for RandomWeights {
    fn entry(&self, name: &str, expected: &[usize]) -> Option<SourceEntry> {
        let elements: usize = expected.iter().product();
        let (storage, bytes) = match expected {
            &[n, k] => {
                let storage = self.storage(name);
                let bytes = match storage {
                    StorageKind::Nf4 { double: false } => QuantizeOnLoad::Nf4.bytes(n, k),
                    StorageKind::Nf4 { double: true } => QuantizeOnLoad::Nf4Double.bytes(n, k),
                    StorageKind::Int8 => QuantizeOnLoad::Int8.bytes(n, k),
                    StorageKind::Int8Rows => QuantizeOnLoad::Int8Rows.bytes(n, k),
                    StorageKind::MixedRows { .. } => wide_rows(n) * k + (n - wide_rows(n)) * k.div_ceil(2) + 4 * n,
                    _ => 2 * n * k,
                };
                (storage, bytes)
            }
            _ => (StorageKind::F32, 4 * elements),
        };
        Some(SourceEntry { shape: expected.to_vec(), storage, bytes })
    }

    fn matrix(&self, name: &str, n: usize, k: usize) -> Result<HostWeight> {
        let stream = self.stream(name);
        let storage = match self.storage(name) {
            StorageKind::Nf4 { double } | StorageKind::Fp4 { double } => stream.nf4(n * k, double),
            StorageKind::Int8 => stream.int8(n, k),
            StorageKind::Int8Rows => stream.rows(n, k, n),
            StorageKind::MixedRows { .. } => stream.rows(n, k, wide_rows(n)),
            StorageKind::F16 => HostStorage::Dense(FloatType::F16, stream.halves(n * k, FloatType::F16)),
            _ => HostStorage::Dense(FloatType::Bf16, stream.halves(n * k, FloatType::Bf16)),
        };
        Ok(HostWeight { n, k, storage })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let stream = self.stream(name);
        let around = |centre: f32| (0..len).map(|i| centre + SPREAD * stream.signed(i)).collect();
        Ok(match self.roles.get(name) {
            Some(TensorRole::LogDecay) => (0..len).map(|i| (1.0 + 15.0 * stream.unit(i)).ln()).collect(),
            Some(TensorRole::Norm { unit_offset: false }) => around(1.0),
            Some(TensorRole::Convolution) => (0..len).map(|i| 0.5 * stream.signed(i)).collect(),
            _ => around(0.0),
        })
    }
}

/// `count` numbers of `SIZE` bytes by position.
fn numbers<const SIZE: usize>(count: usize, number: impl Fn(usize) -> [u8; SIZE] + Sync) -> Bytes {
    const TASK: usize = 1 << 15;
    let mut out = WeightBuffer::new(SIZE * count);
    on_threads(|| {
        out.as_chunks_mut::<SIZE>().0.par_chunks_mut(TASK).enumerate().for_each(|(task, out)| {
            for (i, out) in out.iter_mut().enumerate() {
                *out = number(task * TASK + i);
            }
        });
    });
    Bytes::from_owner(out)
}

/// Random numbers by position, so that they can be made in parallel.
#[derive(Clone, Copy)]
struct Stream(u64);

impl Stream {
    fn word(self, i: usize) -> u64 {
        emberlm_quant::random::word(self.0, i as u64)
    }

    /// Uniform in `[0, 1)`.
    fn unit(self, i: usize) -> f32 {
        (self.word(i) >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Uniform with standard deviation 1.
    fn signed(self, i: usize) -> f32 {
        (self.unit(i) - 0.5) * 12f32.sqrt()
    }

    fn bytes(self, len: usize) -> Bytes {
        numbers(len.div_ceil(8), |i| self.word(i).to_le_bytes()).slice(..len)
    }

    fn halves(self, count: usize, float: FloatType) -> Bytes {
        numbers(count, |i| {
            let x = SPREAD * self.signed(i);
            let bits = match float {
                FloatType::F16 => half::f16::from_f32(x).to_bits(),
                _ => half::bf16::from_f32(x).to_bits(),
            };
            bits.to_le_bytes()
        })
    }

    fn nf4(self, elements: usize, double: bool) -> HostStorage {
        let blocks = elements.div_ceil(BLOCK);
        let codes = self.bytes(elements.div_ceil(2));
        // Uniform codes of the NF4 book have a standard deviation of about 0.6.
        let absmax = SPREAD / 0.6;
        let scales = if double {
            let nested = blocks.div_ceil(NESTED);
            HostScales::Double {
                codes: Stream(!self.0).bytes(blocks),
                map: format::dynamic_map().to_vec(),
                absmax: vec![0.2 * absmax; nested],
                block: NESTED,
                offset: absmax,
            }
        } else {
            HostScales::Single(numbers(blocks, |i| (absmax * (0.8 + 0.4 * self.unit(i))).to_le_bytes()))
        };
        let storage = HostCodeBook4 { codes, code_book: format::NF4, block: BLOCK, scales, stored: FloatType::Bf16 };
        HostStorage::CodeBook4(storage)
    }

    fn int8(self, n: usize, k: usize) -> HostStorage {
        let scale = SPREAD * 3f32.sqrt() / 127.0;
        let scales = numbers(n * k.div_ceil(INT8_BLOCK), |i| {
            half::f16::from_f32(scale * (0.8 + 0.4 * Stream(!self.0).unit(i))).to_le_bytes()
        });
        HostStorage::Int8(HostInt8 { codes: self.bytes(n * k), scales })
    }

    /// `wide` rows of 8 bits, the others of 4, in order of the outputs.
    fn rows(self, n: usize, k: usize, wide: usize) -> HostStorage {
        let scale = |codes: f32| SPREAD * 3f32.sqrt() / codes;
        let scales = (0..n).map(|row| scale(if row < wide { 127.0 } else { 7.0 })).collect();
        HostStorage::Rows(HostRows {
            wide: self.bytes(wide * k),
            wide_rows: wide,
            narrow: Stream(!self.0).bytes((n - wide) * k.div_ceil(2)),
            narrow_bits: 4,
            scales,
            slots: None,
        })
    }
}
