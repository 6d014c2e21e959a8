//! Whether two parameters hold the same numbers, without reading either as a whole.

use bytes::Bytes;

use super::weights::{StoredAs, Weights};
use crate::Result;

/// Bytes of one of the two that are compared at once, and given back before the next.
const BLOCK: usize = 8 << 20;

impl Weights {
    /// Whether two parameters have the same shape and the same numbers, as `torch.equal` sees it; quantised ones also the same codes
    /// and scales. False when one of them is missing. The files are read in blocks up to the first difference, and their pages
    /// given back.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn same(&self, a: &str, b: &str) -> Result<bool> {
        let (Some(a), Some(b)) = (self.parameters.get(a), self.parameters.get(b)) else { return Ok(false) };
        if a.info.shape != b.info.shape || a.rows.is_some() || b.rows.is_some() {
            return Ok(false);
        }
        match (&a.stored, &b.stored) {
            (StoredAs::Dense { name: x, dtype: dx }, StoredAs::Dense { name: y, dtype: dy }) => {
                self.same_data((x, dx.size()), (y, dy.size()), |x, y| {
                    // Bits alone do not tell 0 from -0, nor one type from another.
                    (dx == dy && x == y) || dx.decode_all(x) == dy.decode_all(y)
                })
            }
            (StoredAs::Dense { .. }, _) | (_, StoredAs::Dense { .. }) => Ok(false),
            _ if a.info.storage != b.info.storage || a.info.tensors.len() != b.info.tensors.len() => Ok(false),
            _ => {
                for (x, y) in a.info.tensors.iter().zip(&b.info.tensors) {
                    if !self.same_data((x, 1), (y, 1), |x, y| x == y)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }

    /// Whether the data of two tensors, of elements of so many bytes, are equal block by block.
    fn same_data(&self, a: (&str, usize), b: (&str, usize), equal: impl Fn(&[u8], &[u8]) -> bool) -> Result<bool> {
        let (x, y) = (self.checkpoint().data(a.0)?, self.checkpoint().data(b.0)?);
        let count = |data: &Bytes, size: usize| data.len().checked_div(size);
        if count(&x, a.1) != count(&y, b.1) {
            return Ok(false);
        }
        let blocks = |size: usize| BLOCK.checked_div(8).unwrap_or(1).saturating_mul(size);
        let mut at = (0usize, 0usize);
        for (x, y) in x.chunks(blocks(a.1)).zip(y.chunks(blocks(b.1))) {
            let same = equal(x, y);
            self.checkpoint().release_part(a.0, at.0, x.len());
            self.checkpoint().release_part(b.0, at.1, y.len());
            if !same {
                return Ok(false);
            }
            at = (at.0.saturating_add(x.len()), at.1.saturating_add(y.len()));
        }
        Ok(true)
    }
}
