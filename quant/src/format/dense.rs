//! A dense weight that is about to be quantised.

use super::check::check;
use crate::error::{Error, Result};
use crate::host::{FloatType, HostStorage, HostWeight};

/// Elements at most of a piece of work. Rayon stops to halve what nobody has taken by then, and a thread that is slow, as where the system has to
/// find pages for it, would be waited for.
pub(super) const PIECE: usize = 1 << 20;

/// A checked view of a dense weight.
pub(super) struct Dense<'a> {
    pub n: usize,
    pub k: usize,
    pub float: FloatType,
    /// `n * k` encoded numbers.
    pub data: &'a [u8],
}

impl<'a> Dense<'a> {
    pub fn new(weight: &'a HostWeight) -> Result<Self> {
        check(weight)?;
        let found = match &weight.storage {
            &HostStorage::Dense(float, ref data) => {
                return Ok(Self { n: weight.n, k: weight.k, float, data });
            }
            HostStorage::CodeBook4(_) => "4-bit codes",
            HostStorage::Int8(_) => "8-bit blocks",
            HostStorage::Rows(_) => "integer rows",
        };
        Err(Error::NotDense { found })
    }

    pub fn elements(&self) -> usize {
        self.n * self.k
    }

    /// Decodes elements `start..start + out.len()` of the flattened matrix.
    #[inline(always)]
    pub fn read(&self, start: usize, out: &mut [f32]) {
        let size = self.float.size();
        self.float.decode(&self.data[start * size..(start + out.len()) * size], out);
    }

    /// Fails if a group of `length` consecutive elements has a largest magnitude that is not finite.
    pub fn check_finite(&self, absmax: &[f32], length: usize) -> Result<()> {
        let Some(group) = absmax.iter().position(|a| !a.is_finite()) else {
            return Ok(());
        };
        let start = group * length;
        let mut values = vec![0.0; length.min(self.elements() - start)];
        self.read(start, &mut values);
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => {
                let element = start + i;
                Err(Error::NonFinite { row: element / self.k, column: element % self.k, value: values[i] })
            }
            None => Ok(()),
        }
    }
}
