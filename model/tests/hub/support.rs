//! What the tests share.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use emberlm_model::hub::{Hub, HubError, HubName, HubOptions, HubResult, Token};

use crate::hub_support::{Repository, Server, Side, TOKEN, git_hash, sha256};

pub const NAME: &str = "org/model";
/// Of the options below.
pub const PART: usize = 16 << 10;
/// What is to be downloaded of [`repository`].
pub const NEEDED: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

/// Bytes that look like none of the others.
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A model with two weight files, the first of many parts, beside what no model needs.
pub fn repository() -> Repository {
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    Repository::default()
        .with("config.json", "{\"model_type\": \"llama\"}", false)
        .with("generation_config.json", "{}", false)
        .with("tokenizer_config.json", "{}", false)
        .with("tokenizer.json", bytes(30_000, 1), true)
        .with("model.safetensors.index.json", index, false)
        .with("model-00001-of-00002.safetensors", bytes(9 * PART + 77, 2), true)
        .with("model-00002-of-00002.safetensors", bytes(PART / 2, 3), true)
        .with("README.md", "# A model", false)
        .with("modeling_model.py", "raise SystemExit", false)
        .with("pytorch_model.bin", bytes(100, 4), true)
        .with("original/model.safetensors", bytes(100, 5), true)
}

pub fn server() -> Server {
    let server = Server::start();
    server.add(NAME, repository());
    server
}

/// Quick and impatient.
pub fn options(server: &Server, cache: &Path) -> HubOptions {
    let mut options = HubOptions::new(cache);
    options.endpoint = server.url().into();
    options.token = Some(Token::new(TOKEN).unwrap());
    options.part_bytes = PART as u64;
    options.pause = Duration::from_millis(1);
    options.patience = Duration::from_secs(5);
    options.longest_wait = Duration::from_secs(3);
    options
}

pub fn hub(server: &Server, cache: &Path) -> Hub {
    Hub::new(options(server, cache)).unwrap()
}

pub fn pull(hub: &Hub, name: &str) -> HubResult<PathBuf> {
    hub.pull(&name.parse::<HubName>().unwrap(), &|_| ())
}

pub fn get(hub: &Hub, name: &str) -> HubResult<PathBuf> {
    hub.get(&name.parse::<HubName>().unwrap(), &|_| ())
}

/// The variant of an error.
pub fn kind(error: &HubError) -> String {
    format!("{error:?}").split([' ', '{']).next().unwrap_or_default().to_owned()
}

/// A directory has these files of a repository, byte by byte.
#[track_caller]
pub fn assert_files(directory: &Path, repository: &Repository, names: &[&str]) {
    for name in names {
        let found = fs::read(directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(found == *repository.files[*name].bytes, "{name} has other bytes");
    }
}

/// Every blob is what its name says, whatever happened. Gives their number.
#[track_caller]
pub fn assert_blobs(cache: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(cache.join("models--org--model/blobs")).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // What is not complete, and what a killed process was about to rename.
        if name.contains(".ember.") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        assert!(name == sha256(&bytes) || name == git_hash(&bytes), "{name} is not what it says");
        count += 1;
    }
    count
}

/// Of what was asked since the last look: the hub was given the token, the store, which was asked too, was not.
#[track_caller]
pub fn assert_token_went_to_the_hub_alone(server: &Server) {
    let asked = server.asked();
    assert!(asked.iter().any(|(asked, _)| asked.side == Side::Store));
    for (asked, _) in asked {
        let expected = (asked.side == Side::Hub).then(|| format!("Bearer {TOKEN}"));
        assert_eq!(asked.authorization, expected, "{:?} {}", asked.side, asked.path);
    }
}
