//! Cutting a weight into parts along its rows, for devices whose buffers end before it does.

use bytes::Bytes;
use emberlm_backends::cpu::INT8_BLOCK;

use super::check::check;
use crate::error::{Error, Result};
use crate::host::{HostCodeBook4, HostInt8, HostRows, HostScales, HostStorage, HostWeight};

/// Where a matrix must end on a device. Made of a number, it is one of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferLimit {
    /// Bytes of the largest buffer.
    pub bytes: usize,
    /// Elements that kernels count in one matrix.
    pub elements: usize,
}

impl From<usize> for BufferLimit {
    fn from(bytes: usize) -> Self {
        Self { bytes, elements: usize::MAX }
    }
}

impl BufferLimit {
    /// Whether the whole weight keeps it.
    pub fn holds(&self, weight: &HostWeight) -> bool {
        largest_buffer(weight) <= self.bytes && weight.n.saturating_mul(weight.k) <= self.elements
    }
}

/// The weight in parts of whole rows, in order, each within `limit`; one part where it fits.
///
/// Parts are views of the weight's bytes, but for integer rows that are not stored in order: those are copied.
///
/// # Errors
/// [`Error::RowsBeyondBuffer`] or [`Error::RowsBeyondCount`] when the fewest rows that can be cut off do not fit.
pub fn split_rows(weight: HostWeight, limit: impl Into<BufferLimit>) -> Result<Vec<HostWeight>> {
    let limit = limit.into();
    if limit.holds(&weight) {
        return Ok(vec![weight]);
    }
    let (n, k) = (weight.n, weight.k);
    let step = step(&weight);
    if step.saturating_mul(k) > limit.elements {
        return Err(Error::RowsBeyondCount { rows: step, elements: step.saturating_mul(k), limit: limit.elements });
    }
    // Bytes of the rows up to `rows` are at most this; every buffer is rounded up to a word.
    let fits = |rows: usize| row_bytes(&weight, rows) <= limit.bytes && rows.saturating_mul(k) <= limit.elements;
    if !fits(step) {
        return Err(Error::RowsBeyondBuffer { rows: step, bytes: row_bytes(&weight, step), limit: limit.bytes });
    }
    // The most that fit.
    let (mut low, mut high) = (1, (n / step).max(1));
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle * step) { low = middle } else { high = middle - 1 }
    }
    let rows = low * step;
    Ok((0..n)
        .step_by(rows)
        .map(|first| {
            let part = rows.min(n - first);
            HostWeight { n: part, k, storage: rows_of(&weight.storage, first, part, k) }
        })
        .collect())
}

/// The first `rows` rows (at most all), in the same storage: the same codes and scales, as views where rows are stored in order.
///
/// # Errors
/// Those of [`check`](super::check()).
pub fn first_rows(weight: &HostWeight, rows: usize) -> Result<HostWeight> {
    check(weight)?;
    let (n, k) = (rows.min(weight.n), weight.k);
    // The first rows begin at a block of every storage, and blocks that go on beyond them keep their scales.
    Ok(HostWeight { n, k, storage: rows_of(&weight.storage, 0, n, k) })
}

/// Bytes of the largest buffer that the weight takes on a device.
pub fn largest_buffer(weight: &HostWeight) -> usize {
    let bytes = match &weight.storage {
        HostStorage::Dense(_, data) => data.len(),
        HostStorage::CodeBook4(w) => match &w.scales {
            HostScales::Single(scales) => w.codes.len().max(scales.len()),
            HostScales::Double { codes, absmax, .. } => w.codes.len().max(codes.len()).max(4 * absmax.len()),
        },
        HostStorage::Int8(w) => w.codes.len().max(w.scales.len()),
        HostStorage::Rows(w) => w.wide.len().max(w.narrow.len()).max(4 * w.scales.len()),
    };
    bytes.next_multiple_of(4)
}

/// At least the bytes of the largest buffer of any part of `rows` rows.
fn row_bytes(weight: &HostWeight, rows: usize) -> usize {
    let k = weight.k;
    let bytes = match &weight.storage {
        HostStorage::Dense(float, _) => rows * k * float.size(),
        HostStorage::CodeBook4(w) => {
            let blocks = (rows * k).div_ceil(w.block);
            let scales = match &w.scales {
                HostScales::Single(_) => 4 * blocks,
                HostScales::Double { block, .. } => blocks.max(4 * blocks.div_ceil(*block)),
            };
            (rows * k).div_ceil(2).max(scales)
        }
        HostStorage::Int8(_) => rows * k.max(2 * k.div_ceil(INT8_BLOCK)),
        HostStorage::Rows(w) => {
            let wide = if w.wide_rows > 0 { k } else { 0 };
            rows * wide.max(narrow_stride(w, k)).max(4)
        }
    };
    bytes.next_multiple_of(4)
}

