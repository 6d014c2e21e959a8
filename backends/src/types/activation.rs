//! The non-linearity of the decoders of compressed caches.

/// Non-linearity between the two layers of a decoder of codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
