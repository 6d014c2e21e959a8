//! Seeded data in every storage, and the comparison.
#![allow(dead_code)]

use emberlm_backends::cpu::{
    self, BlockScales, CacheSlice, CacheSliceMut, CodeBook4, INT8_BLOCK, Int8, IntegerRows, Matrix, Weight,
};
use emberlm_backends::random::{GAMMA, word};
use emberlm_backends::types::{KV_BLOCK, StoreKv};
use half::{bf16, f16};

/// A cache in 8 bits, rounded by the kernel.
pub struct Eighths {
    pub codes: Box<[i8]>,
    pub scales: Box<[f32]>,
}

impl Eighths {
    /// Of heads and positions of `width` numbers.
    pub fn new(numbers: &[f32], width: usize) -> Self {
        let mut cache = Self::zeros(numbers.len(), width);
        cache.fill(numbers, width);
        cache
    }

    pub fn zeros(numbers: usize, width: usize) -> Self {
        let scales = numbers / width * width.div_ceil(KV_BLOCK);
        Self { codes: vec![0; numbers].into(), scales: vec![0.0; scales].into() }
    }

    pub fn fill(&mut self, numbers: &[f32], width: usize) {
        let rows = numbers.len() / width;
        let p = StoreKv { batch: 1, seq: rows, heads: 1, capacity: rows, width, at: 0 };
        assert!(cpu::store_kv(numbers, self.slice_mut(), &p));
    }

    pub fn slice(&self) -> CacheSlice<'_> {
        CacheSlice::Q8 { codes: &self.codes, scales: &self.scales }
    }

    /// The codes, four to a word.
    pub fn words(&self) -> Vec<u32> {
        self.codes.chunks(4).map(|c| u32::from_le_bytes([0, 1, 2, 3].map(|i| c[i] as u8))).collect()
    }

    pub fn slice_mut(&mut self) -> CacheSliceMut<'_> {
        CacheSliceMut::Q8 { codes: &mut self.codes, scales: &mut self.scales }
    }
}

/// A small generator (splitmix64): the tests need variety, not quality.
pub struct Rng(pub u64);

impl Rng {
    pub fn word(&mut self) -> u64 {
        let word = word(self.0, 1);
        self.0 = self.0.wrapping_add(GAMMA);
        word
    }

    /// Uniform in `-scale..scale`.
    pub fn float(&mut self, scale: f32) -> f32 {
        ((self.word() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    }

    pub fn floats(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.float(scale)).collect()
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.word() as u8).collect()
    }
}

/// How a [`Stored`] matrix keeps its elements.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    F32,
    F16,
    Bf16,
    Single { block: usize },
    Double { block: usize, nested: usize },
    Int8,
    Rows { wide: usize, bits: u32, slots: bool },
}

#[derive(Clone)]
/// An owned matrix of random elements about `1 / sqrt(k)` large.
pub struct Stored {
    pub n: usize,
    pub k: usize,
    kind: Kind,
    floats: Vec<f32>,
    halves: Vec<u16>,
    codes: Vec<u8>,
    narrow: Vec<u8>,
    code_book: [f32; 16],
    scale_codes: Vec<u8>,
    map: Vec<f32>,
    slots: Vec<u32>,
    /// Bytes of a narrow row beyond its codes.
    padding: usize,
}

impl Stored {
    /// A narrow row has one byte more than its codes need, so that a stride is no row length.
    pub fn new(rng: &mut Rng, kind: Kind, n: usize, k: usize) -> Stored {
        Stored::padded(rng, kind, n, k, 1)
    }

    /// Narrow rows as packed weights have them, one after the other.
    pub fn tight(rng: &mut Rng, kind: Kind, n: usize, k: usize) -> Stored {
        Stored::padded(rng, kind, n, k, 0)
    }

