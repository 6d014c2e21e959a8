//! Number formats: what is read, written, cut and refused.

mod fixtures;
mod properties;
mod quantize;
mod read;
mod split;
