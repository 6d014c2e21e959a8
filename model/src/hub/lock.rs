//! Locks between processes, on the files that `huggingface_hub` locks in the same way.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use super::cache::make_dir;
use super::error::{HubError, HubResult};

/// A lock that is held until this is dropped, or the process ends in any way.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Option<File>,
}

/// How often a lock that another process holds is tried.
const POLL: Duration = Duration::from_millis(100);

impl Lock {
    /// Waits for a lock; `waits` is called whenever another process holds it, at first with `true`, and its error ends the wait.
    pub fn take(path: &Path, waits: impl Fn(bool) -> HubResult<()>) -> HubResult<Self> {
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let mut first = true;
        loop {
            let file = OpenOptions::new().create(true).write(true).truncate(false).open(path);
            let file = file.map_err(|source| HubError::io(path, source))?;
            match file.try_lock() {
                Ok(()) if is_removed(&file) => {}
                Ok(()) => return Ok(Self { _file: Some(file) }),
                Err(TryLockError::WouldBlock) => {
                    waits(first)?;
                    first = false;
                    std::thread::sleep(POLL);
                }
                // Some network file systems have no locks; two processes are then on their own.
                Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                    tracing::warn!(
                        "{}: the file system has no locks: let one process download at a time",
                        path.display()
                    );
                    return Ok(Self { _file: None });
                }
                Err(TryLockError::Error(source)) => return Err(HubError::io(path, source)),
            }
        }
    }
}

/// Whether the holder before removed the file when it was done; the lock would be on nothing.
#[cfg(unix)]
fn is_removed(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
}

#[cfg(not(unix))]
fn is_removed(_: &File) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_holds_a_lock_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks/x.lock");
        let (inside, waited) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let lock = Lock::take(&path, |first| {
                        waited.fetch_add(usize::from(first), Ordering::Relaxed);
                        Ok(())
                    });
                    let _lock = lock.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    std::thread::sleep(Duration::from_millis(150));
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(waited.load(Ordering::Relaxed), 2);
    }
}
