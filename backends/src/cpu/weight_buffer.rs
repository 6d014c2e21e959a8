//! Memory for weights: one buffer after another, on pages as large as the system gives.
//!
//! Products stream through weights, and with small pages spend a tenth and more of their time on translating addresses. Linux gives large
//! pages where it is asked to, but only whole ones: a matrix of 3 MB that is allocated alone seldom holds one. So buffers are laid side
//! by side in a few large mappings. Each begins at a cache line.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, at which every buffer begins.
const LINE: usize = 64;

/// Bytes that are zero when they are made, for weights that products will stream through.
///
/// What a buffer held goes back to the system when it is dropped, but for the pages that it shares with its neighbours.
pub struct WeightBuffer(Memory);

enum Memory {
    /// With what is over before the first cache line.
    Heap { bytes: Vec<u8>, start: usize, len: usize },
    #[cfg(all(target_os = "linux", not(miri)))]
    Mapped(mapped::Piece),
}

impl WeightBuffer {
    /// `len` zeros. Pages that are not yet touched take no memory.
    pub fn new(len: usize) -> Self {
        #[cfg(all(target_os = "linux", not(miri)))]
        if let Some(piece) = mapped::piece(len) {
            return Self(Memory::Mapped(piece));
        }
        Self::on_heap(len)
    }

    fn on_heap(len: usize) -> Self {
        let bytes = vec![0; len + LINE - 1];
        let start = bytes.as_ptr().align_offset(LINE).min(LINE - 1);
        Self(Memory::Heap { bytes, start, len })
    }
}

impl Deref for WeightBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Heap { bytes, start, len } => &bytes[*start..*start + *len],
            #[cfg(all(target_os = "linux", not(miri)))]
            Memory::Mapped(piece) => piece.bytes(),
        }
    }
}

impl DerefMut for WeightBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Heap { bytes, start, len } => &mut bytes[*start..*start + *len],
            #[cfg(all(target_os = "linux", not(miri)))]
            Memory::Mapped(piece) => piece.bytes_mut(),
        }
    }
}

impl AsRef<[u8]> for WeightBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for WeightBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeightBuffer({} bytes)", self.len())
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
mod mapped {
    use std::ops::Range;
    use std::sync::{Arc, Mutex, PoisonError};

    use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

    use super::LINE;
    use crate::cpu::memory::LARGE;

    /// Bytes of a mapping. At its end a part of one large page stays unused, under one per cent.
    const REGION: usize = 256 << 20;

    /// Bytes below which a buffer is left to the allocator.
    const SMALLEST: usize = 1 << 14;

    /// The part of a mapping that no buffer has got yet: untouched, so zero.
    struct Rest {
        map: Arc<MmapRaw>,
        /// The first begins at a large page; all at cache lines.
        free: Range<usize>,
    }

    /// The mapping that the next buffers are cut from.
    static REST: Mutex<Option<Rest>> = Mutex::new(None);

    /// Bytes `start..start + len` of a mapping, which are no other piece's.
    pub(super) struct Piece {
        map: Arc<MmapRaw>,
        start: usize,
        len: usize,
    }

    /// None for a small piece, and where the system gives no mapping.
    pub(super) fn piece(len: usize) -> Option<Piece> {
        if len < SMALLEST {
            return None;
        }
        let mut rest = REST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(piece) = rest.as_mut().and_then(|rest| rest.take(len)) {
            return Some(piece);
        }
        let mut fresh = Rest::new(len.max(REGION))?;
        let piece = fresh.take(len)?;
        if rest.as_ref().is_none_or(|rest| rest.free.len() < fresh.free.len()) {
            *rest = Some(fresh);
        }
        Some(piece)
    }

    impl Rest {
        fn new(len: usize) -> Option<Self> {
            // Room to begin at a large page, and a last one that is whole.
            let len = len.checked_next_multiple_of(LARGE)?.checked_add(LARGE)?;
            let map = MmapRaw::from(MmapOptions::new().len(len).map_anon().ok()?);
            // It may be refused, which costs speed only.
            let _ = map.advise(Advice::HugePage);
            let at = map.as_ptr() as usize;
            let start = at.next_multiple_of(LARGE) - at;
            Some(Self { map: Arc::new(map), free: start..len })
        }

        fn take(&mut self, len: usize) -> Option<Piece> {
            let start = self.free.start;
            let next = start.checked_add(len)?.checked_next_multiple_of(LINE)?;
            (next <= self.free.end).then(|| {
                self.free.start = next;
                Piece { map: self.map.clone(), start, len }
            })
        }
    }

    impl Piece {
        pub(super) fn bytes(&self) -> &[u8] {
            // SAFETY: `take` gave these bytes, which lie in the mapping, to this piece alone; the mapping lives as long as a piece does, and its
            // bytes are zeros until they are written.
            unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.start), self.len) }
        }

        pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
            // SAFETY: as in `bytes`; the piece is borrowed mutably.
            unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.start), self.len) }
        }

        /// The pages of the mapping that hold nothing but this piece.
        fn own_pages(&self) -> Range<usize> {
            // Mappings begin at a page, so offsets can be rounded instead of addresses.
            let page = page_size();
            let start = self.start.next_multiple_of(page);
            start..((self.start + self.len) / page * page).max(start)
        }
    }

    impl Drop for Piece {
        fn drop(&mut self) {
            let pages = self.own_pages();
            // SAFETY: these pages are in no other piece, and nobody can read this one any more. Refused, they stay until the mapping goes.
            let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, pages.start, pages.len()) };
        }
    }

    fn page_size() -> usize {
        // SAFETY: it only asks, and takes any name.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(LARGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_its_length_zeros_and_alignment() {
        for new in [WeightBuffer::new, WeightBuffer::on_heap] {
            for len in [0, 1, 63, 1000, 1 << 14, (1 << 14) + 1, 5 << 20] {
                let mut buffer = new(len);
                assert!(buffer.len() == len && buffer.iter().all(|&byte| byte == 0), "{len} bytes");
                assert_eq!(buffer.as_ptr().align_offset(LINE), 0, "{len} bytes");
                buffer.fill(7);
            }
        }
    }

    #[test]
    fn buffers_share_no_byte_and_outlive_their_neighbours() {
        let lens = [100_000, 64, 3 << 20, 20_000, 300 << 20, 16_385];
        let mut buffers: Vec<WeightBuffer> = lens.map(WeightBuffer::new).into();
        for (i, buffer) in buffers.iter_mut().enumerate() {
            for chunk in buffer.chunks_mut(4096) {
                chunk.fill(i as u8 + 1);
            }
        }
        for gone in [2, 0, 2, 1] {
            buffers.remove(gone);
            // A new one takes nothing of what was freed.
            let next = WeightBuffer::new(50_000);
            assert!(next.iter().all(|&byte| byte == 0));
        }
        let values: Vec<u8> = buffers.iter().map(|buffer| buffer[0]).collect();
        assert_eq!(values, [2, 6]);
        assert!(buffers.iter().all(|buffer| buffer.iter().all(|&byte| byte == buffer[0])));
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn what_a_dropped_buffer_held_goes_back() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
            statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("pages") * 4096
        };
        let neighbour = WeightBuffer::new(20_000);
        let mut buffer = WeightBuffer::new(64 << 20);
        let after = WeightBuffer::new(20_000);
        buffer.fill(1);
        let full = resident();
        drop(buffer);
        let now = resident();
        assert!(now + (48 << 20) < full, "{full} bytes resident, {now} after");
        assert!(neighbour.iter().chain(&*after).all(|&byte| byte == 0));
    }
}
