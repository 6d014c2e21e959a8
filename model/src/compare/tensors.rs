//! Two tensors of one shape, number by number.

use std::sync::atomic::{AtomicUsize, Ordering};

use emberlm_quant::format::Dequantizer;
use emberlm_quant::host::{FloatType, HostStorage, HostWeight, on_threads};
use rayon::prelude::*;

use crate::checkpoint::{CheckpointError, StorageKind};
use crate::error::Result;
use crate::plan::Progress;
use crate::pretrained::Pretrained;

/// Numbers of each tensor that one thread holds at a time, at least a row.
const PIECE: usize = 1 << 16;
/// Rows that are named.
const WORST: usize = 3;

/// How two tensors differ. Errors are relative to the first.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorComparison {
    /// Canonical name.
    pub name: String,
    /// Of both.
    pub shape: Vec<usize>,
    /// How each is stored.
    pub storage: [StorageKind; 2],
    /// Every number of one is equal to that of the other.
    pub identical: bool,
    /// The norm of the difference over the norm of the first; infinite where the first is 0, or a number is not finite.
    pub relative_error: f64,
    /// Of the angle between both as vectors; 1 where both are 0.
    pub cosine: f64,
    /// The largest difference of two numbers, and its row and column.
    pub max_difference: f64,
    /// See `max_difference`.
    pub max_at: [usize; 2],
    /// Norm of the first over that of the second.
    pub norm_ratio: f64,
    /// Pairs of numbers that are not equal of which one is not finite; they are left out of the sums.
    pub not_finite: u64,
    /// The rows with the largest relative errors, the largest first; none of a tensor of one row.
    pub worst_rows: Vec<RowError>,
}

/// The relative error of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowError {
    /// Its number.
    pub row: usize,
    /// As of a tensor.
    pub relative_error: f64,
}

pub(super) fn compare(
    first: &Pretrained,
    second: &Pretrained,
    names: &[(&str, Vec<usize>)],
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<TensorComparison>> {
    let bytes = |name: &str| {
        let of = |model: &Pretrained| model.weights().entry(name).map_or(0, |entry| entry.bytes);
        of(first).saturating_add(of(second))
    };
    let total = names.iter().map(|(name, _)| bytes(name)).sum();
    let done = AtomicUsize::new(0);
    let one = |(name, shape): &(&str, Vec<usize>)| {
        let compared = tensor(first, second, name, shape);
        let bytes = bytes(name);
        progress(Progress { done: done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes), total });
        compared
    };
    on_threads(|| names.par_iter().map(one).collect())
}

/// The numbers of a tensor as rows.
struct Rows {
    weight: HostWeight,
}

impl Rows {
    fn of(model: &Pretrained, name: &str, shape: &[usize]) -> Result<Self> {
        let weights = model.weights();
        if shape.len() == 2 {
            return Ok(Self { weight: weights.matrix(name)? });
        }
        // Norms, biases and the like are small.
        let values = weights.vector(name)?;
        let n = if shape.len() > 2 { shape.first().copied().unwrap_or(1) } else { 1 };
        let k = values.len().checked_div(n).unwrap_or(0);
        let data: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok(Self { weight: HostWeight { n, k, storage: HostStorage::Dense(FloatType::F32, data.into()) } })
    }

    fn reader(&self, name: &str) -> Result<Dequantizer<'_>> {
        Dequantizer::new(&self.weight).map_err(|error| CheckpointError::of_tensor(name, error.to_string()).into())
    }
}

/// Sums over some rows.
#[derive(Clone, Debug, Default)]
struct Sums {
    identical: bool,
    first: f64,
    second: f64,
    product: f64,
    difference: f64,
    largest: f64,
    at: [usize; 2],
    not_finite: u64,
    worst: Vec<RowError>,
}

