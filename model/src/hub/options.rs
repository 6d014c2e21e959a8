//! Where the hub and its cache are, and how to download: what the environment says in the variables of `huggingface_hub`.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{HubError, HubResult};

/// The hub that is asked unless `HF_ENDPOINT` names another.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How a hub is asked and where downloads are kept.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HubOptions {
    /// Address of the hub, `https://host[:port][/path]`.
    pub endpoint: String,
    /// Directory of the cache, which holds `models--org--name`.
    pub cache: PathBuf,
    /// Access token, sent to the endpoint alone.
    pub token: Option<Token>,
    /// A file of certificates (PEM), or a directory of them, that are trusted as authorities instead of those of the system.
    pub certificates: Option<PathBuf>,
    /// Never use the network.
    pub offline: bool,
    /// Connections at once for a large file.
    pub connections: usize,
    /// Bytes of a part of a large file; each part is a request of its own.
    pub part_bytes: u64,
    /// Longest time without a byte, to connect, or to the head of an answer.
    pub patience: Duration,
    /// Attempts in a row that may bring nothing.
    pub attempts: u32,
    /// Wait after the first of them, doubled after each.
    pub pause: Duration,
    /// Longest wait that a server may ask for (`Retry-After`).
    pub longest_wait: Duration,
}

/// An access token. Its `Debug` output hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as it stands in a variable or a file.
    ///
    /// # Errors
    /// A message, without the token, when it is empty or holds what no header can.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() || text.len() > 4096 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("is no access token: a token is one word of letters, digits and `_`, such as hf_...".into());
        }
        Ok(Self(text.to_owned()))
    }

    /// For the one header that it is sent in.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }

    /// A text without the token, where a server put it into one that is shown.
    pub(super) fn hide_in(&self, text: &str) -> String {
        text.replace(&self.0, "...")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl HubOptions {
    /// The public hub with a cache in this directory and no token; the environment is not asked.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.into(),
            cache: cache.into(),
            token: None,
            certificates: None,
            offline: false,
            connections: 4,
            part_bytes: 64 << 20,
            patience: Duration::from_secs(30),
            attempts: 5,
            pause: Duration::from_millis(500),
            longest_wait: Duration::from_secs(120),
        }
    }

    /// As `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE` say, with the meaning that
    /// `huggingface_hub` gives them; `SSL_CERT_FILE`, else `REQUESTS_CA_BUNDLE`, else `CURL_CA_BUNDLE`, names the [certificates](Self::certificates).
    ///
    /// # Errors
    /// [`HubError::Setting`] names the variable that cannot be used.
    pub fn from_env() -> HubResult<Self> {
        Self::from_lookup(std::env::home_dir(), |name| std::env::var_os(name))
    }

    /// As [`Self::from_env`], with variables from elsewhere.
    pub(super) fn from_lookup(home: Option<PathBuf>, variable: impl Fn(&str) -> Option<OsString>) -> HubResult<Self> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| given(name).map(|value| expand(PathBuf::from(value), home.as_deref()));
        let hf_home = match path("HF_HOME") {
            Some(path) => path,
            None => {
                let cache = path("XDG_CACHE_HOME").or_else(|| home.as_ref().map(|home| home.join(".cache")));
                let cache = cache.ok_or_else(|| HubError::Setting {
                    variable: "HF_HOME",
                    message: "is not set, and there is no home directory: set it to the directory of the cache".into(),
                })?;
                cache.join("huggingface")
            }
        };
        let cache =
            path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub"));
        let mut options = Self::new(cache);
        if let Some(endpoint) = given("HF_ENDPOINT") {
            let endpoint = endpoint.to_str().map(|text| text.trim_end_matches('/').to_owned());
            options.endpoint = endpoint.ok_or_else(|| HubError::Setting {
                variable: "HF_ENDPOINT",
                message: "is not Unicode: it is an address such as https://huggingface.co".into(),
            })?;
        }
        for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
            let Some(path) = path(variable) else { continue };
            if !path.exists() {
                let message = format!("{}: there is no such file", path.display());
                return Err(HubError::Setting { variable, message });
            }
            options.certificates = Some(path);
            break;
        }
        options.offline = given("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value));
        options.token = match given("HF_TOKEN") {
            Some(token) => {
                let text = token.to_str().unwrap_or_default();
                Some(Token::new(text).map_err(|message| HubError::Setting { variable: "HF_TOKEN", message })?)
            }
            None => token_file(&path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token")))?,
        };
        Ok(options)
    }
}

