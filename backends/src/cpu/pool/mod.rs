//! The worker team: threads that run the tasks of a region, spin-wait for the next one and meanwhile prefetch its weights; the
//! scratch memory of a thread, and the matrix that tasks write together.

mod output;
mod parallel;
mod prefetch;
mod region;
mod scratch;
mod sync;
mod team;
mod threads;

pub(super) use output::Output;
pub(super) use parallel::{MIN_WORK, for_each_chunk, parallel};
pub(super) use region::Region;
pub(super) use scratch::with_scratch;
pub use threads::{MAX_THREADS, refused_threads, run, set_threads, threads, with_threads};
