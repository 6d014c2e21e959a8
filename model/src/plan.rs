//! What loading a model will take, known before it starts.

use emberlm_quant::format;
use emberlm_quant::host::HostWeight;

use crate::checkpoint::StorageKind;
use crate::tensors::{ModelPart, TensorRole};

/// Quantisation of dense weights while they are loaded: those [storages](StorageKind) that are written, of all that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantizeOnLoad {
    /// bitsandbytes NF4, blocks of 64 with f32 scales.
    Nf4,
    /// NF4 with the scales quantised to 8 bits (double quantisation).
    Nf4Double,
    /// Signed bytes in blocks of 64 with F16 scales.
    Int8,
    /// Signed bytes with one scale per row, as Nano compact stores them.
    Int8Rows,
}

impl QuantizeOnLoad {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Nf4, Self::Nf4Double, Self::Int8, Self::Int8Rows];

    /// The name of its [storage](Self::storage).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Nf4Double => "nf4-dq",
            Self::Int8 => "int8",
            Self::Int8Rows => "int8-rows",
        }
    }

    /// Bytes of a quantised `[n, k]` matrix with its side data.
    pub fn bytes(self, n: usize, k: usize) -> usize {
        let blocks = (n * k).div_ceil(64);
        match self {
            Self::Nf4 => (n * k).div_ceil(2) + 4 * blocks + 64,
            Self::Nf4Double => (n * k).div_ceil(2) + blocks + 4 * blocks.div_ceil(256) + 64 + 1024,
            Self::Int8 => n * k + 2 * n * k.div_ceil(format::INT8_BLOCK),
            Self::Int8Rows => n * k + 4 * n,
        }
    }

    /// How a quantised matrix is held.
    pub fn storage(self) -> StorageKind {
        match self {
            Self::Nf4 => StorageKind::Nf4 { double: false },
            Self::Nf4Double => StorageKind::Nf4 { double: true },
            Self::Int8 => StorageKind::Int8,
            Self::Int8Rows => StorageKind::Int8Rows,
        }
    }

    pub(crate) fn apply(self, weight: &HostWeight) -> Result<HostWeight, emberlm_quant::Error> {
        match self {
            Self::Nf4 => format::quantize_nf4(weight, false),
            Self::Nf4Double => format::quantize_nf4(weight, true),
            Self::Int8 => format::quantize_int8(weight),
            Self::Int8Rows => format::quantize_int8_rows(weight),
        }
    }
}

/// Bytes of the source read so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Read.
    pub done: usize,
    /// In all.
    pub total: usize,
}

/// One tensor of a [`LoadPlan`].
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// Canonical name.
    pub name: String,
    /// True shape.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: TensorRole,
    /// Which part of the model it belongs to.
    pub part: ModelPart,
    /// How the source stores it.
    pub stored: StorageKind,
    /// Bytes in the source.
    pub stored_bytes: usize,
    /// How the device holds it.
    pub storage: StorageKind,
    /// Bytes on the device.
    pub bytes: usize,
}

impl PlannedTensor {
    /// Elements.
    pub fn parameters(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Every tensor of a model, checked against its source, with the bytes it will take.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// In the order of loading.
    pub tensors: Vec<PlannedTensor>,
}

impl LoadPlan {
    /// Elements in all.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(PlannedTensor::parameters).sum()
    }

    /// Whether the source stores the matrices of the layers quantised.
    pub fn is_quantized(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.part == ModelPart::FeedForward && tensor.stored.is_quantized())
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Bytes needed while loading: the weights so far, and the tensor that is being read once more as it is stored, where it is held in another
    /// way; at the end all weights.
    pub fn peak_bytes(&self) -> usize {
        let mut held = 0;
        let peaks = self.tensors.iter().map(|tensor| {
            held += tensor.bytes;
            held + if tensor.storage == tensor.stored { 0 } else { tensor.stored_bytes }
        });
        peaks.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(stored: (StorageKind, usize), held: (StorageKind, usize)) -> PlannedTensor {
        PlannedTensor {
            name: String::new(),
            shape: vec![1],
            role: TensorRole::Projection,
            part: ModelPart::FeedForward,
            stored: stored.0,
            stored_bytes: stored.1,
            storage: held.0,
            bytes: held.1,
        }
    }

    /// What is read in place is there once; what is converted, beside what was loaded before it.
    #[test]
    fn the_peak_is_that_of_the_order_of_loading() {
        let (int8, nf4) = (StorageKind::Int8, StorageKind::Nf4 { double: false });
        let large = planned((int8, 100), (nf4, 50));
        let kept = planned((int8, 30), (int8, 30));
        let small = planned((int8, 20), (nf4, 10));
        for (tensors, peak) in [
            (vec![], 0),
            (vec![kept.clone()], 30),
            (vec![large.clone(), kept.clone(), small.clone()], 150),
            (vec![small.clone(), kept.clone(), large], 190),
            (vec![kept.clone(), small, kept], 70),
        ] {
            let plan = LoadPlan { tensors };
            assert_eq!(plan.peak_bytes(), peak);
            assert!(peak >= plan.weight_bytes());
        }
    }

    #[test]
    fn a_format_is_called_as_its_storage() {
        for format in QuantizeOnLoad::ALL {
            assert_eq!(format.name(), format.storage().to_string());
        }
    }
}
