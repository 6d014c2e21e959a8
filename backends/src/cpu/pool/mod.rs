//! The worker team: threads that wait for a region, what they fetch meanwhile, and scratch memory.

pub(super) mod ahead;
pub(super) mod listeners;
pub(super) mod region;
pub(super) mod sync;
pub(super) mod threads;
