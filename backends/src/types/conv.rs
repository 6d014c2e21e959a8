//! The shape of a causal convolution.

/// The shape of a depthwise causal convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Rows of the batch.
    pub batch: usize,
    /// New tokens.
    pub seq: usize,
    /// Channels.
    pub channels: usize,
    /// Taps.
    pub width: usize,
}
