//! What every launch needs: typed buffers, grids, and what the device can do.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::check::check_len;

/// Cubes along one dimension of a grid that every device takes.
const MAX_CUBES: usize = 65_535;

/// Units of a cube that every device takes.
pub(super) const UNITS: u32 = 256;

/// Elements of the largest array, or matrix, that kernels take: they count in 32 bits, and the last cubes of a grid may count a
/// little beyond the last element.
pub const MAX_ELEMENTS: usize = u32::MAX as usize - (1 << 24);

/// A row-major array on a device, all of which is there.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub(super) handle: Handle,
    pub(super) len: usize,
    pub(super) dtype: StorageType,
}

impl Buffer {
    /// The first `len` elements at `handle`.
    ///
    /// # Panics
    /// If they are more than the memory of the handle holds, or than [`MAX_ELEMENTS`].
    pub fn new(handle: Handle, len: usize, dtype: impl Into<StorageType>) -> Self {
        let dtype = dtype.into();
        let skipped = handle.offset_start.unwrap_or(0).saturating_add(handle.offset_end.unwrap_or(0));
        let held = handle.size().saturating_sub(skipped);
        let bytes = (len as u64).checked_mul(dtype.size() as u64);
        assert!(bytes.is_some_and(|bytes| bytes <= held), "{len} elements of {dtype:?} in {held} bytes");
        assert!(len <= MAX_ELEMENTS, "{len} elements in one array, kernels count to {MAX_ELEMENTS}");
        Self { handle, len, dtype }
    }

    /// Where it is.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type of an element.
    pub fn dtype(&self) -> StorageType {
        self.dtype
    }

    /// The whole array as the argument of a kernel that stays inside `len`.
    pub(super) fn arg<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: `new`, the only way to make one, found `len` elements in the memory of the handle, which the handle keeps.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len) }
    }

    /// # Panics
    /// If the array does not have this shape.
    pub(super) fn check(&self, name: &str, shape: &[usize]) {
        check_len(name, self.len, shape);
    }

    /// For what kernels read as words, whatever the integers mean.
    ///
    /// # Panics
    /// If the elements do not have 32 bits: the kernel would read beyond the array.
    pub(super) fn check_words(&self, name: &str) {
        assert!(self.dtype.size() == 4, "{name} is of {:?}, not of 32 bits", self.dtype);
    }

    /// # Panics
    /// If the elements are of another type: they would be read as what they are not.
    pub(super) fn check_type(&self, name: &str, dtype: StorageType) {
        assert!(self.dtype == dtype, "{name} is of {:?}, not {dtype:?}", self.dtype);
    }
}

pub(super) fn f32_type() -> StorageType {
    ElemType::Float(FloatKind::F32).into()
}

/// Launches so far.
static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// Kernels launched from this module so far in this process; those of burn's own operations are not among them.
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

thread_local! {
    static LAUNCHES_OF_THREAD: Cell<u64> = const { Cell::new(0) };
}

/// Kernels launched from this module so far by this thread; for tests, which run beside each other.
pub fn launches_of_thread() -> u64 {
    LAUNCHES_OF_THREAD.get()
}

/// The grid of a launch, which is counted: at least `cubes` cubes; a kernel leaves at once when `CUBE_POS` is past the last.
///
/// # Panics
/// If the cubes are more than kernels count.
pub(super) fn grid(cubes: usize) -> CubeCount {
    assert!(cubes <= MAX_ELEMENTS, "{cubes} cubes in one launch, kernels count to {MAX_ELEMENTS}");
    LAUNCHES.fetch_add(1, Ordering::Relaxed);
    LAUNCHES_OF_THREAD.set(LAUNCHES_OF_THREAD.get() + 1);
    let rows = cubes.div_ceil(MAX_CUBES).max(1);
    CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1)
}

/// A grid of cubes of [`UNITS`] with one unit for each of `elements`.
///
/// # Panics
/// If they are more than kernels count.
pub(super) fn grid_of_units(elements: usize) -> CubeCount {
    assert!(elements <= MAX_ELEMENTS, "{elements} elements in one launch, kernels count to {MAX_ELEMENTS}");
    grid(elements.div_ceil(UNITS as usize))
}
