//! What can be wrong with a weight on the host.

use crate::host::FloatType;

/// The result of a fallible operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong with a weight, and what to do next.
///
/// The weight has no name here: whoever knows the tensor's name adds it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing in the weight.
    #[error("a weight of {n} x {k} has no elements; check the shape in the checkpoint")]
    Empty {
        /// Rows.
        n: usize,
        /// Columns.
        k: usize,
    },
    /// The shape has more elements than this machine can count.
    #[error("a weight of {n} x {k} elements is too large to address; check the shape in the checkpoint")]
    TooLarge {
        /// Rows.
        n: usize,
        /// Columns.
        k: usize,
    },
    /// A buffer does not hold what the shape asks for.
    #[error(
        "{part} has {found} entries where a weight of {n} x {k} needs {expected}; the checkpoint is damaged or its \
         shape is wrong"
    )]
    Length {
        /// Which buffer.
        part: &'static str,
        /// Rows.
        n: usize,
        /// Columns.
        k: usize,
        /// Entries the buffer has.
        found: usize,
        /// Entries it should have.
        expected: usize,
    },
    /// A number of the side data cannot be used.
    #[error("{part}: {message}")]
    SideData {
        /// Which number or list.
        part: &'static str,
        /// What was found and what is allowed.
        message: String,
    },
    /// A weight that is to be quantised holds NaN or an infinity.
    #[error(
        "row {row}, column {column} is {value}; only finite numbers can be quantised, so load it unquantised or repair it"
    )]
    NonFinite {
        /// Row of the first such element.
        row: usize,
        /// Column of the first such element.
        column: usize,
        /// The element.
        value: f32,
    },
    /// A row is too large for a scale in half precision.
    #[error(
        "row {row} reaches {absmax}, too large for an f16 row scale; quantise this weight to NF4 or keep it unquantised"
    )]
    RowTooLarge {
        /// The first such row.
        row: usize,
        /// Its largest magnitude.
        absmax: f32,
    },
    /// A number is larger than the type that it is converted to has.
    #[error("row {row}, column {column} is {value}, beyond the numbers of {float}; convert to bf16 or f32")]
    Beyond {
        /// Row of the first such element.
        row: usize,
        /// Column of the first such element.
        column: usize,
        /// The element.
        value: f32,
        /// The type.
        float: FloatType,
    },
    /// Block scales cannot be quantised themselves.
    #[error("the {blocks} block scales are too large to be averaged; quantise this weight without double quantisation")]
    ScalesTooLarge {
        /// How many there are.
        blocks: usize,
    },
    /// Only dense weights can be quantised.
    #[error("the weight is stored as {found} already; dequantise it first, or load it as it is")]
    NotDense {
        /// The storage it has.
        found: &'static str,
    },
    /// Not even a few rows fit a buffer of the device.
    #[error(
        "{rows} rows, the fewest that can be cut off, take {bytes} bytes, but buffers of this device end at {limit}; quantise \
             the weight or use another device"
    )]
    RowsBeyondBuffer {
        /// Rows that must stay together.
        rows: usize,
        /// What they take.
        bytes: usize,
        /// Bytes of the largest buffer.
        limit: usize,
    },
    /// Not even a few rows fit what the kernels of the device count.
    #[error(
        "{rows} rows, the fewest that can be cut off, have {elements} elements, but kernels of this device count to {limit}; use \
             another device"
    )]
    RowsBeyondCount {
        /// Rows that must stay together.
        rows: usize,
        /// Elements that they have.
        elements: usize,
        /// Elements of the largest matrix.
        limit: usize,
    },
    /// A weight that a device holds in parts is wanted as a whole.
    #[error(
        "a weight of {n} x {k} is in parts on this device; load it without a limit of its buffers, or on the processor, to read it back"
    )]
    InParts {
        /// Rows.
        n: usize,
        /// Columns.
        k: usize,
    },
    /// A device stopped working.
    #[error("the device failed: {0}")]
    Device(String),
    /// There is no row format of that width.
    #[error("rows of {bits} bits are not supported; choose 2, 4, 6 or 8")]
    Bits {
        /// What was asked for.
        bits: u32,
    },
}
