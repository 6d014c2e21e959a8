//! Whether a checkpoint is whole, and whether its files fit each other.
//!
//! Everything that loading a model checks, and what it does not: hashes, every number, code books and scales, totals of the index, ids
//! of the tokenizer, the chat template, keys that are not computed, and values that trained models do not have. No finding ends the
//! search; what builds on a part that cannot be read is left out, and a note says so.
//!
//! Files are read in pieces on all threads, and their pages given back: memory holds the tokenizer, and little else.

mod codes;
mod config;
mod files;
mod finding;
mod hashes;
mod layers;
mod model;
mod numbers;
mod stats;
mod structure;
mod text;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use finding::{Check, Finding, Severity};

use crate::checkpoint::{ModelDir, OpenOptions, survey};
use crate::config::Family;
use crate::error::Result;
use crate::plan::Progress;

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Compare contents with the hashes that the hub gave, where these are known.
    pub hashes: bool,
    /// Read every number. Without it, the checks of numbers, codes and layers are left out.
    pub numbers: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { hashes: true, numbers: true }
    }
}

/// What [`verify`] looked at and found.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// What is wrong or worth knowing: the gravest first, and in the order of the files.
    pub findings: Vec<Finding>,
    /// How much was looked at.
    pub looked_at: LookedAt,
}

/// How much was looked at.
#[derive(Clone, Debug, Default)]
pub struct LookedAt {
    /// Which computation the model is; none where the config cannot be read.
    pub family: Option<Family>,
    /// Files of weights.
    pub files: usize,
    /// Files, of any kind, whose contents were compared with a hash.
    pub hashed: usize,
    /// Tensors whose numbers were read.
    pub tensors: usize,
    /// Bytes of these tensors.
    pub bytes: usize,
    /// Tokens of the tokenizer.
    pub tokens: usize,
    /// Chats that the template rendered.
    pub chats: usize,
}

impl Verification {
    /// The gravest of the findings; none where there are none.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Findings of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }
}

/// Looks at everything in a model directory, or in the only subfolder of one that holds a model.
///
/// # Errors
/// When the directory cannot be opened. What is wrong inside it is a [`Finding`].
pub fn verify(
    path: &Path,
    open: OpenOptions,
    options: VerifyOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Verification> {
    Ok(verify_dir(&survey::directory(path, open)?, options, progress))
}

/// As [`verify`], of a directory that is open.
pub fn verify_dir(dir: &ModelDir, options: VerifyOptions, progress: &(dyn Fn(Progress) + Sync)) -> Verification {
    let mut out = Verification::default();
    files::check(dir, &mut out);
    let survey = structure::check(dir, &mut out);
    let hashed = if options.hashes { hashes::expected(dir, &mut out) } else { Vec::new() };
    let numbers = if options.numbers { survey.checkpoint.total_bytes() } else { 0 };
    let read = Read {
        done: AtomicUsize::new(0),
        // A directory of sparse files can claim more than there are numbers for.
        total: hashed.iter().map(|file| file.bytes).fold(numbers, usize::saturating_add),
        progress,
    };
    hashes::check(&hashed, &read, &mut out);
    let (config, generation) = config::check(dir, &mut out);
    out.looked_at.family = config.as_ref().map(|config| config.family);
    let model = config.and_then(|config| model::check(&survey.checkpoint, config, generation.clone(), &mut out));
    if options.numbers {
        let stats = numbers::check(&survey.checkpoint, model.as_ref(), &read, &mut out);
        if let Some(model) = &model {
            codes::check(model, &stats, &mut out);
            layers::check(model, &stats, &mut out);
        }
        text::check(dir, model.as_ref(), &generation, Some(&stats), &mut out);
    } else {
        text::check(dir, model.as_ref(), &generation, None, &mut out);
    }
    out.findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.check.cmp(&b.check)));
    out
}

/// How far reading is, told from any thread.
struct Read<'a> {
    done: AtomicUsize,
    total: usize,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl Read<'_> {
    fn add(&self, bytes: usize) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        (self.progress)(Progress { done, total: self.total });
    }
}
