//! Attention over stored keys and values (`flash`) and over the codes that they were compressed to (`latent`).

pub(super) mod flash;
pub(super) mod latent;
