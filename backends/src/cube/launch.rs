//! What every launch needs: typed buffers, grids, and what the device can do.

use std::sync::atomic::{AtomicU64, Ordering};

use cubecl::ir::StorageType;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Cubes along one dimension of a grid that every device takes.
const MAX_CUBES: usize = 65_535;

/// Units of a cube that every device takes.
pub(super) const UNITS: u32 = 256;

/// A row-major array on a device.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Where it is.
    pub handle: Handle,
    /// Elements.
    pub len: usize,
    /// The type of an element.
    pub dtype: StorageType,
}

impl Buffer {
    /// An array of `len` elements.
    pub fn new(handle: Handle, len: usize, dtype: impl Into<StorageType>) -> Self {
        Self { handle, len, dtype: dtype.into() }
    }

    /// The whole array as the argument of a kernel that stays inside `len`.
    pub(super) fn arg<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: whoever made the buffer vouches for its length.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len) }
    }

    /// # Panics
    /// If the array does not have `len` elements.
    pub(super) fn check(&self, name: &str, len: usize) {
        assert!(self.len == len, "{name} has {} elements, not {len}", self.len);
    }

    /// # Panics
    /// If the elements are of another type: they would be read as what they are not.
    pub(super) fn check_type(&self, name: &str, dtype: StorageType) {
        assert!(self.dtype == dtype, "{name} is of {:?}, not {dtype:?}", self.dtype);
    }
}

/// Launches so far.
static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// Kernels launched from this module so far in this process; those of burn's own operations are not among them.
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

/// The grid of a launch, which is counted: at least `cubes` cubes; a kernel leaves at once when `CUBE_POS` is past the last.
pub(super) fn grid(cubes: usize) -> CubeCount {
    LAUNCHES.fetch_add(1, Ordering::Relaxed);
    let rows = cubes.div_ceil(MAX_CUBES).max(1);
    CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1)
}

/// A grid of cubes of [`UNITS`] with one unit for each of `elements`.
pub(super) fn grid_of_units(elements: usize) -> CubeCount {
    grid(elements.div_ceil(UNITS as usize))
}
