//! Names of models on a hub: `org/name[@revision][:subfolder]`, and short names for the models that emberlm is made for.
//!
//! # Untrusted input
//! Parts of a name become parts of paths and addresses. What could mean another place on any platform (`..`, separators, drives,
//! device names, control characters) is refused here, and nothing else in this module builds paths.

use std::fmt;
use std::str::FromStr;

use super::error::{HubError, HubResult};
use crate::checkpoint::names::shown;
use crate::checkpoint::relative;
use crate::plan::QuantizeOnLoad;

/// The revision of a model whose name states none.
pub const DEFAULT_REVISION: &str = "main";

/// A model on a hub.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubName {
    repository: String,
    revision: Option<String>,
    subfolder: Option<String>,
}

/// A short name for a published model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShortName {
    /// What is typed.
    pub name: &'static str,
    /// The repository.
    pub repository: &'static str,
    /// What the model's card recommends to do with dense weights.
    pub quantize: Option<QuantizeOnLoad>,
}

/// Short names of published models.
pub const SHORT_NAMES: [ShortName; 4] = [
    ShortName {
        name: "sky-11b-int4",
        repository: "0labs-in/Sky-v2.0-11B-INT4",
        // Stored in BF16; the card loads it in 4 bits, without quantised block scales.
        quantize: Some(QuantizeOnLoad::Nf4),
    },
    ShortName { name: "sky-lite", repository: "0labs-in/Sky-v2.0-Lite", quantize: Some(QuantizeOnLoad::Nf4) },
    ShortName { name: "nano-3b", repository: "RthItalia/nano_compact_3b_qkvfp16", quantize: None },
    ShortName { name: "lean-8b", repository: "miike-ai/LeanLlama-8B-INT4", quantize: None },
];

/// The published model of a short name; a revision or subfolder may follow it.
pub fn short_name(name: &str) -> Option<&'static ShortName> {
    let end = name.find(['@', ':']).unwrap_or(name.len());
    let name = name.get(..end)?;
    SHORT_NAMES.iter().find(|short| short.name == name)
}

impl HubName {
    /// `org/name`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// The folder of the repository that holds the model, where the name states one.
    pub fn subfolder(&self) -> Option<&str> {
        self.subfolder.as_deref()
    }

    /// The same model at another branch, tag or commit.
    ///
    /// # Errors
    /// [`HubError::Name`] when this cannot be the name of one.
    pub fn at(mut self, revision: &str) -> HubResult<Self> {
        self.revision = Some(parse_revision(revision).map_err(|message| refuse(revision, message))?);
        Ok(self)
    }
}

impl FromStr for HubName {
    type Err = HubError;

    /// Reads `org/name[@revision][:subfolder]`, or a short name in place of `org/name`.
    fn from_str(text: &str) -> HubResult<Self> {
        let wrong = |message| refuse(text, message);
        let end = text.find(['@', ':']).unwrap_or(text.len());
        let (repository, rest) = text.split_at(end);
        let (revision, subfolder) = match rest.strip_prefix('@') {
            None => (None, rest.strip_prefix(':')),
            Some(rest) => match rest.split_once(':') {
                None => (Some(rest), None),
                Some((revision, subfolder)) => (Some(revision), Some(subfolder)),
            },
        };
        let repository = match short_name(repository) {
            Some(short) => short.repository.to_owned(),
            None => parse_repository(repository).map_err(wrong)?,
        };
        let revision = revision.map(parse_revision).transpose().map_err(wrong)?;
        let subfolder = match subfolder {
            None => None,
            Some(folder) => {
                let folder =
                    safe_path(folder).ok_or_else(|| wrong("the part after `:` is not a folder's name".into()))?;
                Some(folder)
            }
        };
        Ok(Self { repository, revision, subfolder })
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(folder) = &self.subfolder {
            write!(f, ":{folder}")?;
        }
        Ok(())
    }
}

fn refuse(name: &str, message: String) -> HubError {
    HubError::Name { name: shown(name), message }
}

/// `org/name`, with the characters that hubs allow.
fn parse_repository(text: &str) -> Result<String, String> {
    const LONGEST: usize = 96;
    let Some((organisation, name)) = text.split_once('/').filter(|(_, name)| !name.contains('/')) else {
        let known: Vec<&str> = SHORT_NAMES.iter().map(|short| short.name).collect();
        return Err(format!("expected org/name[@revision][:subfolder], or one of {}", known.join(", ")));
    };
    for part in [organisation, name] {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if part.is_empty() || part.len() > LONGEST || !part.chars().all(allowed) {
            return Err(format!("each side of `/` is 1 to {LONGEST} letters, digits, `-`, `_` and `.`"));
        }
        if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) || part.contains("--") || part.contains("..") {
            return Err("`-` and `.` are not allowed at the ends of a name, nor `--` and `..` in it".into());
        }
    }
    if name.ends_with(".git") {
        return Err("leave out `.git`".into());
    }
    Ok(text.to_owned())
}

