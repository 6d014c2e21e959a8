//! `config.json`: every value that cannot be used, and every key that is not computed; `generation_config.json`.

use std::path::Path;

use serde_json::Value;

use super::Verification;
use super::finding::{Check, Finding};
use crate::checkpoint::ModelDir;
use crate::checkpoint::names::shown_within;
use crate::config::{GenerationConfig, ModelConfig, json};
use crate::{Error, Result};

/// Largest config that is read, in bytes: that of the reader.
const LIMIT: u64 = 4 << 20;
/// Most values of one config that are reported.
const MOST: usize = 64;

/// The config, where it can be used, and the generation defaults.
pub(super) fn check(dir: &ModelDir, out: &mut Verification) -> (Option<ModelConfig>, GenerationConfig) {
    let config = match ModelConfig::from_dir(dir) {
        Ok(config) => {
            notes(&config, out);
            unread(dir, out);
            Some(config)
        }
        Err(error) => {
            for error in all_errors(dir, error) {
                let finding = Finding::of(Check::Config, &error, dir.path());
                out.push(finding.advice("correct the value, or download this file again"));
            }
            let finding = Finding::note(Check::Tensors, "were not compared with the config, which cannot be used");
            out.push(finding);
            None
        }
    };
    // A file that cannot be read is reported with the others.
    let generation = GenerationConfig::from_dir(dir).unwrap_or_default();
    check_generation(dir, &generation, config.as_ref(), out);
    (config, generation)
}

/// The first error and those that are found when its value is left out, and so on.
fn all_errors(dir: &ModelDir, first: Error) -> Vec<Error> {
    let path = dir.path().join(ModelConfig::FILE);
    let mut errors = vec![first];
    let Some(mut value) = dir.read(ModelConfig::FILE, LIMIT).ok().flatten().and_then(|bytes| json::parse(&bytes).ok())
    else {
        return errors;
    };
    while errors.len() < MOST {
        let Some(Error::Config { path: file, field, .. }) = errors.last() else { break };
        if *file != path || !remove(&mut value, field) {
            break;
        }
        match reread(&path, &value) {
            Err(error @ Error::Config { .. }) => {
                let Error::Config { field, .. } = &error else { break };
                // A key that is missing because it was left out here is no error of the file.
                let again = errors.iter().any(|known| matches!(known, Error::Config { field: f, .. } if f == field));
                if again {
                    break;
                }
                errors.push(error);
            }
            _ => break,
        }
    }
    errors
}

fn reread(path: &Path, value: &Value) -> Result<ModelConfig> {
    ModelConfig::from_json(path, value.to_string().as_bytes())
}

/// Takes a key of the file, or of its text config, out; false when it is not there.
fn remove(value: &mut Value, field: &str) -> bool {
    let Some(map) = value.as_object_mut() else { return false };
    if map.remove(field).is_some() {
        return true;
    }
    let inner = map.get_mut("text_config").and_then(Value::as_object_mut);
    let key = field.strip_prefix("text_config.").unwrap_or(field);
    inner.is_some_and(|inner| inner.remove(key).is_some())
}

fn notes(config: &ModelConfig, out: &mut Verification) {
    for note in &config.notes.assumed {
        out.push(Finding::note(Check::Config, note).file(ModelConfig::FILE));
    }
    for note in &config.notes.unused {
        let finding = Finding::warning(Check::Key, note).file(ModelConfig::FILE);
        out.push(finding.advice("look up what the author's code does with it; without it the numbers may be others"));
    }
    if config.auto_map {
        let finding = Finding::note(Check::Config, "asks for Python code of its own, which is never run");
        out.push(finding.file(ModelConfig::FILE).place("auto_map"));
    }
}

fn unread(dir: &ModelDir, out: &mut Verification) {
    let path = dir.path().join(ModelConfig::FILE);
    let Ok(Some(bytes)) = dir.read(ModelConfig::FILE, LIMIT) else { return };
    for (key, value) in ModelConfig::unread_keys(&path, &bytes).unwrap_or_default().into_iter().take(MOST) {
        let found = format!(
            "{}: emberlm does not know this key and computes nothing of it",
            shown_within(&value.to_string(), 80)
        );
        let finding = Finding::warning(Check::Key, found).file(ModelConfig::FILE).place(&key);
        let advice = "look up what the author's code does with it; if it changes what is computed, results differ from the author's";
        out.push(finding.advice(advice));
    }
}

fn check_generation(
    dir: &ModelDir,
    generation: &GenerationConfig,
    config: Option<&ModelConfig>,
    out: &mut Verification,
) {
    let file = GenerationConfig::FILE;
    let path = format!("{}: ", dir.path().join(file).display());
    for message in &generation.unusable {
        let message = message.strip_prefix(&path).unwrap_or(message);
        let finding = Finding::error(Check::Generation, message).file(file);
        out.push(finding.advice("correct the value, or download this file again"));
    }
    for key in generation.unsupported.iter().chain(&generation.unsupported_in_draws) {
        let finding = Finding::note(Check::Generation, "is not supported: texts may differ from those of the author");
        out.push(finding.file(file).place(key));
    }
    let Some(config) = config else { return };
    let ids = [
        ("eos_token_id", file, generation.eos_token_ids.as_slice()),
        ("eos_token_id", ModelConfig::FILE, &config.eos_token_ids),
        ("bos_token_id", file, generation.bos_token_id.as_slice()),
        ("bos_token_id", ModelConfig::FILE, config.bos_token_id.as_slice()),
        ("suppress_tokens", file, &generation.processors.suppress_tokens),
    ];
    for (key, file, ids) in ids {
        for id in ids.iter().filter(|&&id| id as usize >= config.vocab_size) {
            let finding = Finding::error(Check::Generation, format!("token {id}")).file(file).place(key);
            let finding = finding.expected(format!("ids below vocab_size, {}", config.vocab_size));
            out.push(finding.advice("the file belongs to another model: download it again"));
        }
    }
    if config.eos_token_ids.is_empty() && generation.eos_token_ids.is_empty() {
        let finding = Finding::note(Check::Generation, "no file states a token that ends a text");
        out.push(finding.advice("the tokenizer's end token is used, where it names one"));
    }
}
