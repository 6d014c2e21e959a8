//! What holds for a whole checkpoint that is written.

use emberlm_quant::host::FloatType;

/// Options of a whole checkpoint.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Bytes of data in a file at most, unless a single tensor has more.
    pub shard_bytes: u64,
    /// The checkpoint is to be dense in this type: `config.json` says so, and nothing about quantisation any more. Tensors that are no
    /// matrices (norms, biases, decays) keep the type that they have, except that they become F32 with the others.
    pub dense: Option<FloatType>,
    /// The format of the files that hold the weights.
    pub container: ExportContainer,
}

/// A format of files that hold weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportContainer {
    /// `model.safetensors`, or shards and their index.
    #[default]
    Safetensors,
    /// `model.bpk`, a record of burn-store that a [`CausalLm`](crate::CausalLm) of plain numbers loads: one file, of a model that is made
    /// [dense](ExportOptions::dense). What is no matrix is F32.
    Burnpack,
}

impl Default for ExportOptions {
    /// 5 GB, as transformers has it.
    fn default() -> Self {
        Self { shard_bytes: 5_000_000_000, dense: None, container: ExportContainer::Safetensors }
    }
}
