//! Files of the project.

use std::path::{Path, PathBuf};

/// A file by its path from the root of the project, which holds this package's directory; an absolute path is itself.
pub fn project(file: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root of the project").join(file)
}

/// A file or directory of the fixtures.
pub fn fixture(name: impl AsRef<Path>) -> PathBuf {
    project("tests/fixtures").join(name)
}

/// The program under test: that of this package, or the one that `EMBERLM_PROGRAM` names.
pub fn program() -> PathBuf {
    match std::env::var_os("EMBERLM_PROGRAM") {
        // Tests run in the directory of the package, whoever names it is in the root.
        Some(other) => project(&other).canonicalize().unwrap_or_else(|e| panic!("EMBERLM_PROGRAM {other:?}: {e}")),
        None => env!("CARGO_BIN_EXE_ember").into(),
    }
}
