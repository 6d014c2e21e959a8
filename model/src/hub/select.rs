//! Which files of a repository a model needs: those that this crate reads, and nothing else. Never pickles, never code.

use crate::checkpoint::names::list;
use crate::checkpoint::{INDEX, SINGLE};

/// Files that are read where there are any, in the order in which they are downloaded. A model needs the first.
pub(super) const SMALL_FILES: [&str; 10] = [
    CONFIG,
    "generation_config.json",
    "crest.json",
    "nano_compact_spec.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    TOKENIZER,
];
pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// Where templates with names of their own are kept.
const TEMPLATES: &str = "additional_chat_templates/";
/// As many as are read.
const MOST_TEMPLATES: usize = 64;

/// The files of a model in a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// The folder with the model: empty, or with a `/` at its end.
    pub folder: String,
    /// All but the weights.
    pub small: Vec<String>,
    pub weights: StoredWeights,
}

/// Where the weights are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StoredWeights {
    /// The one file.
    Single(String),
    /// The index, which names the files.
    Index(String),
}

impl Selection {
    /// Chooses from the files of a repository, or of a folder of it.
    ///
    /// # Errors
    /// A message that says what there is instead of a model.
    pub fn new<'a>(files: impl Iterator<Item = &'a str> + Clone, subfolder: Option<&str>) -> Result<Self, String> {
        let folder = match subfolder {
            Some(folder) => format!("{folder}/"),
            None => find_folder(files.clone())?,
        };
        let inside: Vec<&str> = files.filter_map(|file| file.strip_prefix(folder.as_str())).collect();
        let has = |name: &str| inside.contains(&name);
        let path = |name: &str| format!("{folder}{name}");
        let weights = if has(SINGLE) {
            StoredWeights::Single(path(SINGLE))
        } else if has(INDEX) {
            StoredWeights::Index(path(INDEX))
        } else {
            return Err(nothing_to_load(&inside, subfolder));
        };
        if !has(CONFIG) {
            return Err(format!("holds weights but no {}", path(CONFIG)));
        }
        let is_template = |file: &&&str| {
            file.strip_prefix(TEMPLATES).is_some_and(|name| name.ends_with(".jinja") && !name.contains('/'))
        };
        let templates = inside.iter().filter(is_template).take(MOST_TEMPLATES).map(|file| path(file));
        let small = SMALL_FILES.iter().filter(|name| has(name)).map(|name| path(name)).chain(templates).collect();
        Ok(Self { folder, small, weights })
    }
}

/// The folder of the model: the repository itself, or its only folder with weights.
fn find_folder<'a>(files: impl Iterator<Item = &'a str> + Clone) -> Result<String, String> {
    if files.clone().any(|file| file == SINGLE || file == INDEX) {
        return Ok(String::new());
    }
    let mut folders: Vec<&str> = files
        .filter_map(|file| file.strip_suffix(SINGLE).or_else(|| file.strip_suffix(INDEX)))
        .filter(|folder| folder.ends_with('/'))
        .collect();
    folders.dedup();
    match folders.as_slice() {
        [] => Ok(String::new()),
        [one] => Ok((*one).to_owned()),
        [first, ..] => {
            let names: Vec<&str> = folders.iter().map(|folder| folder.trim_end_matches('/')).collect();
            let first = first.trim_end_matches('/');
            Err(format!(
                "holds models in several folders: add one to the name, as in NAME:{first}; there are {}",
                list(&names)
            ))
        }
    }
}

/// What is there instead of weights.
fn nothing_to_load(files: &[&str], subfolder: Option<&str>) -> String {
    let place = subfolder.map_or_else(String::new, |folder| format!(" in {folder}"));
    let none = format!("no {SINGLE} or {INDEX}{place}");
    let ending = |endings: &[&str]| -> Vec<&str> {
        files.iter().copied().filter(|file| endings.iter().any(|ending| file.ends_with(ending))).collect()
    };
    if files.is_empty() {
        return format!("{none}: there are no files");
    }
    if files.iter().any(|file| file.starts_with("adapter_")) {
        return format!(
            "{none}: this is a LoRA adapter, not a model; merge it into its base first, and give the merged model"
        );
    }
    for (endings, advice) in [
        (
            &[".bin", ".pt", ".pth", ".ckpt"][..],
            "pickles are never downloaded or opened, they can run code: look for a repository with safetensors",
        ),
        (
            &[".gguf", ".ggml"],
            "llama.cpp's format is not read: look for the repository with the model's safetensors files",
        ),
        (&[".safetensors"], "these are not the weights of one model in transformers' layout"),
        (
            &[".onnx", ".h5", ".msgpack", ".npz", ".tflite"],
            "this format is not read: look for a repository with safetensors",
        ),
    ] {
        let found = ending(endings);
        if !found.is_empty() {
            return format!("{none}, but {}: {advice}", list(&found));
        }
    }
    none
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(files: &[&str], folder: Option<&str>) -> Result<Selection, String> {
        Selection::new(files.iter().copied(), folder)
    }

    #[test]
    fn what_a_model_needs_is_chosen() {
        let files = [
            ".gitattributes",
            "README.md",
            "additional_chat_templates/tool.jinja",
            "additional_chat_templates/x.py",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "modeling_sky.py",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer_config.json",
            "onnx/model.safetensors",
        ];
        let chosen = select(&files, None).unwrap();
        assert_eq!(chosen.folder, "");
        assert_eq!(chosen.weights, StoredWeights::Index("model.safetensors.index.json".into()));
        let small = ["config.json", "tokenizer_config.json", "tokenizer.json", "additional_chat_templates/tool.jinja"];
        assert_eq!(chosen.small, small);

        let nested = ["README.md", "nano/config.json", "nano/model.safetensors", "nano/tokenizer.json", "nano/evil.py"];
        let chosen = select(&nested, None).unwrap();
        assert_eq!((chosen.folder.as_str(), chosen.small.len()), ("nano/", 2));
        assert_eq!(chosen, select(&nested, Some("nano")).unwrap());
    }

    #[test]
    fn what_is_there_instead_is_named() {
        let cases: [(&[&str], Option<&str>, &str); 8] = [
            (&[], None, "no files"),
            (&["config.json", "pytorch_model.bin"], None, "pickles"),
            (&["x.Q4_0.gguf"], None, "llama.cpp"),
            (&["adapter_config.json", "adapter_model.safetensors"], None, "adapter"),
            (&["a/model.safetensors", "b/model.safetensors"], None, "several folders"),
            (&["config.json", "model.safetensors"], Some("nano"), "in nano"),
            (&["model.safetensors"], None, "no config.json"),
            (&["consolidated.safetensors"], None, "not the weights of one model"),
        ];
        for (files, folder, part) in cases {
            let error = select(files, folder).unwrap_err();
            assert!(error.contains(part), "{files:?}: {error}");
        }
    }
}
