//! Parts of a model whose tensor names are not published, recognised by their shapes.

pub(super) mod crest;
pub(super) mod kv;

use std::collections::BTreeMap;
use std::ops::Range;

/// Tensors by layer: the name within the layer, and the true shape.
pub(in crate::checkpoint) type LayerTensors = BTreeMap<usize, BTreeMap<String, Vec<usize>>>;

/// A tensor that was recognised, and the canonical name that it gets.
pub(in crate::checkpoint) struct Rename {
    pub(in crate::checkpoint) from: String,
    pub(in crate::checkpoint) to: String,
    pub(in crate::checkpoint) shape: Vec<usize>,
    pub(in crate::checkpoint) rows: Option<Range<usize>>,
}

/// What was recognised in all layers.
pub(in crate::checkpoint) struct Discovered<T> {
    pub(in crate::checkpoint) renames: Vec<Rename>,
    /// Tensors that are recognised and not needed.
    pub(in crate::checkpoint) spare: Vec<String>,
    /// The sizes and options that the tensors show.
    pub(in crate::checkpoint) found: Option<T>,
}
