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
}

impl Default for ExportOptions {
    /// 5 GB, as transformers has it.
    fn default() -> Self {
        Self { shard_bytes: 5_000_000_000, dense: None }
    }
}
