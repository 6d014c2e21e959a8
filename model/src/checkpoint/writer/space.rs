//! Whether a disk has room.

use std::path::Path;

use crate::{Error, Result};

/// Asks for `needed` bytes on the disk of `directory`, or of the nearest directory above it that exists.
///
/// # Errors
/// [`Error::Space`] when there are fewer. Where the system does not tell, there are enough.
pub(crate) fn check_space(directory: &Path, needed: u64) -> Result<()> {
    match free_space(directory) {
        Some(available) if available < needed => Err(Error::Space { path: directory.into(), needed, available }),
        _ => Ok(()),
    }
}

/// Bytes that this user may write.
#[cfg(unix)]
pub(crate) fn free_space(directory: &Path) -> Option<u64> {
    let absolute = std::path::absolute(directory).ok()?;
    let existing = absolute.ancestors().find(|path| path.exists())?;
    let disk = rustix::fs::statvfs(existing).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(not(unix))]
pub(crate) fn free_space(_: &Path) -> Option<u64> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_asked_before_anything_is_written() {
        let absent = std::env::temp_dir().join("emberlm-absent/a/b");
        assert!(free_space(&absent).is_some_and(|free| free > 0) && check_space(&absent, 1).is_ok());
        let error = check_space(&absent, u64::MAX).expect_err("no disk has so much").to_string();
        assert!(error.contains("emberlm-absent") && error.contains(" are free: make room"), "{error}");
    }
}
