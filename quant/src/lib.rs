//! Number formats, packed weights and the burn operations of emberlm.

mod error;
pub mod format;
pub mod host;

pub use error::{Error, Result};