/// The token that `hf auth login` left, if any.
fn token_file(path: &Path) -> HubResult<Option<Token>> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(HubError::io(path, source)),
    };
    if text.trim().is_empty() {
        return Ok(None);
    }
    let wrong =
        |message| HubError::Setting { variable: "HF_TOKEN_PATH", message: format!("{}: {message}", path.display()) };
    Token::new(&text).map(Some).map_err(wrong)
}

fn is_true(value: &std::ffi::OsStr) -> bool {
    let value = value.to_str().unwrap_or_default().to_ascii_uppercase();
    matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE")
}

/// `~/` at the beginning stands for the home directory.
fn expand(path: PathBuf, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> HubResult<HubOptions> {
        let variables = variables.to_vec();
        HubOptions::from_lookup(Some("/home/me".into()), move |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(*value))
        })
    }

    #[test]
    fn variables_mean_what_they_mean_in_python() {
        let plain = from(&[]).unwrap();
        assert_eq!(plain.cache, Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!((plain.endpoint.as_str(), plain.offline, plain.token), (DEFAULT_ENDPOINT, false, None));
        assert_eq!(from(&[("XDG_CACHE_HOME", "/x")]).unwrap().cache, Path::new("/x/huggingface/hub"));
        assert_eq!(from(&[("HF_HOME", "~/hf")]).unwrap().cache, Path::new("/home/me/hf/hub"));
        assert_eq!(from(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]).unwrap().cache, Path::new("/c"));
        assert_eq!(from(&[("HF_ENDPOINT", "http://127.0.0.1:1/")]).unwrap().endpoint, "http://127.0.0.1:1");
        for (value, offline) in [("1", true), ("true", true), ("YES", true), ("0", false), ("no", false)] {
            assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).unwrap().offline, offline, "{value}");
        }
    }

    #[test]
    fn certificates_come_from_the_first_variable_that_is_set() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            std::fs::write(dir.path().join(name), "").unwrap();
            dir.path().join(name)
        };
        let (one, two, three) = (path("one"), path("two"), path("three"));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let all = [("CURL_CA_BUNDLE", text(&three)), ("REQUESTS_CA_BUNDLE", text(&two)), ("SSL_CERT_FILE", text(&one))];
        let chosen = |variables: &[(&str, String)]| {
            let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            from(&variables).unwrap().certificates
        };
        assert_eq!(chosen(&all), Some(one));
        assert_eq!(chosen(&all[..2]), Some(two));
        assert_eq!(chosen(&all[..1]), Some(three));
        assert_eq!(chosen(&[]), None);
        let error = from(&[("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")]).unwrap_err().to_string();
        assert!(error.contains("REQUESTS_CA_BUNDLE") && error.contains("/nowhere/ca.pem"), "{error}");
    }

    #[test]
    fn a_token_comes_from_the_variable_or_the_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (file, empty) = (dir.path().join("token"), dir.path().join("empty"));
        std::fs::write(&file, "hf_secret\n").unwrap();
        std::fs::write(&empty, "\n").unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let token = |variables: &[(&str, &str)]| from(variables).unwrap().token.map(|token| token.reveal().to_owned());
        assert_eq!(token(&[("HF_TOKEN_PATH", &path(&file))]).as_deref(), Some("hf_secret"));
        assert_eq!(token(&[("HF_HOME", &path(dir.path()))]).as_deref(), Some("hf_secret"));
        assert_eq!(token(&[("HF_TOKEN", " hf_other "), ("HF_TOKEN_PATH", &path(&file))]).as_deref(), Some("hf_other"));
        assert_eq!(token(&[("HF_TOKEN_PATH", &path(&empty))]), None);
        let shown = format!("{:?}", from(&[("HF_TOKEN", "hf_secret")]).unwrap());
        assert!(shown.contains("Token(..)") && !shown.contains("secret"), "{shown}");
        let error = from(&[("HF_TOKEN", "hf_secret\nX: y")]).unwrap_err();
        assert!(error.to_string().contains("HF_TOKEN") && !format!("{error} {error:?}").contains("secret"));
    }
}