    fn padded(rng: &mut Rng, kind: Kind, n: usize, k: usize, padding: usize) -> Stored {
        let size = 1.7 / (k as f32).sqrt();
        let mut stored = Stored {
            n,
            k,
            kind,
            floats: Vec::new(),
            halves: Vec::new(),
            codes: Vec::new(),
            narrow: Vec::new(),
            code_book: [0.0; 16],
            scale_codes: Vec::new(),
            map: Vec::new(),
            slots: Vec::new(),
            padding,
        };
        match kind {
            Kind::F32 => stored.floats = rng.floats(n * k, size),
            Kind::F16 => {
                stored.halves = (0..n * k).map(|_| f16::from_f32(rng.float(size)).to_bits()).collect();
            }
            Kind::Bf16 => {
                stored.halves = (0..n * k).map(|_| bf16::from_f32(rng.float(size)).to_bits()).collect();
            }
            Kind::Single { block } | Kind::Double { block, .. } => {
                stored.code_book = std::array::from_fn(|_| rng.float(1.0));
                stored.codes = rng.bytes((n * k).div_ceil(2));
                let blocks = (n * k).div_ceil(block);
                stored.floats = rng.floats(blocks, size);
                if let Kind::Double { nested, .. } = kind {
                    stored.floats = rng.floats(blocks.div_ceil(nested), size);
                    stored.scale_codes = rng.bytes(blocks);
                    stored.map = rng.floats(256, 1.0);
                }
            }
            Kind::Int8 => {
                stored.codes = rng.bytes(n * k);
                let blocks = n * k.div_ceil(INT8_BLOCK);
                stored.halves = (0..blocks).map(|_| f16::from_f32(rng.float(size / 64.0)).to_bits()).collect();
            }
            Kind::Rows { wide, bits, slots } => {
                let wide = wide.min(n);
                stored.codes = rng.bytes(wide * k);
                stored.narrow = rng.bytes((n - wide) * stored.stride(bits));
                stored.floats = (0..n).map(|i| rng.float(size / if i < wide { 64.0 } else { 4.0 })).collect();
                if slots {
                    stored.slots = (0..n as u32).collect();
                    for i in (1..n).rev() {
                        stored.slots.swap(i, rng.word() as usize % (i + 1));
                    }
                }
            }
        }
        stored
    }

    fn stride(&self, bits: u32) -> usize {
        (self.k * bits as usize).div_ceil(8) + self.padding
    }

    pub fn weight(&self) -> Weight<'_> {
        let code_book = |scales, block| {
            Matrix::CodeBook4(CodeBook4 { codes: &self.codes, code_book: &self.code_book, block, scales })
        };
        let data = match self.kind {
            Kind::F32 => Matrix::F32(&self.floats),
            Kind::F16 => Matrix::F16(&self.halves),
            Kind::Bf16 => Matrix::Bf16(&self.halves),
            Kind::Single { block } => code_book(BlockScales::Single(&self.floats), block),
            Kind::Double { block, nested } => {
                let (codes, map, absmax) = (&self.scale_codes, &self.map, &self.floats);
                code_book(BlockScales::Double { codes, map, absmax, block: nested, offset: 0.01 }, block)
            }
            Kind::Int8 => Matrix::Int8(Int8 { codes: &self.codes, scales: &self.halves }),
            Kind::Rows { wide, bits, slots } => Matrix::IntegerRows(IntegerRows {
                wide: &self.codes,
                wide_rows: wide.min(self.n),
                narrow: &self.narrow,
                narrow_stride: self.stride(bits),
                narrow_bits: bits,
                scales: &self.floats,
                slots: slots.then_some(&self.slots),
            }),
        };
        Weight { n: self.n, k: self.k, data }
    }
}

/// Every storage, code books with blocks that fit the fast path and with others.
pub fn kinds() -> Vec<Kind> {
    vec![
        Kind::F32,
        Kind::F16,
        Kind::Bf16,
        Kind::Single { block: 64 },
        Kind::Single { block: 128 },
        Kind::Single { block: 48 },
        Kind::Double { block: 64, nested: 256 },
        Kind::Double { block: 64, nested: 3 },
        Kind::Int8,
        Kind::Rows { wide: usize::MAX, bits: 4, slots: false },
        Kind::Rows { wide: 0, bits: 2, slots: false },
        Kind::Rows { wide: 3, bits: 4, slots: true },
        Kind::Rows { wide: 2, bits: 2, slots: true },
    ]
}

/// Fails at the first element farther than `tolerance * max(1, |want|)` from `want`.
pub fn close(name: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let bound = tolerance * want.abs().max(1.0);
        assert!((got - want).abs() <= bound, "{name}[{i}]: {got}, expected {want}");
    }
}
