//! Two checkpoints beside each other: their numbers, whatever they are stored in, their configs, and what they say about a text.

mod config;
mod tensors;
mod text;

pub use config::{ConfigComparison, KeyDifference};
pub use tensors::{RowError, TensorComparison};
pub use text::{TextComparison, compare_text};

use crate::error::Result;
use crate::plan::Progress;
use crate::pretrained::Pretrained;

/// How two checkpoints differ.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Tensors that both have in one shape, the largest relative error first.
    pub tensors: Vec<TensorComparison>,
    /// Tensors that both have, in shapes that differ: name, and the shapes.
    pub reshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Names of tensors that the first has alone.
    pub only_first: Vec<String>,
    /// Names of tensors that the second has alone.
    pub only_second: Vec<String>,
    /// Keys of the configs.
    pub config: ConfigComparison,
}

impl Comparison {
    /// Whether both compute the same: every number is equal, and no key that counts differs. How numbers are stored does not count.
    pub fn is_same(&self) -> bool {
        self.tensors.iter().all(|tensor| tensor.identical)
            && self.reshaped.is_empty()
            && self.only_first.is_empty()
            && self.only_second.is_empty()
            && self.config.same
    }
}

/// Compares two checkpoints. Tensors are read in pieces on all threads; nothing is held beyond the piece.
///
/// # Errors
/// When the stored data of a tensor is damaged.
pub fn compare(first: &Pretrained, second: &Pretrained, progress: &(dyn Fn(Progress) + Sync)) -> Result<Comparison> {
    let mut out = Comparison { config: config::compare(first, second)?, ..Comparison::default() };
    let mut both = Vec::new();
    for name in first.weights().canonical_names() {
        let shape = |model: &Pretrained| model.weights().entry(name).map(|entry| entry.shape.clone());
        match (shape(first), shape(second)) {
            (Some(a), Some(b)) if a == b => both.push((name, a)),
            (Some(a), Some(b)) => out.reshaped.push((name.to_owned(), a, b)),
            _ => out.only_first.push(name.to_owned()),
        }
    }
    let names = second.weights().canonical_names();
    out.only_second = names.filter(|name| first.weights().entry(name).is_none()).map(str::to_owned).collect();
    out.tensors = tensors::compare(first, second, &both, progress)?;
    out.tensors.sort_by(|a, b| b.relative_error.total_cmp(&a.relative_error));
    Ok(out)
}
