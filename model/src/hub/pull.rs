//! A whole model: from the cache, or from the hub into the cache.

use std::fs;
use std::path::{Path, PathBuf};

use super::cache::{Held, Repository, make_dir};
use super::cached::CachedModel;
use super::client::Client;
use super::download::Download;
use super::error::{HubError, HubResult};
use super::listing::{Expected, Listing, resolve_path};
use super::name::{HubName, is_commit};
use super::options::HubOptions;
use super::partial::Partial;
use super::progress::{OnPull, PullEvent, PullPlan};
use super::select::{Selection, StoredWeights, TOKENIZER};
use crate::cancel::CancelHandle;
use crate::checkpoint::names::list;
use crate::checkpoint::{MAX_INDEX_BYTES, parse_index};

/// A hub and the cache of its models.
#[derive(Debug)]
pub struct Hub {
    client: Client,
    options: HubOptions,
}

impl Hub {
    /// A hub with these options.
    ///
    /// # Errors
    /// [`HubError::Setting`] when the endpoint is no address.
    pub fn new(options: HubOptions) -> HubResult<Self> {
        Ok(Self { client: Client::new(&options)?, options })
    }

    /// The hub and the cache that the environment names: [`HubOptions::from_env`].
    ///
    /// # Errors
    /// [`HubError::Setting`] names the variable that cannot be used.
    pub fn from_env() -> HubResult<Self> {
        Self::new(HubOptions::from_env()?)
    }

    /// The options.
    pub fn options(&self) -> &HubOptions {
        &self.options
    }

    /// Ends the downloads of this hub, from another thread or what hears of them: with [`HubError::Cancelled`], when the next bytes come or after
    /// the [patience](HubOptions::patience) for them. What came is kept, and another hub goes on with it; this one asks for nothing more.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.client.cancel_handle().clone()
    }

    /// The directory of a model that is in the cache, all of it as far as is known; the network is not used.
    ///
    /// # Errors
    /// [`HubError::Io`] when the cache cannot be read.
    pub fn cached(&self, name: &HubName) -> HubResult<Option<PathBuf>> {
        Ok(self.find(name)?.filter(|(_, held)| *held == Held::All).map(|(path, _)| path))
    }

    /// The models in the cache.
    ///
    /// # Errors
    /// [`HubError::Io`] when the cache cannot be read.
    pub fn models(&self) -> HubResult<Vec<CachedModel>> {
        CachedModel::list(&self.options.cache)
    }

    /// The directory of a model: from the cache where all of it is there, without asking the hub, else as [`Self::pull`]. Of a model that
    /// another program downloaded it is not known whether all of it is there. At a commit, which cannot change, it is taken when it has
    /// weights and a tokenizer; at a branch or tag the hub is asked once, and the model is taken as it is where the hub cannot be reached
    /// or does not let us in.
    ///
    /// # Errors
    /// As [`Self::pull`].
    pub fn get(&self, name: &HubName, on: OnPull<'_>) -> HubResult<PathBuf> {
        let path = match self.find(name)? {
            Some((path, Held::All)) => return Ok(path),
            Some((path, Held::Weights)) if is_commit(name.revision()) && path.join(TOKENIZER).is_file() => {
                return Ok(path);
            }
            Some((path, Held::Weights)) if !self.options.offline => path,
            _ => return self.pull(name, on),
        };
        let pulled =
            Listing::ask(&self.client.hurried(), name, on).and_then(|listing| self.pull_listed(name, &listing, on));
        match pulled {
            Err(error @ (HubError::Network { .. } | HubError::RateLimited { .. } | HubError::Denied { .. })) => {
                tracing::warn!("{error}; the files that are in the cache are used");
                Ok(path)
            }
            result => result,
        }
    }

    /// Downloads what the cache lacks of a model at the commit that its revision stands for now, and gives the directory with its files.
    ///
    /// # Errors
    /// [`HubError`] names what is wrong and what to do. What was downloaded before it stays and is not downloaded again.
    pub fn pull(&self, name: &HubName, on: OnPull<'_>) -> HubResult<PathBuf> {
        if self.options.offline {
            return self.without_network(name);
        }
        self.pull_listed(name, &Listing::ask(&self.client, name, on)?, on)
    }

    fn pull_listed(&self, name: &HubName, listing: &Listing, on: OnPull<'_>) -> HubResult<PathBuf> {
        let repository = self.repository(name);
        let no_model = |message| HubError::NoModel { model: name.to_string(), message };
        let files = listing.files.keys().map(String::as_str);
        let selection = Selection::new(files, name.subfolder()).map_err(no_model)?;

        let job = Job { hub: self, name, listing, repository: &repository, on };
        let weights = match &selection.weights {
            StoredWeights::Single(file) => vec![file.clone()],
            StoredWeights::Index(file) => job.shards(&selection.folder, file)?,
        };
        // The weights come last: what has them has the rest too.
        let index = match &selection.weights {
            StoredWeights::Index(file) => Some(file),
            StoredWeights::Single(_) => None,
        };
        let mut wanted = Vec::new();
        for file in selection.small.iter().chain(index).chain(&weights) {
            wanted.push((file.as_str(), listing.expected(&self.client, name, file, on)?));
        }
        job.plan(&wanted)?;
        for (file, expected) in &wanted {
            job.get(file, expected)?;
        }
        repository.note_absent(&listing.commit, &selection.folder)?;
        repository.write_ref(name.revision(), &listing.commit)?;
        let snapshot = repository.snapshot(&listing.commit);
        Ok(if selection.folder.is_empty() { snapshot } else { snapshot.join(selection.folder.trim_end_matches('/')) })
    }

    fn without_network(&self, name: &HubName) -> HubResult<PathBuf> {
        match self.find(name)? {
            Some((path, Held::All | Held::Weights)) => Ok(path),
            found => {
                let some = found.is_some_and(|(path, _)| path.is_dir());
                let lacks = if some { "; a part of it is there: let the rest be downloaded" } else { "" };
                let cache = self.options.cache.clone();
                Err(HubError::Offline { model: name.to_string(), cache, lacks: lacks.into() })
            }
        }
    }

    fn find(&self, name: &HubName) -> HubResult<Option<(PathBuf, Held)>> {
        let repository = self.repository(name);
        let commit = repository.commit_of(name.revision())?;
        Ok(commit.map(|commit| repository.find(&commit, name.subfolder())))
    }

    fn repository(&self, name: &HubName) -> Repository {
        Repository::new(&self.options.cache, name.repository())
    }
}

