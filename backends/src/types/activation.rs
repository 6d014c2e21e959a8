//! The non-linearity of the decoders of compressed caches.

use std::fmt;

/// Non-linearity between the two layers of a decoder of codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CodeActivation {
    /// Exact GELU: `x Φ(x)`, by the error function.
    #[default]
    Gelu,
    /// GELU with the tanh approximation.
    GeluTanh,
    /// `x sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

impl CodeActivation {
    /// Every variant.
    pub const ALL: &'static [Self] = &[Self::Gelu, Self::GeluTanh, Self::Silu, Self::Relu];

    /// The spelling in configs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::Silu => "silu",
            Self::Relu => "relu",
        }
    }
}

impl fmt::Display for CodeActivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
