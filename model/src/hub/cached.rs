//! Which models the cache holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::cache::{has_weights, only_folder_with_weights};
use super::error::{HubError, HubResult};
use super::name::is_commit;
use super::select::CONFIG;

/// A snapshot of a model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CachedModel {
    /// `org/name`.
    pub repository: String,
    /// The commit.
    pub commit: String,
    /// Branches and tags that stand for it.
    pub revisions: Vec<String>,
    /// The directory with the model's files.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether its config and all of its weights are there.
    pub complete: bool,
}

/// Files of a snapshot that are looked at; caches of data sets have more.
const MOST_FILES: usize = 10_000;

impl CachedModel {
    /// All of a cache, by name.
    pub(super) fn list(cache: &Path) -> HubResult<Vec<Self>> {
        let entries = match fs::read_dir(cache) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(HubError::io(cache, source)),
        };
        let mut models = Vec::new();
        for entry in entries.flatten() {
            let Ok(folder) = entry.file_name().into_string() else { continue };
            let Some(repository) = repository_name(&folder) else { continue };
            let revisions = revisions(&entry.path().join("refs"));
            for snapshot in fs::read_dir(entry.path().join("snapshots")).into_iter().flatten().flatten() {
                let Ok(commit) = snapshot.file_name().into_string() else { continue };
                if is_commit(&commit) {
                    let named =
                        revisions.iter().filter(|(_, of)| **of == commit).map(|(name, _)| name.clone()).collect();
                    models.push(Self::new(repository.clone(), commit, named, &snapshot.path()));
                }
            }
        }
        models.sort_by(|a, b| (&a.repository, &a.commit).cmp(&(&b.repository, &b.commit)));
        Ok(models)
    }

    fn new(repository: String, commit: String, revisions: Vec<String>, snapshot: &Path) -> Self {
        let folder = only_folder_with_weights(snapshot);
        let path = if folder.is_empty() { snapshot.to_owned() } else { snapshot.join(folder.trim_end_matches('/')) };
        let complete = path.join(CONFIG).is_file() && has_weights(&path);
        let bytes = files(snapshot).iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum();
        Self { repository, commit, revisions, path, bytes, complete }
    }
}

/// `org/name` of a directory in a hub's cache, whichever program made it.
pub fn repository_of(directory: &Path) -> Option<String> {
    let snapshots = directory.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "snapshots"))?;
    repository_name(snapshots.parent()?.file_name()?.to_str()?)
}

/// `org/name` of `models--org--name`. Names of old models have no `org`.
fn repository_name(folder: &str) -> Option<String> {
    Some(folder.strip_prefix("models--")?.replace("--", "/"))
}

/// Branches and tags with their commits.
fn revisions(refs: &Path) -> BTreeMap<String, String> {
    let relative = |file: &PathBuf| Some(file.strip_prefix(refs).ok()?.to_str()?.replace('\\', "/"));
    let read = |file: &PathBuf| fs::read_to_string(file).ok().map(|text| text.trim().to_owned());
    files(refs).iter().filter_map(|file| Some((relative(file)?, read(file)?))).collect()
}

/// The files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                // A link to a folder is not followed: it could lead back.
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) if found.len() < MOST_FILES => found.push(entry.path()),
                _ => {}
            }
        }
        folders.truncate(MOST_FILES);
    }
    found
}
