//! How a matrix is written.

use emberlm_quant::host::FloatType;

use crate::checkpoint::StorageKind;
use crate::plan::{PlannedTensor, QuantizeOnLoad};
use crate::tensors::TensorRole;

/// How a matrix is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatrixFormat {
    /// Byte for byte as the source stores it.
    #[default]
    AsStored,
    /// Plain numbers; a quantised matrix is dequantised.
    Dense(FloatType),
    /// What quantisation at load makes of a dense matrix. One that is stored quantised stays as it is.
    Quantized(QuantizeOnLoad),
    /// Rows of `bits` bits (2, 4, 6 or 8), of which the `keep` with the largest RMS get 8, as Nano compact stores them. A matrix that is
    /// stored quantised stays as it is.
    MixedRows {
        /// Of the narrow rows.
        bits: u32,
        /// Rows of 8 bits.
        keep: usize,
    },
}

impl MatrixFormat {
    /// How a matrix that is stored so will be stored.
    pub(super) fn storage(self, stored: StorageKind) -> StorageKind {
        match self {
            Self::Dense(FloatType::F32) => StorageKind::F32,
            Self::Dense(FloatType::F16) => StorageKind::F16,
            Self::Dense(FloatType::Bf16) => StorageKind::Bf16,
            Self::Quantized(format) if stored.is_dense() => format.storage(),
            Self::MixedRows { bits: bits @ (2 | 4), .. } if stored.is_dense() => StorageKind::MixedRows { bits },
            Self::MixedRows { .. } if stored.is_dense() => StorageKind::Int8Rows,
            _ => stored,
        }
    }
}

/// A matrix of an [`ExportPlan`](super::ExportPlan).
#[derive(Clone, Debug)]
pub struct ExportedMatrix {
    /// Canonical name.
    pub name: String,
    /// Name of its tensor (or of the first of them) without its storage, as in the source.
    pub file_name: String,
    /// `[outputs, inputs]`.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: TensorRole,
    /// How the source stores it.
    pub stored: StorageKind,
    /// How it will be stored.
    pub written: StorageKind,
    /// Bytes in the source.
    pub stored_bytes: usize,
    /// Bytes that it will take, side data included.
    pub bytes: u64,
}

impl ExportedMatrix {
    pub(super) fn new(tensor: &PlannedTensor, file_name: String, written: StorageKind, bytes: u64) -> Self {
        let PlannedTensor { name, shape, role, stored, stored_bytes, .. } = tensor.clone();
        Self { name, file_name, shape, role, stored, written, stored_bytes, bytes }
    }
}
