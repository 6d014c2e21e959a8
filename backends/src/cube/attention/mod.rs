//! Attention over stored keys and values (`flash`) and over the codes that they were compressed to (`latent`).

pub(super) mod flash;
mod flash_join;
mod flash_kernel;
pub(super) mod latent;
pub(super) mod types;
