//! What is read, converted and written at once: a parameter, or tensors of the source that are copied.

use std::ops::Range;

use emberlm_quant::format;
use emberlm_quant::host::{FloatType, HostStorage, HostWeight};

use super::matrix::MatrixFormat;
use crate::checkpoint::writer::{
    CodeBookLayout, RowLayout, Slot, StoredTensor, code_book_slots, dense_slots, encode, int8_slots,
};
use crate::checkpoint::{CheckpointError, Weights, record_field};
use crate::error::{Error, Result};
use crate::plan::{PlannedTensor, QuantizeOnLoad};
use crate::tensors::TensorRole;

/// A part of the work.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Canonical name of the parameter; the first of them where rows of one tensor are several.
    pub(super) parameter: String,
    pub(super) work: Work,
    /// The tensors that it becomes.
    pub(super) slots: Vec<Slot>,
    /// Bytes that it reads.
    pub(super) source_bytes: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Work {
    /// Tensors of the source byte for byte, each with the rows that are kept where they are not all.
    Copy(Vec<(String, Option<Range<usize>>)>),
    /// A matrix in another type.
    Dense(FloatType),
    /// A matrix in another format that is no rows.
    Quantize(QuantizeOnLoad),
    /// A matrix as rows.
    Rows(RowLayout),
    /// A tensor that is no matrix, as F32.
    Widen,
    /// So many rows of a matrix, in its format or as plain numbers, and the tensors of the source that hold the matrix.
    FirstRows { rows: usize, dense: Option<FloatType>, tensors: Vec<String> },
}

impl Item {
    /// A matrix in another format than that of the source.
    pub(super) fn matrix(tensor: &PlannedTensor, file_name: &str, format: MatrixFormat) -> Result<Self> {
        let &[n, k] = tensor.shape.as_slice() else {
            let message = format!("has shape {:?}, expected a matrix", tensor.shape);
            return Err(CheckpointError::of_tensor(file_name, message).into());
        };
        let shape = [n, k];
        let rows = |layout: RowLayout| {
            let path = file_name.strip_suffix(".weight").ok_or_else(|| {
                CheckpointError::of_tensor(file_name, "is not the .weight of a module, as integer rows have to be")
            })?;
            Ok::<_, Error>((Work::Rows(layout), layout.slots(path, shape)))
        };
        let (work, slots) = match format {
            MatrixFormat::AsStored => (Work::Copy(Vec::new()), Vec::new()),
            MatrixFormat::Dense(float) => (Work::Dense(float), dense_slots(file_name, float, &shape)),
            MatrixFormat::Quantized(quantize) => match quantize {
                QuantizeOnLoad::Nf4 => {
                    (Work::Quantize(quantize), code_book_slots(file_name, shape, CodeBookLayout::nf4(false)))
                }
                QuantizeOnLoad::Nf4Double => {
                    (Work::Quantize(quantize), code_book_slots(file_name, shape, CodeBookLayout::nf4(true)))
                }
                QuantizeOnLoad::Int8 => (Work::Quantize(quantize), int8_slots(file_name, shape)),
                QuantizeOnLoad::Int8Rows if tensor.role == TensorRole::Embedding => rows(RowLayout::Embedding)?,
                QuantizeOnLoad::Int8Rows => rows(RowLayout::Int8)?,
            },
            // Said before other matrices are written.
            MatrixFormat::MixedRows { bits, .. } if !matches!(bits, 2 | 4 | 6 | 8) => {
                return Err(Error::Weight(emberlm_quant::Error::Bits { bits }));
            }
            MatrixFormat::MixedRows { bits, keep } => rows(RowLayout::Mixed { bits, keep: keep.min(n) })?,
        };
        Ok(Self { parameter: tensor.name.clone(), work, slots, source_bytes: tensor.stored_bytes })
    }

    /// The first rows of a matrix of the source, whose tensors are these: in its format, or as plain numbers.
    pub(super) fn first_rows(
        parameter: &str,
        file_name: &str,
        all: &HostWeight,
        (rows, dense): (usize, Option<FloatType>),
        tensors: Vec<String>,
    ) -> Result<Self> {
        let shape = [rows, all.k];
        let slots = match (dense, &all.storage) {
            (Some(float), _) => dense_slots(file_name, float, &shape),
            (None, HostStorage::CodeBook4(w)) => code_book_slots(file_name, shape, CodeBookLayout::of(w)),
            (None, HostStorage::Int8(_)) => int8_slots(file_name, shape),
            (None, HostStorage::Dense(..) | HostStorage::Rows(_)) => {
                let message =
                    "holds the gates of all steps as integer rows, of which none can be left out: keep all steps";
                return Err(CheckpointError::of_tensor(file_name, message).into());
            }
        };
        let work = Work::FirstRows { rows, dense, tensors };
        Ok(Self { parameter: parameter.into(), work, slots, source_bytes: all.bytes() })
    }

