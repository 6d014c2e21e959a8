//! `model.safetensors.index.json`: which tensor is in which shard.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::dir::relative;
use super::header::MAX_TENSORS;
use super::names::shown;
use super::problem::{CheckpointError, TensorProperty};
use crate::config::json;
use crate::{Error, Result};

/// Longest index file, in bytes.
pub(crate) const MAX_INDEX_BYTES: u64 = 16 << 20;
const MAX_SHARDS: usize = 1000;

/// Tensor names by shard.
pub(crate) type Shards = BTreeMap<String, Vec<String>>;

#[derive(Deserialize)]
struct RawIndex {
    weight_map: RawMap,
    #[serde(rename = "metadata", default)]
    _metadata: IgnoredAny,
}

struct RawMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for RawMap {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = RawMap;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a map from tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<RawMap, A::Error> {
                let mut out = BTreeMap::new();
                while let Some((name, file)) = entries.next_entry::<String, String>()? {
                    if out.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    if out.contains_key(&name) {
                        return Err(A::Error::custom(format!("tensor {} is there twice", shown(&name))));
                    }
                    out.insert(name, file);
                }
                Ok(RawMap(out))
            }
        }
        json.deserialize_map(V)
    }
}

/// Parses an index; every shard is a path within the directory of the index that ends in `.safetensors`.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Shards> {
    let broken = |message: String| Error::container(CheckpointError::of_file(path, message));
    let RawIndex { weight_map: RawMap(map), .. } = json::from_slice(bytes).map_err(&broken)?;
    let mut shards = Shards::new();
    for (tensor, file) in map {
        let Some(file) = relative(&file).filter(|file| file.ends_with(".safetensors")) else {
            let found = TensorProperty::Value(shown(&file));
            let message =
                format!("is in {found}, which is not the name of a .safetensors file in this directory or below it");
            let error = CheckpointError::of_tensor(&tensor, message).in_file(Some(path)).found(found);
            return Err(Error::container(error));
        };
        shards.entry(file).or_default().push(tensor);
        if shards.len() > MAX_SHARDS {
            return Err(broken(format!("names more than {MAX_SHARDS} files")));
        }
    }
    if shards.is_empty() {
        return Err(broken("names no files".into()));
    }
    Ok(shards)
}
