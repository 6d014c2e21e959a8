//! Weight matrices on a device in every storage the kernels read.

use cubecl::prelude::*;

use crate::check::elements as count;
use crate::cube::eight_bits::signed_byte;
use crate::cube::half::half_to_float;
use crate::cube::launch::{Buffer, MAX_ELEMENTS};
use crate::types::{self, INT8_BLOCK};

/// A matrix `[n, k]` on a device, row-major. Bytes and halves are packed into U32 words, little-endian; rows of a width are absent where
/// there are none, since a device has no empty buffers.
pub type Weight = types::Weight<Buffer, Buffer, Buffer, Option<Buffer>, Buffer, Buffer>;
/// How the elements of a [`Weight`] are stored.
pub type Matrix = types::Matrix<Buffer, Buffer, Buffer, Option<Buffer>, Buffer, Buffer>;
/// 4-bit codes with a code book.
pub type CodeBook4 = types::CodeBook4<Buffer, Buffer, Buffer>;
/// The block scales of a [`CodeBook4`].
pub type BlockScales = types::BlockScales<Buffer, Buffer>;
/// Signed bytes with a scale per block of a row.
pub type Int8 = types::Int8<Buffer, Buffer>;
/// Integer rows with one scale each.
pub type IntegerRows = types::IntegerRows<Buffer, Option<Buffer>, Buffer>;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WeightLayout {
    pub storage: Storage,
    /// Rows are whole units of eight elements, each inside a block and at a word (2-bit codes: at half a word).
    pub aligned: bool,
}

/// Which code a kernel is compiled with: the storage of a [`Matrix`] without its buffers, and the sizes that are constants of the
/// kernel. It is hashed to find a compiled kernel, which buffers are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Storage {
    F32,
    F16,
    Bf16,
    CodeBook4 {
        block: u32,
        /// Scales per absmax, when scales are quantised.
        nested: Option<u32>,
    },
    Int8,
    Rows {
        wide: bool,
        /// Bits of the narrow rows, 0 without any.
        narrow: u32,
        slots: bool,
    },
}

/// A [`Weight`] as the argument of a kernel. What a storage does not have is bound to any other buffer and not read.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Packed<W: Size> {
    /// Floats, halves, codes or wide rows; a unit of eight elements is one or two vectors where rows are aligned.
    codes: Array<Vector<u32, W>>,
    /// Narrow rows, or the block scales of bytes, or the codes of other block scales.
    narrow: Array<u32>,
    slots: Array<u32>,
    /// Of rows or blocks, or the absmax of block scales.
    scales: Array<f32>,
    code_book: Array<f32>,
    map: Array<f32>,
    offset: f32,
    wide_rows: u32,
    /// Bytes.
    narrow_stride: u32,
    pub(super) n: u32,
    pub(super) k: u32,
    #[cube(comptime)]
    layout: WeightLayout,
}

