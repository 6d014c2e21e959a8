//! Checkpoints: what is read, refused, found, compared, verified and written.

mod compare;
mod config;
mod container;
mod discovery;
mod errors;
mod export;
mod fixtures;
mod probe;
mod quantised;
mod record;
mod rope;
mod source;
mod support;
mod tied;
mod verify;
