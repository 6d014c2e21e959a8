//! How a parameter is stored in a checkpoint or held on a device.

/// How a parameter is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StorageKind {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 4-bit NormalFloat blocks.
    Nf4 {
        /// The block scales are quantised themselves.
        double: bool,
    },
    /// 4-bit floating point blocks.
    Fp4 {
        /// The block scales are quantised themselves.
        double: bool,
    },
    /// Signed bytes with block scales.
    Int8,
    /// 8-bit rows.
    Int8Rows,
    /// 8-bit rows and narrower rows.
    MixedRows {
        /// Bits of the narrow rows, 2 or 4.
        bits: u32,
    },
}

impl StorageKind {
    /// Plain floating point numbers.
    pub fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Codes with scales.
    pub fn is_quantized(self) -> bool {
        !self.is_dense()
    }
}

impl std::fmt::Display for StorageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::F32 => f.pad("f32"),
            Self::F16 => f.pad("f16"),
            Self::Bf16 => f.pad("bf16"),
            Self::Nf4 { double: false } => f.pad("nf4"),
            Self::Nf4 { double: true } => f.pad("nf4-dq"),
            Self::Fp4 { double: false } => f.pad("fp4"),
            Self::Fp4 { double: true } => f.pad("fp4-dq"),
            Self::Int8 => f.pad("int8"),
            Self::Int8Rows => f.pad("int8-rows"),
            Self::MixedRows { bits } => f.pad(&format!("int8+int{bits}")),
        }
    }
}
