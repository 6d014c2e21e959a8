//! What the fuzz targets share.

#[path = "../../model/tests/text/support/byte_fallback.rs"]
mod byte_fallback;

use std::path::{Path, PathBuf};

use burn_ndarray::NdArray;
pub use byte_fallback::byte_fallback;
use emberlm_model::Pretrained;
use emberlm_model::checkpoint::{Checkpoint, EmbeddedFile};
use emberlm_quant::format::dequantize;

/// A file of the fixtures.
pub fn fixture(name: &str) -> Vec<u8> {
    let path = fixtures().join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// A safetensors file.
pub fn container(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Opens a model of these files and checks all its tensors against its config, as `ember info` does.
pub fn plan(files: &[(&'static str, &[u8])]) {
    open(files, false);
}

/// As [`plan`], and reads every weight, as loading does.
pub fn load(files: &[(&'static str, &[u8])]) {
    open(files, true);
}

fn open(files: &[(&'static str, &[u8])], read: bool) {
    let files: Vec<EmbeddedFile> = files
        .iter()
        .map(|&(name, bytes)| {
            // SAFETY: nothing that is made of the files below outlives this function, and so the caller's borrow.
            (name, unsafe { std::slice::from_raw_parts::<'static, u8>(bytes.as_ptr(), bytes.len()) })
        })
        .collect();
    // SAFETY: as above; `files` is dropped last.
    let listed = unsafe { std::slice::from_raw_parts::<'static, EmbeddedFile>(files.as_ptr(), files.len()) };
    let Ok(checkpoint) = Checkpoint::open_embedded("fuzz", listed) else { return };
    for name in checkpoint.names() {
        checkpoint.data(name).expect("a tensor that is listed");
    }
    let Ok(pretrained) = Pretrained::from_checkpoint(&checkpoint) else { return };
    let weights = pretrained.weights();
    let names: Vec<String> = weights.canonical_names().map(String::from).collect();
    for name in names.iter().filter(|_| read) {
        let entry = weights.entry(name).expect("a weight that is listed");
        match entry.shape.len() {
            // What cannot be read says so; what can is as large as it says.
            2 => {
                if let Ok(matrix) = weights.matrix(name) {
                    assert_eq!(dequantize(&matrix).len(), matrix.n * matrix.k);
                }
            }
            _ => drop(weights.vector(name)),
        }
    }
    if let Ok(plan) = pretrained.plan::<NdArray<f32>>(&Default::default()) {
        assert!(plan.weight_bytes() > 0);
    }
}