impl Weight {
    /// # Panics
    /// If a buffer is shorter than the matrix needs, or not of 32 bits, or the matrix has more than [`MAX_ELEMENTS`].
    pub(super) fn check(&self) {
        let elements = count("a matrix", &[self.n, self.k]);
        assert!(elements <= MAX_ELEMENTS, "a matrix of {elements} elements, kernels count to {MAX_ELEMENTS}");
        let enough = |what: &str, buffer: &Buffer, len: usize| {
            assert!(buffer.len >= len, "{what} has {} elements, {len} needed", buffer.len);
            buffer.check_words(what);
        };
        match &self.data {
            Matrix::F32(w) => enough("weight", w, elements),
            Matrix::F16(w) | Matrix::Bf16(w) => enough("weight", w, elements.div_ceil(2)),
            Matrix::CodeBook4(w) => {
                assert!(u32::try_from(w.block).is_ok_and(|block| block > 0), "blocks of {} elements", w.block);
                enough("codes", &w.codes, elements.div_ceil(8));
                enough("code book", &w.code_book, 16);
                let blocks = elements.div_ceil(w.block);
                match &w.scales {
                    BlockScales::Single(scales) => enough("block scales", scales, blocks),
                    BlockScales::Double { codes, map, absmax, block, .. } => {
                        assert!(u32::try_from(*block).is_ok_and(|block| block > 0), "{block} scales per absmax");
                        enough("scale codes", codes, blocks.div_ceil(4));
                        enough("scale map", map, 256);
                        enough("nested absmax", absmax, blocks.div_ceil(*block));
                    }
                }
            }
            Matrix::Int8(w) => {
                enough("codes", &w.codes, elements.div_ceil(4));
                enough("block scales", &w.scales, (self.n * self.k.div_ceil(INT8_BLOCK)).div_ceil(2));
            }
            Matrix::IntegerRows(w) => {
                assert!(w.wide_rows <= self.n, "{} wide rows in a matrix of {}", w.wide_rows, self.n);
                let part = |what: &str, buffer: &Option<Buffer>, bytes: usize| match buffer {
                    Some(buffer) => enough(what, buffer, bytes.div_ceil(4)),
                    None => assert!(bytes == 0, "{what} are absent"),
                };
                part("wide rows", &w.wide, w.wide_rows * self.k);
                let narrow = self.n - w.wide_rows;
                assert!(narrow == 0 || matches!(w.narrow_bits, 2 | 4), "narrow rows of {} bits", w.narrow_bits);
                let row = if narrow == 0 { 0 } else { (self.k * w.narrow_bits as usize).div_ceil(8) };
                assert!(narrow == 0 || w.narrow_stride >= row, "narrow rows of {} bytes", w.narrow_stride);
                let before_last = count("narrow rows", &[narrow.saturating_sub(1), w.narrow_stride]);
                let bytes = before_last.saturating_add(row);
                assert!(bytes <= MAX_ELEMENTS, "{bytes} bytes of narrow rows, kernels count to {MAX_ELEMENTS}");
                part("narrow rows", &w.narrow, bytes);
                enough("row scales", &w.scales, self.n);
                if let Some(slots) = &w.slots {
                    enough("row slots", slots, self.n);
                }
            }
        }
    }

    pub(super) fn layout(&self) -> WeightLayout {
        let units = self.k.is_multiple_of(8);
        match &self.data {
            Matrix::F32(_) => WeightLayout { storage: Storage::F32, aligned: units },
            Matrix::F16(_) => WeightLayout { storage: Storage::F16, aligned: units },
            Matrix::Bf16(_) => WeightLayout { storage: Storage::Bf16, aligned: units },
            Matrix::CodeBook4(w) => {
                let nested = match &w.scales {
                    BlockScales::Single(_) => None,
                    BlockScales::Double { block, .. } => Some(*block as u32),
                };
                let storage = Storage::CodeBook4 { block: w.block as u32, nested };
                WeightLayout { storage, aligned: units && w.block.is_multiple_of(8) }
            }
            Matrix::Int8(_) => WeightLayout { storage: Storage::Int8, aligned: units },
            Matrix::IntegerRows(w) => {
                let narrow = if w.narrow.is_some() { w.narrow_bits } else { 0 };
                let storage = Storage::Rows { wide: w.wide.is_some(), narrow, slots: w.slots.is_some() };
                let whole = narrow == 0 || w.narrow_stride.is_multiple_of(narrow as usize);
                WeightLayout { storage, aligned: units && whole }
            }
        }
    }

    /// Words that a kernel reads of [`Packed::codes`] at once.
    pub(super) fn vector(&self) -> usize {
        match (self.layout(), &self.data) {
            (WeightLayout { aligned: false, .. }, _) | (_, Matrix::CodeBook4(_)) => 1,
            (_, Matrix::Int8(_) | Matrix::IntegerRows(_)) => 2,
            (_, Matrix::F32(_) | Matrix::F16(_) | Matrix::Bf16(_)) => 4,
        }
    }

