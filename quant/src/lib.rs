//! Number formats, packed weights and the burn operations of emberlm.

pub mod host;
