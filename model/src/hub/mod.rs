//! Models by their name: downloaded from a Hugging Face hub, and kept in its cache, where other programs find them and theirs are found.
//!
//! ```no_run
//! use emberlm_model::Pretrained;
//! use emberlm_model::hub::{Hub, PullEvent};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hub = Hub::from_env()?;
//! let directory = hub.get(&"org/name@main".parse()?, &|event| {
//!     if let PullEvent::Plan(plan) = event {
//!         eprintln!("{} of {} bytes to download", plan.missing_bytes, plan.bytes);
//!     }
//! })?;
//! let pretrained = Pretrained::open(directory)?;
//! # Ok(())
//! # }
//! ```
//!
//! Downloaded is what this crate reads of a model: configs, tokenizer, chat templates, the index and the safetensors files that it names.
//! Pickles and code are not.
//!
//! # Why not hf-hub
//! hf-hub 1.0 begins every file anew, checks neither length nor hash, has no offline mode and lets the HTTP library follow redirects; it brings
//! about 280 crates, a second TLS library and a storage client. What is needed of it, three kinds of GET requests, is made here with `ureq`.
//!
//! # Untrusted input
//! Names, what the hub answers and where it redirects to are a stranger's. Names and paths that could mean another place are refused
//! ([`HubName`]); a file gets its name in the cache when its length and hash are those that the hub lists, and not before; the access
//! token is sent to the endpoint alone and is in no message. Certificates are checked against the authorities that the system trusts, or
//! those of [`HubOptions::certificates`]. That the hub itself lists honest hashes is trusted, as with any client.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod address;
mod cache;
mod cached;
mod client;
mod download;
mod error;
mod listing;
mod lock;
mod name;
mod options;
mod partial;
mod progress;
mod pull;
mod select;
mod trust;

pub use crate::cancel::CancelHandle;
pub use cached::{CachedModel, repository_of};
pub use error::{HubError, HubResult};
pub use name::{DEFAULT_REVISION, HubName, SHORT_NAMES, ShortName, short_name, similar_short_name};
pub use options::{DEFAULT_ENDPOINT, HubOptions, Token};
pub use progress::{OnPull, PullEvent, PullPlan};
pub use pull::Hub;