    /// The argument of a kernel.
    pub(super) fn arg<W: Size, R: Runtime>(&self) -> PackedLaunch<W, R> {
        let (mut offset, mut wide_rows, mut narrow_stride) = (0.0, 0, 0);
        let [codes, narrow, slots, scales, code_book, map] = match &self.data {
            Matrix::F32(w) | Matrix::F16(w) | Matrix::Bf16(w) => [w; 6],
            Matrix::CodeBook4(w) => {
                let side = match &w.scales {
                    BlockScales::Single(scales) => [&w.codes, scales, &w.code_book],
                    BlockScales::Double { codes, map, absmax, offset: added, .. } => {
                        offset = *added;
                        [codes, absmax, map]
                    }
                };
                [&w.codes, side[0], &w.codes, side[1], &w.code_book, side[2]]
            }
            Matrix::Int8(Int8 { codes, scales }) => [codes, scales, codes, codes, codes, codes],
            Matrix::IntegerRows(w) => {
                (wide_rows, narrow_stride) = (w.wide_rows as u32, w.narrow_stride as u32);
                let any = &w.scales;
                fn or<'a>(buffer: &'a Option<Buffer>, other: &'a Buffer) -> &'a Buffer {
                    buffer.as_ref().unwrap_or(other)
                }
                [or(&w.wide, any), or(&w.narrow, any), or(&w.slots, any), any, any, any]
            }
        };
        PackedLaunch::new(
            codes.arg(),
            narrow.arg(),
            slots.arg(),
            scales.arg(),
            code_book.arg(),
            map.arg(),
            offset,
            wide_rows,
            narrow_stride,
            self.n as u32,
            self.k as u32,
            self.layout(),
        )
    }
}

/// Four numbers.
pub(super) type Four = Vector<f32, Const<4>>;

/// Eight neighbouring elements of a row.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Eight {
    pub low: Four,
    pub high: Four,
}

/// The code book where every unit reads it fast. All units of the cube must come here together.
#[cube]
pub(super) fn shared_code_book<W: Size>(w: &Packed<W>) -> SharedMemory<f32> {
    let mut book = SharedMemory::<f32>::new(16usize);
    if comptime!(matches!(w.layout.storage, Storage::CodeBook4 { .. })) {
        if UNIT_POS < 16 {
            book[UNIT_POS as usize] = w.code_book[UNIT_POS as usize];
        }
        sync_cube();
    }
    book
}

/// Where output row `row` is stored: in any case inside the matrix.
#[cube]
pub(super) fn stored_row<W: Size>(w: &Packed<W>, row: u32) -> u32 {
    if comptime!(matches!(w.layout.storage, Storage::Rows { slots: true, .. })) {
        min(w.slots[row as usize], w.n - 1)
    } else {
        row
    }
}

/// What the sum over a stored row is multiplied by.
#[cube]
pub(super) fn row_factor<W: Size>(w: &Packed<W>, row: u32) -> f32 {
    if comptime!(matches!(w.layout.storage, Storage::Rows { .. })) { w.scales[row as usize] } else { 1.0f32.runtime() }
}

/// What unit `unit` of a stored row is multiplied by.
#[cube]
pub(super) fn unit_factor<W: Size>(w: &Packed<W>, row: u32, unit: u32, k: u32) -> f32 {
    match comptime!((w.layout.storage, w.layout.aligned)) {
        (Storage::CodeBook4 { block, .. }, true) => block_scale(w, (row * k + unit * 8) / block),
        (Storage::Int8, true) => int8_scale(w, row, unit * 8, k),
        _ => 1.0f32.runtime(),
    }
}