    /// A tensor of a record.
    pub(super) fn of_record(tensor: &PlannedTensor, float: FloatType) -> Self {
        let is_matrix = tensor.role.is_matrix();
        let (work, float) = if is_matrix { (Work::Dense(float), float) } else { (Work::Widen, FloatType::F32) };
        let slots = dense_slots(&record_field(&tensor.name, is_matrix), float, &tensor.shape);
        Self { parameter: tensor.name.clone(), work, slots, source_bytes: tensor.stored_bytes }
    }

    /// Tensors that stay as they are.
    pub(super) fn copy(
        parameter: &str,
        weights: &Weights,
        tensors: Vec<(String, Option<Range<usize>>)>,
    ) -> Result<Self> {
        let (mut slots, mut source_bytes) = (Vec::new(), 0usize);
        for (name, rows) in &tensors {
            let info = weights.checkpoint().info(name);
            let info = info.ok_or_else(|| CheckpointError::of_tensor(name, "is not in the checkpoint"))?;
            let mut shape = info.shape.clone();
            if let (Some(rows), Some(first)) = (rows, shape.first_mut()) {
                *first = rows.len();
            }
            let slot = Slot::new(name.clone(), info.dtype, &shape);
            source_bytes = source_bytes.saturating_add(slot.bytes());
            slots.push(slot);
        }
        Ok(Self { parameter: parameter.into(), work: Work::Copy(tensors), slots, source_bytes })
    }

    /// A tensor of numbers as F32, under its name and in its shape.
    pub(super) fn widen(parameter: &str, weights: &Weights, name: &str) -> Result<Self> {
        let copy = Self::copy(parameter, weights, vec![(name.into(), None)])?;
        let slots = copy.slots.iter().flat_map(|slot| dense_slots(&slot.name, FloatType::F32, &slot.shape)).collect();
        Ok(Self { work: Work::Widen, slots, ..copy })
    }

    /// Bytes that it becomes; those of the longest possible where they are not known.
    pub(super) fn bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.bytes() as u64).sum()
    }

    /// Reads and converts. The pages of what is converted are given back; those of what is copied are still to be written.
    pub(super) fn make(&self, weights: &Weights) -> Result<Vec<StoredTensor>> {
        let name = &self.parameter;
        let fail = |error: emberlm_quant::Error| {
            let tensor = weights.file_name(name).unwrap_or_else(|| name.clone());
            Error::from(CheckpointError::of_tensor(&tensor, error.to_string()))
        };
        let matrix = || weights.matrix(name);
        let made = match &self.work {
            Work::Copy(tensors) => return self.copied(weights, tensors),
            Work::Dense(float) => {
                encode(&self.slots, &format::dequantize_to(&weights.tested_matrix(name)?, *float).map_err(fail)?)
            }
            Work::Quantize(quantize) => encode(&self.slots, &quantize.apply(&matrix()?).map_err(fail)?),
            Work::Rows(layout) => {
                let weight = match layout {
                    RowLayout::Embedding | RowLayout::Int8 => format::quantize_int8_rows(&matrix()?),
                    RowLayout::Mixed { bits, keep } => format::quantize_truequant(&matrix()?, *bits, *keep),
                };
                layout.encode(&self.slots, &weight.map_err(fail)?)
            }
            Work::FirstRows { rows, dense, .. } => {
                let kept = format::first_rows(&weights.whole_matrix(name)?, *rows).map_err(fail)?;
                match dense {
                    Some(float) => encode(&self.slots, &format::dequantize_to(&kept, *float).map_err(fail)?),
                    None => encode(&self.slots, &kept),
                }
            }
            Work::Widen => {
                let numbers: Vec<u8> = weights.vector(name)?.into_iter().flat_map(f32::to_le_bytes).collect();
                self.slots.iter().cloned().map(|slot| slot.fill(numbers.clone().into())).collect()
            }
        };
        weights.release(name);
        made
    }

    fn copied(&self, weights: &Weights, tensors: &[(String, Option<Range<usize>>)]) -> Result<Vec<StoredTensor>> {
        let copy = |((name, rows), slot): (&(String, Option<Range<usize>>), &Slot)| {
            let mut data = weights.checkpoint().data(name)?;
            if let Some(rows) = rows {
                let all = weights.checkpoint().info(name).and_then(|info| info.shape.first().copied()).unwrap_or(0);
                let width = data.len().checked_div(all).unwrap_or(0);
                let range = rows.start.saturating_mul(width)..rows.end.saturating_mul(width);
                if range.start > range.end || range.end > data.len() {
                    return Err(CheckpointError::of_tensor(name, format!("has no row {}", rows.end)).into());
                }
                data = data.slice(range);
            }
            weights.check_copied(&self.parameter, name, &data)?;
            let source = rows.is_none().then(|| name.clone());
            Ok(StoredTensor { source, ..slot.clone().fill(data)? })
        };
        tensors.iter().zip(&self.slots).map(copy).collect()
    }
}
