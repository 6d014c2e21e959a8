//! Do the buffers of a weight fit its shape, and is its side data usable?

use emberlm_backends::cpu::INT8_BLOCK;

use crate::error::{Error, Result};
use crate::host::{FloatType, HostCodeBook4, HostInt8, HostRows, HostScales, HostStorage, HostWeight};

/// Checks everything about a weight that the readers and packers rely on.
///
/// Lengths of all buffers, finite code book, map and scales, row widths, and that `slots` names every stored row once.
/// Dense numbers are not looked at: NaN in a dense weight is a value like any other.
///
/// # Errors
/// The first thing that does not fit.
pub fn check(weight: &HostWeight) -> Result<()> {
    let (n, k) = (weight.n, weight.k);
    if n == 0 || k == 0 {
        return Err(Error::Empty { n, k });
    }
    // Twice the count must be addressable too: bytes of half precision, and element indices one block past the end.
    let elements = n.checked_mul(k).filter(|&e| e <= isize::MAX as usize / 8).ok_or(Error::TooLarge { n, k })?;
    match &weight.storage {
        HostStorage::Dense(float, data) => length("the data", (n, k), data.len(), elements * float.size()),
        HostStorage::CodeBook4(w) => check_code_book((n, k), elements, w),
        HostStorage::Int8(w) => check_int8((n, k), elements, w),
        HostStorage::Rows(w) => check_rows((n, k), w),
    }
}

fn check_code_book(shape: (usize, usize), elements: usize, w: &HostCodeBook4) -> Result<()> {
    length("codes", shape, w.codes.len(), elements.div_ceil(2))?;
    finite("code book", &w.code_book)?;
    if w.block == 0 {
        return Err(side_data("block size", "is 0; it must be at least 1".into()));
    }
    let blocks = elements.div_ceil(w.block);
    match &w.scales {
        HostScales::Single(data) => {
            length("absmax bytes", shape, data.len(), blocks * 4)?;
            let bad = FloatType::F32.first_non_finite(data);
            bad.map_or(Ok(()), |i| Err(side_data("absmax", format!("entry {i} is not finite"))))
        }
        HostScales::Double { codes, map, absmax, block, offset } => {
            length("absmax codes", shape, codes.len(), blocks)?;
            length("nested quant map", shape, map.len(), 256)?;
            finite("nested quant map", map)?;
            if *block == 0 {
                return Err(side_data("nested block size", "is 0; it must be at least 1".into()));
            }
            length("nested absmax", shape, absmax.len(), blocks.div_ceil(*block))?;
            finite("nested absmax", absmax)?;
            finite("nested offset", &[*offset])
        }
    }
}

fn check_int8(shape: (usize, usize), elements: usize, w: &HostInt8) -> Result<()> {
    length("8-bit codes", shape, w.codes.len(), elements)?;
    length("block scale bytes", shape, w.scales.len(), 2 * shape.0 * shape.1.div_ceil(INT8_BLOCK))?;
    let bad = FloatType::F16.first_non_finite(&w.scales);
    bad.map_or(Ok(()), |i| Err(side_data("block scales", format!("entry {i} is not finite"))))
}

fn check_rows(shape: (usize, usize), w: &HostRows) -> Result<()> {
    let (n, k) = shape;
    if !matches!(w.narrow_bits, 2 | 4) {
        return Err(Error::SideData {
            part: "narrow rows",
            message: format!("have {} bits; 2 and 4 are supported", w.narrow_bits),
        });
    }
    let Some(narrow_rows) = n.checked_sub(w.wide_rows) else {
        return Err(side_data("wide rows", format!("are {} of {n} rows", w.wide_rows)));
    };
    length("8-bit codes", shape, w.wide.len(), w.wide_rows * k)?;
    length("packed codes", shape, w.narrow.len(), narrow_rows * narrow_row_bytes(k, w.narrow_bits))?;
    length("row scales", shape, w.scales.len(), n)?;
    finite("row scales", &w.scales)?;
    let Some(slots) = &w.slots else { return Ok(()) };
    length("row slots", shape, slots.len(), n)?;
    let mut seen = vec![false; n];
    for (row, &slot) in slots.iter().enumerate() {
        match seen.get_mut(slot as usize) {
            None => {
                return Err(side_data("row slots", format!("row {row} is in slot {slot} of {n}")));
            }
            Some(seen) if *seen => {
                return Err(side_data("row slots", format!("slot {slot} holds two rows")));
            }
            Some(seen) => *seen = true,
        }
    }
    Ok(())
}

/// Bytes of one packed row of `k` codes.
pub(super) const fn narrow_row_bytes(k: usize, bits: u32) -> usize {
    k.div_ceil(8 / bits as usize)
}

fn side_data(part: &'static str, message: String) -> Error {
    Error::SideData { part, message }
}

fn length(part: &'static str, (n, k): (usize, usize), found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Length { part, n, k, found, expected }) }
}

fn finite(part: &'static str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(i) => Err(side_data(part, format!("entry {i} is {}; finite numbers are needed", values[i]))),
    }
}
