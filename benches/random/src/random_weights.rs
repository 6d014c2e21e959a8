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

/// Ids whose rows an [embedding in place](RandomWeights::embedding_in_place) has.
const KNOWN_IDS: usize = 4096;

/// What the rows of the head are multiplied with that are for other ids.
const QUIET: f32 = 1.0 / 64.0;

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
    head: StorageKind,
    embedding: StorageKind,
    /// Ids from here on have no rows in the embedding, and quiet ones in the head.
    known_ids: usize,
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
        let table = stored(quantize_head);
        let known_ids = architecture.config.vocab_size;
        Self { seed, roles, linears, query_key_value: linears, head: table, embedding: table, known_ids }
    }

    /// The same with an embedding that is not the head, in BF16, of which only the rows that are read take memory: as it is where a file is
    /// read in place. Those are the rows of the first [`known_ids`](Self::known_ids); the others are zeros that nothing has touched. Rows of the head
    /// for other ids are so quiet that they are never the best ones.
    #[must_use]
    pub fn embedding_in_place(self) -> Self {
        Self { embedding: StorageKind::Bf16, known_ids: self.known_ids.min(KNOWN_IDS), ..self }
    }

    /// Ids below this have a row in the embedding.
    pub fn known_ids(&self) -> usize {
        self.known_ids
    }

    /// The storages of Nano compact: F16 query, key and value projections, an int8 embedding, the other linears in rows of 4 and
    /// of 8 bits mixed so that the published size of the 3B model comes out.
    pub fn nano(architecture: &Architecture, seed: u64) -> Self {
        let plain = Self::new(architecture, None, Some(QuantizeOnLoad::Int8Rows), seed);
        Self { linears: StorageKind::MixedRows { bits: 4 }, query_key_value: StorageKind::F16, ..plain }
    }

    fn storage(&self, name: &str) -> StorageKind {
        match self.roles.get(name) {
            Some(TensorRole::Embedding) => self.embedding,
            Some(TensorRole::Head) => self.head,
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
        let loud = match self.roles.get(name) {
            Some(TensorRole::Head) => self.known_ids,
            _ => n,
        };
        let storage = match self.storage(name) {
            StorageKind::Nf4 { double } | StorageKind::Fp4 { double } => stream.nf4(n, k, loud, double),
            StorageKind::Int8 => stream.int8(n, k, loud),
            StorageKind::Int8Rows => stream.rows(n, k, n, loud),
            StorageKind::MixedRows { .. } => stream.rows(n, k, wide_rows(n), loud),
            StorageKind::F16 => HostStorage::Dense(FloatType::F16, stream.halves(n, k, n, loud, FloatType::F16)),
            _ => {
                let rows = match self.roles.get(name) {
                    Some(TensorRole::Embedding) => self.known_ids.min(n),
                    _ => n,
                };
                HostStorage::Dense(FloatType::Bf16, stream.halves(n, k, rows, loud, FloatType::Bf16))
            }
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
    first_numbers(count, count, number)
}

/// As [`numbers`], of which only the first `known` are made. The others are zeros, whose pages nothing has touched.
fn first_numbers<const SIZE: usize>(count: usize, known: usize, number: impl Fn(usize) -> [u8; SIZE] + Sync) -> Bytes {
    const TASK: usize = 1 << 15;
    let mut out = WeightBuffer::new(SIZE * count);
    on_threads(|| {
        let (chunks, _) = out.as_chunks_mut::<SIZE>();
        let known = known.min(chunks.len());
        chunks[..known].par_chunks_mut(TASK).enumerate().for_each(|(task, out)| {
            for (i, out) in out.iter_mut().enumerate() {
                *out = number(task * TASK + i);
            }
        });
    });
    Bytes::from_owner(out)
}

/// Two codes of NF4 for zero.
const NF4_ZEROS: u8 = 0x77;

/// What a row is multiplied with, where those from `loud` on are quiet.
fn loudness(row: usize, loud: usize) -> f32 {
    if row < loud { 1.0 } else { QUIET }
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

    /// The first `rows` of `n` rows; those from `loud` on are quiet.
    fn halves(self, n: usize, k: usize, rows: usize, loud: usize, float: FloatType) -> Bytes {
        first_numbers(n * k, rows * k, |i| {
            let x = SPREAD * self.signed(i) * loudness(i / k, loud);
            let bits = match float {
                FloatType::F16 => half::f16::from_f32(x).to_bits(),
                _ => half::bf16::from_f32(x).to_bits(),
            };
            bits.to_le_bytes()
        })
    }

    /// Rows from `loud` on are quiet; with nested scales, which all rows share, they are zeros.
    fn nf4(self, n: usize, k: usize, loud: usize, double: bool) -> HostStorage {
        let elements = n * k;
        let blocks = elements.div_ceil(BLOCK);
        let silent = (loud.min(n) * k).div_ceil(2);
        let codes = match double && loud < n {
            true => numbers(elements.div_ceil(2), |i| match i < silent {
                true => [self.word(i / 8).to_le_bytes()[i % 8]],
                false => [NF4_ZEROS],
            }),
            false => self.bytes(elements.div_ceil(2)),
        };
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
            let scale = |i| absmax * (0.8 + 0.4 * self.unit(i)) * loudness(i * BLOCK / k.max(1), loud);
            HostScales::Single(numbers(blocks, |i| scale(i).to_le_bytes()))
        };
        let storage = HostCodeBook4 { codes, code_book: format::NF4, block: BLOCK, scales, stored: FloatType::Bf16 };
        HostStorage::CodeBook4(storage)
    }

    /// Rows from `loud` on are quiet.
    fn int8(self, n: usize, k: usize, loud: usize) -> HostStorage {
        let scale = SPREAD * 3f32.sqrt() / 127.0;
        let blocks = k.div_ceil(INT8_BLOCK);
        let scales = numbers(n * blocks, |i| {
            let scale = scale * (0.8 + 0.4 * Stream(!self.0).unit(i)) * loudness(i / blocks, loud);
            half::f16::from_f32(scale).to_le_bytes()
        });
        HostStorage::Int8(HostInt8 { codes: self.bytes(n * k), scales })
    }

    /// `wide` rows of 8 bits, the others of 4, in order of the outputs. Rows from `loud` on are quiet.
    fn rows(self, n: usize, k: usize, wide: usize, loud: usize) -> HostStorage {
        let scale = |row: usize| SPREAD * 3f32.sqrt() / if row < wide { 127.0 } else { 7.0 } * loudness(row, loud);
        let scales = (0..n).map(scale).collect();
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

#[cfg(test)]
mod tests {
    use emberlm_model::config::CrestOverrides;

    use super::*;
    use crate::shapes;

    const EMBEDDING: &str = "model.embed_tokens.weight";
    const HEAD: &str = "lm_head.weight";

    /// The largest number of each row.
    fn largest(weight: &HostWeight) -> Vec<f32> {
        let dense = format::dequantize(weight);
        dense.chunks(weight.k).map(|row| row.iter().fold(0.0f32, |most, x| most.max(x.abs()))).collect()
    }

    #[test]
    fn an_embedding_in_place_has_the_rows_of_ids_that_are_chosen() {
        let architecture = shapes::shape("bench-1b", &CrestOverrides::default()).unwrap();
        let (n, k) = (KNOWN_IDS + 256, 128);
        let heads = [
            None,
            Some(QuantizeOnLoad::Int8),
            Some(QuantizeOnLoad::Int8Rows),
            Some(QuantizeOnLoad::Nf4),
            Some(QuantizeOnLoad::Nf4Double),
        ];
        for head in heads {
            let whole = RandomWeights::new(&architecture, None, head, 7);
            let loud = largest(&whole.matrix(HEAD, n, k).unwrap());
            assert!(loud.iter().all(|&x| x > SPREAD), "{head:?}");
            let in_place = whole.clone().embedding_in_place();
            assert_eq!(in_place.known_ids(), KNOWN_IDS);
            assert_eq!(in_place.entry(EMBEDDING, &[n, k]).unwrap().storage, StorageKind::Bf16);
            let rows = largest(&in_place.matrix(EMBEDDING, n, k).unwrap());
            assert!(rows[..KNOWN_IDS].iter().all(|&x| x > SPREAD) && rows[KNOWN_IDS..].iter().all(|&x| x == 0.0));
            // What greedy choices are made of: never an id without a row.
            let rows = largest(&in_place.matrix(HEAD, n, k).unwrap());
            assert_eq!(rows[..KNOWN_IDS], loud[..KNOWN_IDS], "{head:?}");
            assert!(rows[KNOWN_IDS..].iter().all(|&x| x < SPREAD / 8.0), "{head:?}");
        }
    }
}
