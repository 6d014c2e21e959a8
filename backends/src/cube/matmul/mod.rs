//! Products with weights in every storage: a matrix is streamed for a few rows of activations, tiled for many.

mod cmma;
pub(super) mod embed;
pub(super) mod linear;
pub(super) mod linears;
mod tiled;
pub(super) mod types;
pub(super) mod weight;