/// Unit `unit` of a stored row, still to be multiplied by [`unit_factor`] and [`row_factor`]. Elements past the row are 0.
#[cube]
pub(super) fn eight<W: Size>(w: &Packed<W>, book: &SharedMemory<f32>, row: u32, unit: u32, k: u32) -> Eight {
    if comptime!(w.layout.aligned) {
        let at = row * (k / 8) + unit;
        match comptime!(w.layout.storage) {
            Storage::F32 => Eight {
                low: floats::<W>(w.codes[(at * 2) as usize]),
                high: floats::<W>(w.codes[(at * 2 + 1) as usize]),
            },
            Storage::F16 => {
                let words = w.codes[at as usize];
                halves(words[0], words[1], words[2], words[3], false)
            }
            Storage::Bf16 => {
                let words = w.codes[at as usize];
                halves(words[0], words[1], words[2], words[3], true)
            }
            Storage::CodeBook4 { .. } => looked_up(book, u32::cast_from(w.codes[at as usize])),
            Storage::Int8 => {
                let words = w.codes[at as usize];
                Eight { low: bytes(words[0]), high: bytes(words[1]) }
            }
            Storage::Rows { wide, narrow, .. } => {
                if comptime!(narrow == 0) {
                    let words = w.codes[at as usize];
                    Eight { low: bytes(words[0]), high: bytes(words[1]) }
                } else if comptime!(!wide) {
                    narrow_codes(narrow_word(w, row, unit, narrow), narrow)
                } else {
                    let mut out = Eight { low: Four::new(0.0), high: Four::new(0.0) };
                    if row < w.wide_rows {
                        let words = w.codes[at as usize];
                        out.low = bytes(words[0]);
                        out.high = bytes(words[1]);
                    } else {
                        let codes = narrow_codes(narrow_word(w, row - w.wide_rows, unit, narrow), narrow);
                        out.low = codes.low;
                        out.high = codes.high;
                    }
                    out
                }
            }
        }
    } else {
        // A loop, not unrolled: on this path code size costs more than speed.
        let mut values = Array::<f32>::new(8usize);
        for i in 0..8u32 {
            values[i as usize] = 0.0;
            if unit * 8 + i < k {
                values[i as usize] = element(w, book, row, unit * 8 + i, k);
            }
        }
        eight_of_values(&values)
    }
}

/// Eight numbers that were gathered one by one.
#[cube]
pub(super) fn eight_of_values(values: &Array<f32>) -> Eight {
    let mut low = Four::new(0.0);
    let mut high = Four::new(0.0);
    #[unroll]
    for i in 0..4usize {
        low[i] = values[i];
        high[i] = values[i + 4];
    }
    Eight { low, high }
}

#[cube]
fn floats<W: Size>(words: Vector<u32, W>) -> Four {
    let mut out = Four::new(0.0);
    #[unroll]
    for i in 0..4usize {
        out[i] = f32::reinterpret(words[i]);
    }
    out
}

/// Eight halves, the earlier of each word in its low half.
#[cube]
fn halves(a: u32, b: u32, c: u32, d: u32, #[comptime] bfloat: bool) -> Eight {
    let mut low = Four::new(0.0);
    let mut high = Four::new(0.0);
    low[0] = half(a & 0xffff, bfloat);
    low[1] = half(a >> 16, bfloat);
    low[2] = half(b & 0xffff, bfloat);
    low[3] = half(b >> 16, bfloat);
    high[0] = half(c & 0xffff, bfloat);
    high[1] = half(c >> 16, bfloat);
    high[2] = half(d & 0xffff, bfloat);
    high[3] = half(d >> 16, bfloat);
    Eight { low, high }
}

#[cube]
fn half(bits: u32, #[comptime] bfloat: bool) -> f32 {
    if comptime!(bfloat) { f32::reinterpret(bits << 16) } else { half_to_float(bits) }
}

/// Eight codes of a word into the book, the earlier of each byte in the high nibble.
#[cube]
fn looked_up(book: &SharedMemory<f32>, word: u32) -> Eight {
    let mut low = Four::new(0.0);
    let mut high = Four::new(0.0);
    #[unroll]
    for byte in 0..2u32 {
        let (even, odd) = comptime!((2 * byte as usize, 2 * byte as usize + 1));
        low[even] = book[((word >> comptime!(8 * byte + 4)) & 15) as usize];
        low[odd] = book[((word >> comptime!(8 * byte)) & 15) as usize];
        high[even] = book[((word >> comptime!(8 * byte + 20)) & 15) as usize];
        high[odd] = book[((word >> comptime!(8 * byte + 16)) & 15) as usize];
    }
    Eight { low, high }
}

/// Four signed bytes.
#[cube]
fn bytes(word: u32) -> Four {
    let mut out = Four::new(0.0);
    #[unroll]
    for i in 0..4u32 {
        out[i as usize] = signed_byte(word, i);
    }
    out
}