/// Parts start at a multiple of this many rows: where a block of scales of scales starts, and a word of the data.
fn step(weight: &HostWeight) -> usize {
    let elements = match &weight.storage {
        HostStorage::Dense(float, _) => 4 / float.size(),
        HostStorage::CodeBook4(w) => match &w.scales {
            HostScales::Single(_) => common_multiple(w.block, 8),
            HostScales::Double { block, .. } => common_multiple(w.block * block, 8),
        },
        HostStorage::Int8(_) | HostStorage::Rows(_) => 1,
    };
    common_multiple(elements, weight.k) / weight.k
}

fn common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x.max(1) * b
}

/// Rows `first..first + rows` of width `k`; `first` is a multiple of [`step`].
fn rows_of(storage: &HostStorage, first: usize, rows: usize, k: usize) -> HostStorage {
    let (start, end) = (first * k, (first + rows) * k);
    match storage {
        HostStorage::Dense(float, data) => {
            HostStorage::Dense(*float, data.slice(start * float.size()..end * float.size()))
        }
        HostStorage::CodeBook4(w) => {
            let (first_block, last_block) = (start / w.block, end.div_ceil(w.block));
            let scales = match &w.scales {
                HostScales::Single(scales) => HostScales::Single(scales.slice(4 * first_block..4 * last_block)),
                HostScales::Double { codes, map, absmax, block, offset } => HostScales::Double {
                    codes: codes.slice(first_block..last_block),
                    map: map.clone(),
                    absmax: absmax[first_block / block..last_block.div_ceil(*block)].to_vec(),
                    block: *block,
                    offset: *offset,
                },
            };
            let codes = w.codes.slice(start / 2..end.div_ceil(2));
            HostStorage::CodeBook4(HostCodeBook4 { codes, scales, ..w.clone() })
        }
        HostStorage::Int8(w) => {
            let bytes = 2 * k.div_ceil(INT8_BLOCK);
            let (codes, scales) = (w.codes.slice(start..end), w.scales.slice(first * bytes..(first + rows) * bytes));
            HostStorage::Int8(HostInt8 { codes, scales })
        }
        HostStorage::Rows(w) => HostStorage::Rows(integer_rows(w, first, rows, k)),
    }
}

fn narrow_stride(w: &HostRows, k: usize) -> usize {
    if w.narrow.is_empty() { 0 } else { (k * w.narrow_bits as usize).div_ceil(8) }
}

/// Outputs `first..first + rows`, wherever their rows are stored.
fn integer_rows(w: &HostRows, first: usize, rows: usize, k: usize) -> HostRows {
    let stored = |output: usize| w.slots.as_ref().map_or(output, |slots| slots[output] as usize);
    let outputs = first..first + rows;
    let (wide, narrow): (Vec<usize>, Vec<usize>) = outputs.partition(|&output| stored(output) < w.wide_rows);
    let wide_rows: Vec<usize> = wide.iter().map(|&output| stored(output)).collect();
    let narrow_rows: Vec<usize> = narrow.iter().map(|&output| stored(output) - w.wide_rows).collect();
    // Where each output went: the wide ones first, each kind in the order of the outputs.
    let mut slots = vec![0u32; rows];
    for (slot, &output) in wide.iter().chain(&narrow).enumerate() {
        slots[output - first] = slot as u32;
    }
    let in_order = slots.iter().enumerate().all(|(i, &slot)| i == slot as usize);
    let scales = wide.iter().chain(&narrow).map(|&output| w.scales[stored(output)]).collect();
    HostRows {
        wide: gather(&w.wide, k, &wide_rows),
        wide_rows: wide_rows.len(),
        narrow: gather(&w.narrow, narrow_stride(w, k), &narrow_rows),
        narrow_bits: w.narrow_bits,
        scales,
        slots: (!in_order).then_some(slots),
    }
}

/// Rows of `stride` bytes: a view where they are neighbours.
fn gather(data: &Bytes, stride: usize, rows: &[usize]) -> Bytes {
    let Some(&first) = rows.first() else { return Bytes::new() };
    if rows.iter().enumerate().all(|(i, &row)| row == first + i) {
        return data.slice(first * stride..(first + rows.len()) * stride);
    }
    rows.iter().flat_map(|&row| &data[row * stride..(row + 1) * stride]).copied().collect::<Vec<u8>>().into()
}