fn tensor(first: &Pretrained, second: &Pretrained, name: &str, shape: &[usize]) -> Result<TensorComparison> {
    let sums = if shape.contains(&0) { Sums::new() } else { sums(first, second, name, shape)? };
    let storage = |model: &Pretrained| model.weights().entry(name).map(|entry| entry.storage);
    let (Some(stored), Some(other)) = (storage(first), storage(second)) else {
        return Err(CheckpointError::of_tensor(name, "is not there").into());
    };
    Ok(TensorComparison {
        name: name.to_owned(),
        shape: shape.to_vec(),
        storage: [stored, other],
        identical: sums.identical,
        relative_error: if sums.not_finite > 0 { f64::INFINITY } else { relative(sums.difference, sums.first) },
        cosine: match (sums.first * sums.second).sqrt() {
            0.0 if sums.first == sums.second => 1.0,
            0.0 => 0.0,
            _ if sums.identical => 1.0,
            norms => sums.product / norms,
        },
        max_difference: sums.largest,
        max_at: sums.at,
        norm_ratio: (sums.first / sums.second).sqrt(),
        not_finite: sums.not_finite,
        worst_rows: sums.worst,
    })
}

/// Over all rows of two tensors that have numbers.
fn sums(first: &Pretrained, second: &Pretrained, name: &str, shape: &[usize]) -> Result<Sums> {
    let (a, b) = (Rows::of(first, name, shape)?, Rows::of(second, name, shape)?);
    let (n, k) = (a.weight.n, a.weight.k);
    let (read_a, read_b) = (a.reader(name)?, b.reader(name)?);
    let rows = (PIECE / k.max(1)).max(1);
    let piece = |buffers: &mut [Vec<f32>; 2], piece: usize| {
        let begin = piece * rows;
        let count = rows.min(n - begin);
        let [x, y] = buffers;
        x.resize(count * k, 0.0);
        y.resize(count * k, 0.0);
        read_a.read(begin * k, x);
        read_b.read(begin * k, y);
        let pairs = x.chunks_exact(k).zip(y.chunks_exact(k)).enumerate();
        pairs.fold(Sums::new(), |sums, (row, (x, y))| sums.and(Sums::of_row(begin + row, x, y)))
    };
    let pieces = (0..n.div_ceil(rows)).into_par_iter();
    let sums = pieces.map_init(Default::default, piece).reduce(Sums::new, Sums::and);
    first.weights().release(name);
    second.weights().release(name);
    Ok(Sums { worst: if n > 1 { sums.worst } else { Vec::new() }, ..sums })
}

/// The root of a sum of squares over that of another.
fn relative(difference: f64, first: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { (difference / first).sqrt() }
}

impl Sums {
    /// Of no rows.
    fn new() -> Self {
        Self { identical: true, ..Self::default() }
    }

    fn of_row(row: usize, x: &[f32], y: &[f32]) -> Self {
        let mut out = Self::new();
        for (column, (&x, &y)) in x.iter().zip(y).enumerate() {
            // Equal bits, of which NaN would not be equal.
            if x == y || x.to_bits() == y.to_bits() {
                let square = if x.is_finite() { f64::from(x) * f64::from(x) } else { 0.0 };
                out.first += square;
                out.second += square;
                out.product += square;
                continue;
            }
            out.identical = false;
            if !x.is_finite() || !y.is_finite() {
                out.not_finite += 1;
                continue;
            }
            let (x, y) = (f64::from(x), f64::from(y));
            let difference = x - y;
            out.first += x * x;
            out.second += y * y;
            out.product += x * y;
            out.difference += difference * difference;
            if difference.abs() > out.largest {
                (out.largest, out.at) = (difference.abs(), [row, column]);
            }
        }
        let error = if out.not_finite > 0 { f64::INFINITY } else { relative(out.difference, out.first) };
        if error > 0.0 {
            out.worst.push(RowError { row, relative_error: error });
        }
        out
    }

    fn and(mut self, other: Self) -> Self {
        self.identical &= other.identical;
        self.first += other.first;
        self.second += other.second;
        self.product += other.product;
        self.difference += other.difference;
        self.not_finite += other.not_finite;
        // Of equal ones that of the first row, whichever thread was done first.
        let is_larger = other.largest > self.largest || (other.largest == self.largest && other.at < self.at);
        if is_larger && other.largest > 0.0 {
            (self.largest, self.at) = (other.largest, other.at);
        }
        self.worst.extend(other.worst);
        self.worst.sort_by(|a, b| b.relative_error.total_cmp(&a.relative_error).then(a.row.cmp(&b.row)));
        self.worst.truncate(WORST);
        self
    }
}