/// The word, or the half of it, with the eight codes of a unit.
#[cube]
fn narrow_word<W: Size>(w: &Packed<W>, row: u32, unit: u32, #[comptime] bits: u32) -> u32 {
    let at = row * w.narrow_stride + unit * bits;
    w.narrow[(at / 4) as usize] >> (at % 4 * 8)
}

/// Eight codes of 2 or 4 bits, the earliest lowest.
#[cube]
fn narrow_codes(word: u32, #[comptime] bits: u32) -> Eight {
    let mut low = Four::new(0.0);
    let mut high = Four::new(0.0);
    let mask = comptime!((1u32 << bits) - 1);
    let zero = comptime!(((1u32 << (bits - 1)) - 1) as f32);
    #[unroll]
    for i in 0..4u32 {
        low[i as usize] = f32::cast_from((word >> comptime!(i * bits)) & mask) - zero;
        high[i as usize] = f32::cast_from((word >> comptime!((i + 4) * bits)) & mask) - zero;
    }
    Eight { low, high }
}

/// The scale of a block.
#[cube]
fn block_scale<W: Size>(w: &Packed<W>, block: u32) -> f32 {
    match comptime!(w.layout.storage) {
        Storage::CodeBook4 { nested: Some(nested), .. } => {
            let code = (w.narrow[(block / 4) as usize] >> (block % 4 * 8)) & 255;
            w.map[code as usize] * w.scales[(block / nested) as usize] + w.offset
        }
        _ => w.scales[block as usize],
    }
}

/// The scale of the bytes about `column` of a row.
#[cube]
fn int8_scale<W: Size>(w: &Packed<W>, row: u32, column: u32, k: u32) -> f32 {
    let block = comptime!(INT8_BLOCK as u32);
    let at = row * k.div_ceil(block) + column / block;
    half_to_float((w.narrow[(at / 2) as usize] >> (at % 2 * 16)) & 0xffff)
}

/// Element `column` of a stored row, still to be multiplied by [`row_factor`]: for rows that are not aligned.
#[cube]
fn element<W: Size>(w: &Packed<W>, book: &SharedMemory<f32>, row: u32, column: u32, k: u32) -> f32 {
    let at = row * k + column;
    match comptime!(w.layout.storage) {
        Storage::F32 => f32::reinterpret(u32::cast_from(w.codes[at as usize])),
        Storage::F16 => half((u32::cast_from(w.codes[(at / 2) as usize]) >> (at % 2 * 16)) & 0xffff, false),
        Storage::Bf16 => half((u32::cast_from(w.codes[(at / 2) as usize]) >> (at % 2 * 16)) & 0xffff, true),
        Storage::CodeBook4 { block, .. } => {
            let word = u32::cast_from(w.codes[(at / 8) as usize]);
            let code = (word >> (at % 8 / 2 * 8 + (1 - at % 2) * 4)) & 15;
            book[code as usize] * block_scale(w, at / block)
        }
        Storage::Int8 => byte_element(w, at) * int8_scale(w, row, column, k),
        Storage::Rows { wide, narrow, .. } => {
            if comptime!(narrow == 0) {
                byte_element(w, at)
            } else if comptime!(!wide) {
                narrow_element(w, row, column, narrow)
            } else {
                let is_wide = row < w.wide_rows;
                let mut out = 0.0f32;
                if is_wide {
                    out += byte_element(w, at);
                } else {
                    out += narrow_element(w, row - w.wide_rows, column, narrow);
                }
                out
            }
        }
    }
}

#[cube]
fn byte_element<W: Size>(w: &Packed<W>, at: u32) -> f32 {
    let word = u32::cast_from(w.codes[(at / 4) as usize]);
    f32::cast_from(i32::reinterpret(word << (24 - at % 4 * 8)) >> 24)
}

#[cube]
fn narrow_element<W: Size>(w: &Packed<W>, row: u32, column: u32, #[comptime] bits: u32) -> f32 {
    let at = row * w.narrow_stride + column * bits / 8;
    let shift = at % 4 * 8 + column * bits % 8;
    let code = (w.narrow[(at / 4) as usize] >> shift) & comptime!((1u32 << bits) - 1);
    f32::cast_from(code) - comptime!(((1u32 << (bits - 1)) - 1) as f32)
}