/// A branch, tag, commit or `refs/pr/N`.
fn parse_revision(text: &str) -> Result<String, String> {
    const LONGEST: usize = 200;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+');
    let plain = |part: &str| !part.starts_with(['.', '-']) && !part.contains("..") && !part.ends_with(".lock");
    let fits = text.len() <= LONGEST && text.chars().all(allowed) && text.split('/').all(plain);
    let safe = safe_path(text).filter(|_| fits);
    safe.ok_or_else(|| format!("\"{}\" is not the name of a branch, a tag or a commit", shown(text)))
}

/// The path of a file or folder in a repository, when on every platform it can only mean a place in it.
pub(super) fn safe_path(path: &str) -> Option<String> {
    // What would be normalised is not what the hub calls it.
    let same = relative(path).filter(|normal| normal == path)?;
    same.split('/').all(is_safe_part).then_some(same)
}

/// Whether a part of a path is a plain name on Windows too.
fn is_safe_part(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let digit = |rest: &str| rest.chars().count() == 1 && rest.starts_with(|c: char| c.is_numeric());
    let port = |kind: &str| stem.strip_prefix(kind).is_some_and(digit);
    let device =
        matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$") || port("COM") || port("LPT");
    !device
        && !part.ends_with(['.', ' '])
        && !part.starts_with(' ')
        && !part.contains(|c: char| matches!(c, '<' | '>' | '"' | '|' | '?' | '*') || c.is_control())
}

/// Whether a text is a commit, as hubs write it: 40 hexadecimal digits in lower case.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// The known short name that a text is likely to mean.
pub fn similar_short_name(text: &str) -> Option<&'static str> {
    let lower = text.to_ascii_lowercase();
    let near = SHORT_NAMES.iter().map(|short| (distance(&lower, short.name), short.name)).min()?;
    (near.0 <= near.1.len() / 3).then_some(near.1)
}

/// Characters to insert, delete or replace to get from one text to the other.
fn distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    let b: Vec<char> = b.chars().collect();
    if a.len() > LONGEST {
        return a.len();
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i.saturating_add(1)];
        let mut last = i.saturating_add(1);
        for (pair, &y) in row.windows(2).zip(&b) {
            let &[diagonal, above] = pair else { continue };
            let replaced = diagonal.saturating_add(usize::from(x != y));
            last = replaced.min(above.saturating_add(1)).min(last.saturating_add(1));
            next.push(last);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let all: HubName = "org/na.me-1_x@refs/pr/3:nano/compact".parse().unwrap();
        assert_eq!((all.repository(), all.revision()), ("org/na.me-1_x", "refs/pr/3"));
        assert_eq!(all.subfolder(), Some("nano/compact"));
        assert_eq!(all.to_string(), "org/na.me-1_x@refs/pr/3:nano/compact");
        let folder: HubName = "a/b:sub".parse().unwrap();
        assert_eq!((folder.revision(), folder.subfolder()), ("main", Some("sub")));
        let short: HubName = "sky-lite@v1".parse().unwrap();
        assert_eq!(short.to_string(), "0labs-in/Sky-v2.0-Lite@v1");
        assert_eq!(short.at("v2").unwrap().revision(), "v2");
        for short in SHORT_NAMES {
            assert_eq!(short.name.parse::<HubName>().unwrap().repository(), short.repository);
        }
    }

    #[test]
    fn names_that_could_mean_another_place_are_refused() {
        let wrong = [
            "",
            "/",
            "a",
            "a/",
            "/a",
            "a/b/c",
            "../b",
            "a/..",
            "a/.b",
            "a/b.",
            "a/b--c",
            "a/b..c",
            "a/b.git",
            "a\\b",
            "C:/x",
            "a/b@",
            "a/b@..",
            "a/b@x/../y",
            "a/b@/x",
            "a/b@-x",
            "a/b@x.lock",
            "a/b@x/",
            "a/b@nul",
            "a/b@x y",
            "a/b@x\u{1b}",
            "a/b:",
            "a/b:..",
            "a/b:../x",
            "a/b:/x",
            "a/b:x/",
            "a/b:./x",
            "a/b:c:d",
            "a/b:COM1",
            "a/b:com1.txt",
            "a/b:x.",
            "a/b:x ",
            "a/b:x\\y",
            "a/b:x\0",
            "a/b@x@y",
            "ä/b",
            "a/b\n",
            "a/b?x",
            "a/b#x",
            "a/b%2e%2e",
        ];
        for name in wrong {
            assert!(matches!(name.parse::<HubName>(), Err(HubError::Name { .. })), "{name:?}");
        }
        assert!("a/b".parse::<HubName>().unwrap().at("../x").is_err());
    }

    #[test]
    fn typing_mistakes_are_recognised() {
        assert_eq!(similar_short_name("sky-light"), None);
        assert_eq!(similar_short_name("sky-lit"), Some("sky-lite"));
        assert_eq!(similar_short_name("Sky_Lite"), Some("sky-lite"));
        assert_eq!(similar_short_name("lean8b"), Some("lean-8b"));
        assert_eq!(similar_short_name("something"), None);
    }
}
