//! Which linears of a Nano compact checkpoint are stored as integers, and how (`nanollm_modules`).

use std::collections::BTreeMap;

use super::fields::{Fields, spelled};
use crate::Result;

spelled! {
    /// The storage of a module.
    NanoKind("kind") {
        /// An embedding of 8-bit rows.
        Embedding = "embedding",
        /// A linear of 8-bit rows.
        Int8Linear = "int8_linear",
        /// A linear of protected 8-bit rows and narrower rows.
        TruequantLinear = "truequant_linear",
    }
}

/// One entry of `nanollm_modules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NanoModule {
    /// The storage.
    pub kind: NanoKind,
    /// Columns: inputs of a linear, width of an embedding.
    pub in_features: usize,
    /// Rows: outputs of a linear, entries of an embedding.
    pub out_features: usize,
    /// Rows kept at 8 bits (`truequant_linear`).
    pub prot_rows: usize,
    /// Rows at `bits` (`truequant_linear`); with `prot_rows` they make up all rows.
    pub deg_rows: usize,
    /// 2, 4, 6 or 8 (`truequant_linear`), 8 otherwise.
    pub bits: u32,
    /// Whether a `.bias` tensor belongs to it.
    pub has_bias: bool,
}

/// No real model comes near; a list of millions is an attack on memory.
const MAX_MODULES: usize = 100_000;

pub(super) fn read_modules(modules: &Fields) -> Result<BTreeMap<String, NanoModule>> {
    let mut out = BTreeMap::new();
    for path in modules.keys() {
        if out.len() == MAX_MODULES {
            return Err(modules.error(path, format!("is one of more than {MAX_MODULES} modules")));
        }
        let spec = modules.object(path)?.ok_or_else(|| modules.error(path, "is null, expected an object"))?;
        out.insert(path.clone(), NanoModule::read(&spec)?);
    }
    Ok(out)
}

impl NanoModule {
    fn read(spec: &Fields) -> Result<Self> {
        let kind = spec.required("kind", |f, key| f.choice::<NanoKind>(key))?;
        let (rows, columns) = match kind {
            NanoKind::Embedding => ("num_embeddings", "embedding_dim"),
            NanoKind::Int8Linear | NanoKind::TruequantLinear => ("out_features", "in_features"),
        };
        let out_features = spec.required(rows, |f, key| f.size(key, super::limits::MAX_VOCABULARY))?;
        let in_features = spec.required(columns, |f, key| f.size(key, super::limits::MAX_WIDTH))?;
        let has_bias = spec.boolean("has_bias")?.unwrap_or(false);
        let (mut prot_rows, mut deg_rows, mut bits) = (out_features, 0, 8);
        if kind == NanoKind::TruequantLinear {
            prot_rows = spec.required("prot_rows", |f, key| f.integer(key, 0, out_features))?;
            deg_rows = spec.required("deg_rows", |f, key| f.integer(key, 0, out_features))?;
            if prot_rows.checked_add(deg_rows) != Some(out_features) {
                let message =
                    format!("{deg_rows} and prot_rows {prot_rows} do not add up to out_features {out_features}");
                return Err(spec.error("deg_rows", message));
            }
            bits = match spec.required("bits", |f, key| f.integer(key, 1, 64))? {
                2 => 2,
                4 => 4,
                6 => 6,
                8 => 8,
                other => {
                    return Err(spec.error("bits", format!("is {other}, expected 2, 4, 6 or 8")));
                }
            };
        }
        Ok(Self { kind, in_features, out_features, prot_rows, deg_rows, bits, has_bias })
    }
}
