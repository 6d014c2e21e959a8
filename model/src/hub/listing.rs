//! What a repository holds at one commit.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::address::encode;
use super::client::{Client, Request, Retries};
use super::error::{HubError, HubResult};
use super::name::{HubName, is_commit, safe_path};
use super::progress::OnPull;
use crate::checkpoint::names::shown;
use crate::file_hash::FileHash;

/// The files of a repository at a commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    /// What the hub states of each, under its path. Files whose names are not safe on every platform are left out.
    pub files: BTreeMap<String, Stated>,
}

/// What a hub states of a file, as far as the list has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Stated {
    pub length: Option<u64>,
    pub hash: Option<FileHash>,
}

/// What a file must be.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub length: u64,
    pub hash: FileHash,
}

#[derive(Deserialize)]
struct RawModel {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<RawLfs>,
}

#[derive(Deserialize)]
struct RawLfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Asks for the files of a model at its revision, and for the commit that this is.
    ///
    /// # Errors
    /// As [`Client::json`]; [`HubError::Answer`] when the answer names no commit.
    pub fn ask(client: &Client, name: &HubName, on: OnPull<'_>) -> HubResult<Self> {
        let model = name.to_string();
        let path = format!("/api/models/{}/revision/{}?blobs=true", name.repository(), encode(name.revision(), false));
        let request = Request { path: &path, model: &model, file: None, range: None, if_range: None };
        let raw: RawModel = client.json(request, on)?;
        let commit = raw.sha.filter(|commit| is_commit(commit)).ok_or_else(|| HubError::Answer {
            url: client.endpoint(),
            message: format!("the answer about {} names no commit: is HF_ENDPOINT a hub?", shown(&model)),
        })?;
        let files = raw.siblings.into_iter().filter_map(|file| {
            let (lfs_hash, lfs_size) = file.lfs.map_or((None, None), |lfs| (Some(lfs.sha256), lfs.size));
            // The blob of a file in LFS is its pointer.
            let hash = lfs_hash.unwrap_or(file.blob_id).and_then(|hex| FileHash::from_hex(&hex));
            Some((safe_path(&file.rfilename)?, Stated { length: lfs_size.or(file.size), hash }))
        });
        Ok(Self { commit, files: files.collect() })
    }

    /// What a file must be. Hubs that do not state it in the list state it in the headers of the file.
    ///
    /// # Errors
    /// [`HubError::NotFound`] when there is no such file, [`HubError::Answer`] when no hash or length is stated.
    pub fn expected(&self, client: &Client, name: &HubName, file: &str, on: OnPull<'_>) -> HubResult<Expected> {
        let model = name.to_string();
        let stated = self.files.get(file).cloned().ok_or_else(|| HubError::NotFound {
            model: model.clone(),
            message: format!("the repository holds no {}", shown(file)),
        })?;
        if let Stated { length: Some(length), hash: Some(hash) } = stated {
            return Ok(Expected { length, hash });
        }
        let path = resolve_path(name, &self.commit, file);
        let request = Request { path: &path, model: &model, file: Some(file), range: None, if_range: None };
        let mut retries = Retries::new(client, on);
        let answer = loop {
            match client.head(request) {
                Ok(answer) => break answer,
                Err(failure) => retries.wait(failure)?,
            }
        };
        let hash = stated.hash.or_else(|| FileHash::from_etag(answer.stated_etag.as_deref()?));
        let length = stated.length.or(answer.stated_length);
        match (hash, length) {
            (Some(hash), Some(length)) => Ok(Expected { length, hash }),
            _ => {
                let message = "the server states no length or no hash of this file, so a download could not be checked: is HF_ENDPOINT a hub?";
                Err(HubError::Answer { url: answer.url, message: message.into() })
            }
        }
    }
}

/// Where a file is at a commit.
pub(super) fn resolve_path(name: &HubName, commit: &str, file: &str) -> String {
    format!("/{}/resolve/{commit}/{}", name.repository(), encode(file, true))
}
