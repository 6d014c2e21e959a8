//! A file of tensors, whichever format it has by its first bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::header::{self, Flaw, TensorInfo};
use super::record;
use crate::{Error, Result};

/// Parses and checks the header at the start of `file`, the whole content of a shard.
pub(super) fn parse(file: &[u8], path: &Arc<Path>, shard: usize) -> Result<BTreeMap<String, TensorInfo>> {
    let (tensors, flaws) = survey(file, path, shard);
    match flaws.into_iter().next() {
        Some(flaw) => Err(Error::Container(flaw.error)),
        None => Ok(tensors),
    }
}

/// As [`parse`], with everything that is wrong, and the tensors whose data are in the file all the same.
pub(super) fn survey(file: &[u8], path: &Arc<Path>, shard: usize) -> (BTreeMap<String, TensorInfo>, Vec<Flaw>) {
    match record::is_record(file) {
        true => record::survey(file, path, shard),
        false => header::survey(file, path, shard),
    }
}
