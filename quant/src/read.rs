//! Numbers on their way back to the host. A GPU stands still meanwhile, so the reads are few and are counted.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::backend::Backend;
use burn::tensor::{TensorData, Transaction};

use crate::error::{Error, Result};

/// Reads so far.
static READS: AtomicU64 = AtomicU64::new(0);

/// How often [`read`] waited for a device so far in this process.
pub fn reads() -> u64 {
    READS.load(Ordering::Relaxed)
}

/// Waits for several tensors at once; they come in the order in which they were registered.
///
/// # Errors
/// [`Error::Device`] when the device failed since the last read.
pub fn read<B: Backend>(tensors: Transaction<B>) -> Result<Vec<TensorData>> {
    READS.fetch_add(1, Ordering::Relaxed);
    contained(|| tensors.try_execute())?.map_err(|error| Error::Device(error.to_string()))
}

/// Calls `f`, which launches work on a GPU or waits for it.
///
/// # Errors
/// [`Error::Device`] when the device is lost, where its runtime panics.
pub(crate) fn contained<T>(f: impl FnOnce() -> T) -> Result<T> {
    #[cfg(feature = "cube")]
    return emberlm_backends::device::contained(f).map_err(Error::Device);
    #[cfg(not(feature = "cube"))]
    return Ok(f());
}
