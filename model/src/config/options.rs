//! Options of a model that its published files may leave open, as a caller or the side file `ember.json` gives them.
//!
//! The side file is this project's own: it states what no other file of the directory does, such as what
//! [`probe`](crate::probe) found. Where another file states an option too, the two must agree.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::crest::{CrestConfig, CrestOverrides};
use super::family::Family;
use super::fields::Fields;
use super::kv::{KvCompressionConfig, KvOverrides};
use crate::{Error, Result};

/// Options that change no weight; `None` where nothing is said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelOptions {
    /// Of adaptive depth (CREST).
    pub crest: CrestOverrides,
    /// Of cache compression (LeanLlama).
    pub kv_compression: KvOverrides,
}

/// What the other files of a model state, and what it is.
pub(super) struct StatedElsewhere<'a> {
    pub(super) family: Family,
    pub(super) crest: Option<&'a CrestConfig>,
    pub(super) kv_compression: Option<&'a KvCompressionConfig>,
    pub(super) layers: usize,
    pub(super) kv_dim: usize,
}

impl CrestOverrides {
    /// Checks that nothing is said where a model has no adaptive depth.
    ///
    /// # Errors
    /// [`Error::Option`] naming the first option that is said.
    pub fn refuse_beside(&self, family: Family) -> Result<()> {
        match crest_json(self).keys().next() {
            Some(key) => {
                let message = format!("is for models with adaptive depth; this is {family}");
                Err(Error::Option { option: format!("{CREST}.{key}"), message })
            }
            None => Ok(()),
        }
    }
}

const CREST: &str = CrestConfig::GROUP;
const KV_COMPRESSION: &str = "kv_compression";
const CREST_KEYS: [&str; 7] =
    ["num_steps", "step_input", "gate_input", "halt_mode", "halt_threshold", "halt_weights", "halt_enabled"];
const KV_KEYS: [&str; 2] = ["activation", "k_stage"];

impl ModelOptions {
    /// Side file that states them, in a model directory.
    pub const FILE: &str = "ember.json";

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These options; where one is not said, that of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            crest: self.crest.or(other.crest),
            kv_compression: KvOverrides {
                activation: self.kv_compression.activation.or(other.kv_compression.activation),
                k_stage: self.kv_compression.k_stage.or(other.kv_compression.k_stage),
            },
        }
    }

    /// The side file is ours: a key that means nothing, or nothing to this model, is a mistake.
    pub(super) fn read(root: &Fields, elsewhere: &StatedElsewhere) -> Result<Self> {
        let family = elsewhere.family;
        only(root, &[CREST, KV_COMPRESSION])?;
        let mut out = Self::default();
        if let Some(object) = root.object(CREST)? {
            if family != Family::Crest {
                return Err(foreign(root, CREST, &format!("this is {family}, which has no adaptive depth")));
            }
            only(&object, &CREST_KEYS)?;
            out.crest = CrestConfig::read(&object)?.into();
            let stated = elsewhere.crest.map(|crest| CrestOverrides::from(crest.clone()));
            agree(&object, &crest_json(&out.crest), &crest_json(&stated.unwrap_or_default()))?;
        }
        if let Some(object) = root.object(KV_COMPRESSION)? {
            if family != Family::LeanLlama {
                let message = format!("this is {family}, whose cache is not compressed");
                return Err(foreign(root, KV_COMPRESSION, &message));
            }
            only(&object, &KV_KEYS)?;
            let read = KvCompressionConfig::read(&object, elsewhere.layers, elsewhere.kv_dim)?;
            out.kv_compression = KvOverrides { activation: read.activation, k_stage: read.k_stage };
            let stated = elsewhere.kv_compression;
            let stated = stated.map(|kv| KvOverrides { activation: kv.activation, k_stage: kv.k_stage });
            agree(&object, &kv_json(out.kv_compression), &kv_json(stated.unwrap_or_default()))?;
        }
        Ok(out)
    }

    /// An error about the side file of a directory.
    pub(crate) fn does_not_fit(directory: &Path, field: &str, message: &str) -> Error {
        let message = format!("{message}: correct it, or remove the file");
        Error::config(directory.join(Self::FILE), field, message)
    }

    pub(super) fn json(&self) -> Value {
        let groups = [(CREST, crest_json(&self.crest)), (KV_COMPRESSION, kv_json(self.kv_compression))];
        let stated = groups.into_iter().filter(|(_, keys)| !keys.is_empty());
        Value::Object(stated.map(|(name, keys)| (name.to_owned(), Value::Object(keys))).collect())
    }

    /// Checks that the side file can be written in a directory, leaving it as it is.
    ///
    /// # Errors
    /// [`Error::Io`] naming the directory.
    pub fn check_writable(directory: &Path) -> Result<()> {
        let (file, path) = Self::temporary(directory)?;
        drop(file);
        fs::remove_file(&path).map_err(|error| Error::Io { path, error })
    }

    /// Writes the side file of a model directory in place of the one that may be there. A reader sees the old file or the new one,
    /// never a part; no other file is touched.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; the directory is then as it was.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(Self::FILE);
        let (mut file, temporary) = Self::temporary(directory)?;
        let mut write = || -> io::Result<()> {
            writeln!(file, "{:#}", self.json())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| {
            // What is left of a file that could not be written is of no use.
            let _ = fs::remove_file(&temporary);
            Error::Io { path, error }
        })
    }

    /// A new file beside the side file, hidden, of this process.
    fn temporary(directory: &Path) -> Result<(File, PathBuf)> {
        let path = directory.join(format!(".{}.{}.tmp", Self::FILE, std::process::id()));
        // One of a process of the same number that was killed.
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        match file {
            Ok(file) => Ok((file, path)),
            Err(error) => Err(Error::Io { path: directory.into(), error }),
        }
    }
}

