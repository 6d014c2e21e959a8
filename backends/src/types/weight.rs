//! Weight matrices in every storage that the kernels read: the one description of them, whoever holds the numbers.
//!
//! What holds them are the type parameters: slices on the CPU, buffers on a GPU, tensors of a framework above. Lengths are said for
//! slices; where there is only one kind of buffer, of U32 words, bytes are packed four and halves two to a word, little-endian.
//!
//! - `Floats`: F32 numbers
//! - `Halves`: bit patterns of 16 bits
//! - `Bytes`: codes, signed or not
//! - `RowBytes`: bytes of the rows of one width, of which there may be none
//! - `Indices`: U32 numbers
//! - `Book`: 16 F32 numbers

/// Elements of a row that share a scale in [`Matrix::Int8`].
pub const INT8_BLOCK: usize = 64;

/// A matrix `[n, k]`, row-major: n outputs, k inputs.
#[derive(Clone, Copy, Debug)]
pub struct Weight<Floats, Halves, Bytes, RowBytes, Indices, Book> {
    /// Outputs (rows).
    pub n: usize,
    /// Inputs (columns).
    pub k: usize,
    /// The elements.
    pub data: Matrix<Floats, Halves, Bytes, RowBytes, Indices, Book>,
}

/// How the elements of a [`Weight`] are stored.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<Floats, Halves, Bytes, RowBytes, Indices, Book> {
    /// `n * k` floats.
    F32(Floats),
    /// `n * k` IEEE half-precision bit patterns.
    F16(Halves),
    /// `n * k` bfloat16 bit patterns.
    Bf16(Halves),
    /// 4-bit codes into a book of 16 values, scaled per block (bitsandbytes nf4, fp4).
    CodeBook4(CodeBook4<Floats, Bytes, Book>),
    /// Signed bytes with a scale per block of [`INT8_BLOCK`] elements of a row.
    Int8(Int8<Halves, Bytes>),
    /// Whole rows of 8-, 4- or 2-bit integers with one scale each (Nano compact).
    IntegerRows(IntegerRows<Floats, RowBytes, Indices>),
}

/// Signed bytes; `value = code * scale[row, column / 64]`.
///
/// Every row begins a block, so that no block crosses rows; the last block of a row is short where `k` is not a multiple of
/// [`INT8_BLOCK`].
#[derive(Clone, Copy, Debug)]
pub struct Int8<Halves, Bytes> {
    /// `n * k` signed bytes.
    pub codes: Bytes,
    /// `n * ceil(k / 64)` IEEE half-precision bit patterns.
    pub scales: Halves,
}

/// 4-bit codes with a code book; `value = code_book[code] * scale[element / block]`.
///
/// Blocks run over the flattened matrix, so a block may cross rows.
#[derive(Clone, Copy, Debug)]
pub struct CodeBook4<Floats, Bytes, Book> {
    /// Two codes per byte, the even element in the high nibble. At least `ceil(n * k / 2)` bytes; padding is ignored.
    pub codes: Bytes,
    /// The value of each code.
    pub code_book: Book,
    /// Elements per block.
    pub block: usize,
    /// One scale per block.
    pub scales: BlockScales<Floats, Bytes>,
}

/// The block scales of a [`CodeBook4`].
#[derive(Clone, Copy, Debug)]
pub enum BlockScales<Floats, Bytes> {
    /// One float per block.
    Single(Floats),
    /// Quantised scales: `scale[i] = map[codes[i]] * absmax[i / block] + offset`, the product rounded before the sum.
    Double {
        /// One byte per block of the matrix.
        codes: Bytes,
        /// The 256 values of a byte.
        map: Floats,
        /// One float per `block` scales.
        absmax: Floats,
        /// Scales per `absmax`.
        block: usize,
        /// Added to every scale.
        offset: f32,
    },
}

/// Integer rows: first `wide_rows` rows of i8, then rows of 2- or 4-bit codes; `value = code * scale[row]`.
#[derive(Clone, Copy, Debug)]
pub struct IntegerRows<Floats, RowBytes, Indices> {
    /// `wide_rows * k` signed bytes.
    pub wide: RowBytes,
    /// How many stored rows are wide.
    pub wide_rows: usize,
    /// The narrow rows, least significant element first; 2-bit codes are stored plus 1, 4-bit codes plus 7.
    pub narrow: RowBytes,
    /// Bytes from one narrow row to the next, at least `ceil(k * narrow_bits / 8)`.
    pub narrow_stride: usize,
    /// 2 or 4; read only when there are narrow rows.
    pub narrow_bits: u32,
    /// One scale per stored row, wide rows first.
    pub scales: Floats,
    /// The stored row of each output row; `None` when they are in order.
    pub slots: Option<Indices>,
}
