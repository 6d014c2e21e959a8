//! Tokens in from a safetensors file, results out to one.
//!
//! # Untrusted input
//! The input may hold anything: sizes, types, token ids and the mask are checked before use.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::tensor::{SafeTensors, TensorView, View};
use safetensors::{Dtype, serialize_to_file};

/// Largest input in bytes: 30 million tokens.
const MAX_INPUT: u64 = 256 << 20;

/// Rows of token ids, padded on the left.
#[derive(Debug)]
pub struct Tokens {
    /// `[b][t]`; 0 where there is padding, whatever the file has there.
    pub rows: Vec<Vec<u32>>,
    /// Slots of padding before each row.
    pub left_pad: Vec<usize>,
}

impl Tokens {
    /// Reads `input_ids` and, where there is one, `attention_mask`; ids must be below `vocabulary`.
    pub fn read(path: &Path, vocabulary: usize) -> Result<Self> {
        let at = || format!("cannot read tokens from {}", path.display());
        let mut bytes = Vec::new();
        let read = fs::File::open(path).and_then(|file| file.take(MAX_INPUT + 1).read_to_end(&mut bytes));
        read.with_context(at)?;
        ensure!(bytes.len() as u64 <= MAX_INPUT, "{}: it is longer than the limit of {MAX_INPUT} bytes", at());
        let file = SafeTensors::deserialize(&bytes).with_context(at)?;
        Self::parse(&file, vocabulary).with_context(at)
    }

    fn parse(file: &SafeTensors<'_>, vocabulary: usize) -> Result<Self> {
        let names = file.names().join(", ");
        let ids = file.tensor("input_ids").map_err(|_| anyhow!("it has no input_ids, only: {names}"))?;
        let &[b, t] = ids.shape() else { bail!("input_ids has shape {:?}, expected [rows, tokens]", ids.shape()) };
        ensure!(b > 0 && t > 0, "input_ids has shape [{b}, {t}]: there are no tokens");
        let ids = integers(&ids).context("input_ids")?;
        let mask = match file.tensor("attention_mask") {
            Ok(mask) if mask.shape() == [b, t] => integers(&mask).context("attention_mask")?,
            Ok(mask) => bail!("attention_mask has shape {:?}, input_ids has [{b}, {t}]", mask.shape()),
            Err(_) => vec![1; b * t],
        };
        let (mut rows, mut left_pad) = (Vec::new(), Vec::new());
        for (i, (ids, mask)) in ids.chunks(t).zip(mask.chunks(t)).enumerate() {
            let pad = mask.iter().take_while(|&&keep| keep == 0).count();
            ensure!(pad < t, "row {i} of attention_mask masks every token");
            if let Some(slot) = mask.iter().skip(pad).position(|&keep| keep != 1) {
                bail!(
                    "attention_mask is {} at row {i}, token {}; only padding on the left is supported: zeros, then ones",
                    mask.get(pad + slot).copied().unwrap_or_default(),
                    pad + slot
                );
            }
            let row = ids.iter().enumerate().map(|(slot, &id)| match u32::try_from(id) {
                _ if slot < pad => Ok(0),
                Ok(token) if (token as usize) < vocabulary => Ok(token),
                _ => Err(anyhow!("input_ids is {id} at row {i}, token {slot}; the model has {vocabulary} tokens")),
            });
            rows.push(row.collect::<Result<_>>()?);
            left_pad.push(pad);
        }
        Ok(Self { rows, left_pad })
    }
}

fn integers(view: &TensorView<'_>) -> Result<Vec<i64>> {
    match view.dtype() {
        Dtype::I64 => Ok(view.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect()),
        Dtype::I32 => Ok(view.data().as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect()),
        other => bail!("is {other:?}, expected I64 or I32"),
    }
}

/// Numbers to be written.
#[derive(Debug)]
pub enum Numbers {
    /// Single precision.
    F32(Vec<f32>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
}

/// A tensor to be written.
#[derive(Debug)]
pub struct Array {
    /// Sizes; their product is the count of numbers.
    pub shape: Vec<usize>,
    /// Row-major.
    pub numbers: Numbers,
}

impl View for &Array {
    fn dtype(&self) -> Dtype {
        match self.numbers {
            Numbers::F32(_) => Dtype::F32,
            Numbers::I32(_) => Dtype::I32,
            Numbers::I64(_) => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(match &self.numbers {
            Numbers::F32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Numbers::I32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Numbers::I64(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        match &self.numbers {
            Numbers::F32(x) => 4 * x.len(),
            Numbers::I32(x) => 4 * x.len(),
            Numbers::I64(x) => 8 * x.len(),
        }
    }
}

/// A file that appears under its name only when it is complete. It is like any other, or like the one that it replaces; until then it is for its
/// owner alone.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    temporary: PathBuf,
    permissions: fs::Permissions,
}

impl OutputFile {
    /// Creates the temporary file beside `path` (or what it links to), so that a wrong path is noticed before any work is
    /// done.
    pub fn create(path: &Path) -> Result<Self> {
        let at = || format!("cannot write {}", path.display());
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let name = path.file_name().with_context(|| format!("{}: it names no file", at()))?;
        ensure!(!path.is_dir(), "{}: it is a directory", at());
        ensure!(path.is_file() || !path.exists(), "{}: it is no regular file", at());
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(hidden);
        fs::File::create(&temporary).with_context(at)?;
        let like = if path.exists() { path } else { &temporary };
        let permissions = fs::metadata(like).map(|data| data.permissions());
        let file = permissions.and_then(|permissions| {
            for_the_owner(&temporary)?;
            Ok(Self { path: path.to_path_buf(), temporary: temporary.clone(), permissions })
        });
        file.inspect_err(|_| _ = fs::remove_file(&temporary)).with_context(at)
    }

    /// Writes the tensors and gives the file its name. Returns its bytes.
    pub fn finish(self, tensors: &[(String, Array)]) -> Result<u64> {
        let tensors = tensors.iter().map(|(name, array)| (name.as_str(), array));
        self.finish_with(|path| Ok(serialize_to_file(tensors, None, path)?))
    }

    /// Writes the text and gives the file its name.
    pub fn finish_text(self, text: &str) -> Result<()> {
        let write = |path: &Path| {
            let mut file = fs::File::create(path)?;
            file.write_all(text.as_bytes())?;
            Ok(file.sync_all()?)
        };
        self.finish_with(write).map(|_| ())
    }

    fn finish_with(self, write: impl FnOnce(&Path) -> Result<()>) -> Result<u64> {
        let at = || format!("cannot write {}", self.path.display());
        write(&self.temporary).with_context(at)?;
        fs::set_permissions(&self.temporary, self.permissions.clone()).with_context(at)?;
        fs::rename(&self.temporary, &self.path).with_context(at)?;
        Ok(fs::metadata(&self.path).with_context(at)?.len())
    }
}

#[cfg(unix)]
fn for_the_owner(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

/// Files belong to the user's directory there, whose rights they have.
#[cfg(not(unix))]
fn for_the_owner(_: &Path) -> io::Result<()> {
    Ok(())
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        // After a rename there is nothing left under this name.
        let _ = fs::remove_file(&self.temporary);
    }
}