/// One pull.
struct Job<'a> {
    hub: &'a Hub,
    name: &'a HubName,
    listing: &'a Listing,
    repository: &'a Repository,
    on: OnPull<'a>,
}

impl Job<'_> {
    /// Downloads an index, unless it is there, and gives the files that it names.
    fn shards(&self, folder: &str, index: &str) -> HubResult<Vec<String>> {
        let expected = self.listing.expected(&self.hub.client, self.name, index, self.on)?;
        let no_model = |message| HubError::NoModel { model: self.name.to_string(), message };
        if expected.length > MAX_INDEX_BYTES {
            return Err(no_model(format!(
                "{index} has {} bytes, at most {MAX_INDEX_BYTES} are accepted",
                expected.length
            )));
        }
        let silent = |event: PullEvent<'_>| {
            if let PullEvent::Retry { .. } | PullEvent::Waiting { .. } = event {
                (self.on)(event);
            }
        };
        let blob = self.download(index, &expected, &silent)?;
        let bytes = fs::read(&blob).map_err(|source| HubError::io(&blob, source))?;
        let shards = parse_index(Path::new(index), &bytes).map_err(|error| no_model(error.to_string()))?;
        let shards: Vec<String> = shards.into_keys().map(|shard| format!("{folder}{shard}")).collect();
        let missing: Vec<&String> = shards.iter().filter(|shard| !self.listing.files.contains_key(*shard)).collect();
        if !missing.is_empty() {
            let message =
                format!("{index} names {} files that are not in the repository: {}", missing.len(), list(&missing));
            return Err(no_model(message));
        }
        Ok(shards)
    }

    /// Adds up what is missing, tells it, and makes sure that it fits the disk.
    fn plan(&self, wanted: &[(&str, Expected)]) -> HubResult<()> {
        let blobs = self.repository.blobs();
        make_dir(&blobs)?;
        let free_bytes = fs4::available_space(&blobs).map_err(|source| HubError::io(&blobs, source))?;
        let mut plan = PullPlan {
            model: self.name.to_string(),
            commit: self.listing.commit.clone(),
            files: wanted.len(),
            bytes: 0,
            missing_files: 0,
            missing_bytes: 0,
            free_bytes,
        };
        for (_, expected) in wanted {
            plan.bytes = plan.bytes.saturating_add(expected.length);
            let there =
                fs::metadata(self.repository.blob(&expected.hash)).is_ok_and(|blob| blob.len() == expected.length);
            if !there {
                let missing = expected.length.saturating_sub(Partial::kept(&blobs, expected));
                plan.missing_files = plan.missing_files.saturating_add(1);
                plan.missing_bytes = plan.missing_bytes.saturating_add(missing);
            }
        }
        let needed = plan.missing_bytes;
        (self.on)(PullEvent::Plan(plan));
        if needed > free_bytes {
            return Err(HubError::Disk { path: blobs, needed, free: free_bytes });
        }
        Ok(())
    }

    /// Downloads a file, unless it is there, and puts it into the snapshot.
    fn get(&self, file: &str, expected: &Expected) -> HubResult<()> {
        self.download(file, expected, self.on)?;
        self.repository.link(&self.listing.commit, file, &expected.hash)
    }

    fn download(&self, file: &str, expected: &Expected, on: OnPull<'_>) -> HubResult<PathBuf> {
        let model = self.name.to_string();
        let path = resolve_path(self.name, &self.listing.commit, file);
        let (client, repository) = (&self.hub.client, self.repository);
        Download { client, repository, model: &model, file, path: &path, expected }.run(on)
    }
}
