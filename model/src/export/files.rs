//! The files of a model directory beside weights and config.

use crate::checkpoint::ModelDir;
use crate::error::Result;

/// Longest of them, in bytes.
const LIMIT: u64 = 128 << 20;

/// What is copied as it is. Model cards are not: they describe another checkpoint. Code is not: nothing here runs it.
const NAMES: [&str; 20] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.md",
    "NOTICE.txt",
    "USE_POLICY.md",
    "ACCEPTABLE_USE_POLICY.md",
];
const TEMPLATES: &str = "additional_chat_templates";
/// More named templates than any model has.
const MOST_TEMPLATES: usize = 64;

/// Names and contents.
pub(super) fn read(dir: &ModelDir) -> Result<Vec<(String, Vec<u8>)>> {
    let mut out = Vec::new();
    for name in NAMES {
        if let Some(bytes) = dir.read(name, LIMIT)? {
            out.push((name.to_owned(), bytes));
        }
    }
    if dir.contains(TEMPLATES) && dir.path().join(TEMPLATES).is_dir() {
        let templates = dir.subfolder(TEMPLATES)?;
        for name in templates.entries()?.into_iter().filter(|name| name.ends_with(".jinja")).take(MOST_TEMPLATES) {
            if let Some(bytes) = templates.read(&name, LIMIT)? {
                out.push((format!("{TEMPLATES}/{name}"), bytes));
            }
        }
    }
    Ok(out)
}
