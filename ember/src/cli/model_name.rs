//! `-m`: a directory, or the name of a model that is in the cache of a hub or is downloaded into it.

#[cfg(feature = "hub")]
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Result;
#[cfg(feature = "hub")]
use anyhow::{Context, anyhow};
use clap::Args;
#[cfg(feature = "hub")]
use emberlm::hub::{self, Hub, HubError, HubName};
use emberlm::model::QuantizeOnLoad;

#[cfg(feature = "hub")]
use super::download;
#[cfg(feature = "hub")]
use super::output;

/// Heading of these flags in the help. It is that of each of them: `next_help_heading` would be that of every flag after them too.
#[cfg(feature = "hub")]
const HEADING: &str = "Models by name";

/// How a model's name is looked up.
#[derive(Args, Clone, Debug, Default)]
pub struct HubArgs {
    /// Branch, tag or commit of a model that -m names [default: main]
    #[cfg(feature = "hub")]
    #[arg(long, value_name = "REVISION", help_heading = HEADING)]
    pub revision: Option<String>,

    /// Download nothing: a model that -m names has to be in the cache
    #[cfg(feature = "hub")]
    #[arg(long, help_heading = HEADING)]
    pub offline: bool,
}

/// The directory of a model. One that exists is meant before a name; a name is looked up in the cache, and then on the hub.
#[cfg(feature = "hub")]
pub fn directory(model: &Path, args: &HubArgs) -> Result<PathBuf> {
    let Some(name) = as_name(model, args)? else { return Ok(model.to_owned()) };
    let hub = open(args)?;
    let found = download::with_progress(|on| hub.get(&name, on), false);
    found.map_err(|error| {
        let nor = match error {
            HubError::NotFound { .. }
            | HubError::Denied { .. }
            | HubError::Offline { .. }
            | HubError::Network { .. }
            | HubError::RateLimited { .. } => {
                format!("there is no directory {}, and no model of this name to be had", model.display())
            }
            _ => format!("cannot get the model {name}"),
        };
        anyhow!(error).context(nor)
    })
}

/// Without the feature `hub` there are directories alone.
#[cfg(not(feature = "hub"))]
pub fn directory(model: &Path, _: &HubArgs) -> Result<PathBuf> {
    Ok(model.to_owned())
}

/// What is recommended to do with the dense weights of a model whose short name was given.
#[cfg(feature = "hub")]
pub fn recommended(model: Option<&Path>) -> Option<QuantizeOnLoad> {
    let name = model.filter(|model| model.symlink_metadata().is_err()).and_then(Path::to_str)?;
    hub::short_name(name)?.quantize
}

#[cfg(not(feature = "hub"))]
pub fn recommended(_: Option<&Path>) -> Option<QuantizeOnLoad> {
    None
}

/// The hub of the environment, or its cache alone.
#[cfg(feature = "hub")]
pub fn open(args: &HubArgs) -> Result<Hub> {
    let mut options = hub::HubOptions::from_env()?;
    options.offline |= args.offline;
    Ok(Hub::new(options)?)
}

/// The name that is meant, or `None` for a path.
#[cfg(feature = "hub")]
fn as_name(model: &Path, args: &HubArgs) -> Result<Option<HubName>> {
    let is_path = is_there(model)? || looks_like_path(model);
    match (is_path, &args.revision) {
        (true, None) => return Ok(None),
        (true, Some(_)) => {
            return Err(anyhow!("--revision is for models by name, and {} is a directory", model.display()));
        }
        (false, _) => {}
    }
    let text = model.to_str().unwrap_or_default();
    let name: HubName = text.parse().map_err(|error| unknown(text, error, "directory"))?;
    let name = match &args.revision {
        Some(revision) => name.at(revision).context("--revision")?,
        None => name,
    };
    Ok(Some(name))
}

/// Whether a path leads to something, or cannot be followed, of which opening it then says why.
///
/// # Errors
/// When it is a link to nothing: no name is meant by it.
#[cfg(feature = "hub")]
fn is_there(model: &Path) -> Result<bool> {
    // What no file can be called, such as a name with a colon on Windows, is not there either.
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    let is_missing =
        |error: &io::Error| matches!(error.kind(), NotFound | NotADirectory | InvalidFilename | InvalidInput);
    match (model.symlink_metadata(), model.metadata()) {
        (Ok(_), Err(error)) if is_missing(&error) => {
            let target = model.read_link().map_or_else(|_| String::new(), |target| format!(" to {}", target.display()));
            Err(anyhow!("{} is a link{target}, which is not there: correct the link, or remove it", model.display()))
        }
        (Err(error), _) => Ok(!is_missing(&error)),
        (Ok(_), _) => Ok(true),
    }
}

/// What could be meant by a text that is no name; `what` was looked for.
#[cfg(feature = "hub")]
pub fn unknown(text: &str, error: HubError, what: &str) -> anyhow::Error {
    let tip = match hub::similar_short_name(text) {
        Some(near) => format!("; did you mean {near}?"),
        None => String::new(),
    };
    anyhow!(error).context(format!("there is no {what} {}{tip}", output::printable(text)))
}

/// Whether a text can only be a path.
#[cfg(feature = "hub")]
fn looks_like_path(model: &Path) -> bool {
    let Some(text) = model.to_str() else { return true };
    let repository = text.split(['@', ':']).next().unwrap_or_default();
    let extension = Path::new(repository).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    model.is_absolute()
        || text.starts_with(['.', '~'])
        || text.contains('\\')
        || repository.is_empty()
        || repository.ends_with('/')
        || repository.matches('/').count() > 1
        || matches!(extension, "safetensors" | "bpk" | "json" | "gguf" | "bin" | "pt")
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names_are_told_apart() {
        let name =
            |text: &str| as_name(Path::new(text), &HubArgs::default()).map(|name| name.map(|name| name.to_string()));
        for path in [
            "/models/x",
            "./x",
            "../x/y",
            "a/b/c",
            "x/",
            "a\\b",
            "C:\\x",
            "org/model.safetensors",
            "model.gguf",
            "~/x",
            "src",
        ] {
            assert_eq!(name(path).unwrap(), None, "{path}");
        }
        assert_eq!(name("org/model@v1:sub/folder").unwrap().as_deref(), Some("org/model@v1:sub/folder"));
        assert_eq!(name("lean-8b").unwrap().as_deref(), Some("miike-ai/LeanLlama-8B-INT4"));
        let error = format!("{:#}", name("sky-lit").unwrap_err());
        assert!(
            error.contains("no directory sky-lit; did you mean sky-lite?") && error.contains("org/name"),
            "{error}"
        );
        assert!(name("org/mo del").is_err());
        let at = HubArgs { revision: Some("v2".into()), offline: false };
        assert_eq!(as_name(Path::new("org/model"), &at).unwrap().unwrap().revision(), "v2");
        assert!(as_name(Path::new("src"), &at).is_err());
        assert_eq!(recommended(Some(Path::new("sky-lite@main"))), Some(QuantizeOnLoad::Nf4));
        assert_eq!(recommended(Some(Path::new("lean-8b"))), None);
    }
}
