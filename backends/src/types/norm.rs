//! The shape of an RMS norm.

/// The shape of an RMS norm, and its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Rows.
    pub m: usize,
    /// Elements of a row.
    pub h: usize,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Whether the factor is `1 + w`.
    pub unit_offset: bool,
}