/// The keys that are said, as the side file has them.
fn crest_json(crest: &CrestOverrides) -> Map<String, Value> {
    // The shortest decimal that is this f32, not the digits of the f64 beside it.
    let threshold = crest.halt_threshold.and_then(|threshold| threshold.to_string().parse::<f64>().ok());
    said([
        ("num_steps", crest.num_steps.map(|steps| json!(steps))),
        ("step_input", crest.step_input.map(|value| json!(value.as_str()))),
        ("gate_input", crest.gate_input.map(|value| json!(value.as_str()))),
        ("halt_mode", crest.halt_mode.map(|value| json!(value.as_str()))),
        ("halt_threshold", threshold.map(|threshold| json!(threshold))),
        ("halt_weights", crest.halt_weights.map(|value| json!(value.as_str()))),
        ("halt_enabled", crest.halt_enabled.map(|enabled| json!(enabled))),
    ])
}

fn kv_json(kv: KvOverrides) -> Map<String, Value> {
    said([
        ("activation", kv.activation.map(|value| json!(value.as_str()))),
        ("k_stage", kv.k_stage.map(|value| json!(value.as_str()))),
    ])
}

fn said<const N: usize>(keys: [(&str, Option<Value>); N]) -> Map<String, Value> {
    keys.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

fn only(object: &Fields, keys: &[&str]) -> Result<()> {
    match object.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(key) => Err(object.error(key, format!("is not an option, expected one of {}", keys.join(", ")))),
        None => Ok(()),
    }
}

fn foreign(root: &Fields, key: &str, message: &str) -> Error {
    root.error(key, format!("{message}: correct it, or remove the file"))
}

/// What two files state must be the same.
fn agree(object: &Fields, here: &Map<String, Value>, elsewhere: &Map<String, Value>) -> Result<()> {
    let differs = |(key, value): &(&String, &Value)| elsewhere.get(*key).is_some_and(|other| other != *value);
    match here.iter().find(differs) {
        Some((key, value)) => {
            let other = elsewhere.get(key).cloned().unwrap_or_default();
            let message = format!(
                "is {value}, but another file of the model states {other}: correct this file, or remove the key from it"
            );
            Err(object.error(key, message))
        }
        None => Ok(()),
    }
}
