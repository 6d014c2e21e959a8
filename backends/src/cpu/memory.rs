//! Large pages, and how much memory there is.

/// Asks for pages as large as the system gives under the part of `buffer` that is not yet touched. Touching one byte of such a page takes all
/// of it, so this is for what will be filled.
pub fn advise_large_pages<T>(buffer: &mut [T]) {
    #[cfg(all(target_os = "linux", not(miri)))]
    advise(buffer.as_mut_ptr() as usize, size_of_val(buffer), libc::MADV_HUGEPAGE);
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = buffer;
}

/// Moves what was written to `buffer` onto pages as large as the system gives, where it can (Linux from 6.1 on). Such a page takes memory for all
/// of it, so this is for buffers most of which are in use.
pub(crate) fn collapse_pages<T>(buffer: &mut [T]) {
    #[cfg(all(target_os = "linux", not(miri)))]
    advise(buffer.as_mut_ptr() as usize, size_of_val(buffer), libc::MADV_COLLAPSE);
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = buffer;
}

/// Bytes of a large page.
pub(crate) const LARGE: usize = 2 << 20;

/// Bytes of memory that this process may use: those of the machine, or of the container it runs in. None where the system does
/// not tell.
pub fn memory() -> Option<usize> {
    static MEMORY: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
    *MEMORY.get_or_init(installed)
}

#[cfg(all(target_os = "linux", not(miri)))]
fn installed() -> Option<usize> {
    // SAFETY: it only asks, and takes any name.
    let [pages, page] = [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) });
    let machine = usize::try_from(pages).ok()?.checked_mul(usize::try_from(page).ok()?)?;
    // "max" where there is no limit.
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = container.and_then(|limit| limit.trim().parse::<usize>().ok());
    Some(container.map_or(machine, |limit| limit.min(machine))).filter(|&bytes| bytes > 0)
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn installed() -> Option<usize> {
    None
}

#[cfg(all(target_os = "linux", not(miri)))]
fn advise(at: usize, bytes: usize, advice: libc::c_int) {
    let start = at.next_multiple_of(LARGE);
    let end = (at + bytes) / LARGE * LARGE;
    if start < end {
        // SAFETY: the range lies inside a buffer; the advice changes no content. It may be refused, which costs speed only.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, advice) };
    }
}

/// Gives memory that the process freed back to the system, where the allocator would keep it. Worth a call after work with many
/// small allocations: of a parsed vocabulary of 150,000 tokens, more than 50 MiB of what is free stay with glibc's allocator.
pub fn release_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no pointer, locks the allocator's own lists, and moves no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn freed_memory_leaves_the_process() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
            statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("pages") * 4096
        };
        // Small pieces, with one in a thousand kept, so that the heap does not shrink by itself.
        let pieces: Vec<Vec<u8>> = (0..400_000).map(|_| vec![1; 128]).collect();
        let full = resident();
        let kept: Vec<Vec<u8>> =
            pieces.into_iter().enumerate().filter(|(i, _)| i % 1000 == 999).map(|(_, p)| p).collect();
        release_free_memory();
        let after = resident();
        assert!(after + (24 << 20) < full, "{full} bytes resident, {after} after, {} pieces kept", kept.len());
    }

    #[test]
    #[cfg(all(target_os = "linux", not(miri)))]
    fn a_machine_has_some_memory() {
        let bytes = memory().expect("known here");
        assert!((16 << 20..1 << 50).contains(&bytes), "{bytes} bytes");
    }
}
