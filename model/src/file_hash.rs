//! Hashes that a hub states of its files, and files against them: SHA-256 of large ones, git's SHA-1 of small ones.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The hash of a file: SHA-256 of those that git-lfs or Xet hold, git's own of small ones. Blobs in the cache are named by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FileHash {
    /// 64 hexadecimal digits.
    Sha256(String),
    /// SHA-1 of a header and the file, 40 hexadecimal digits.
    GitBlob(String),
}

impl std::fmt::Display for FileHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "sha256 {hex}"),
            Self::GitBlob(hex) => write!(f, "git sha1 {hex}"),
        }
    }
}

impl FileHash {
    /// Reads hexadecimal digits; which hash they are is told by their number.
    pub fn from_hex(text: &str) -> Option<Self> {
        let hex = text.to_ascii_lowercase();
        if !hex.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        match hex.len() {
            64 => Some(Self::Sha256(hex)),
            40 => Some(Self::GitBlob(hex)),
            _ => None,
        }
    }

    /// Reads an ETag, which on a hub is a hash in quotation marks.
    pub fn from_etag(etag: &str) -> Option<Self> {
        Self::from_hex(etag.trim().trim_start_matches("W/").trim_matches('"'))
    }

    /// The name of the blob, which is also the file's ETag.
    #[cfg(feature = "hub")]
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// The hash of this kind that a file of this length has; `tell` hears of every piece that was read, in bytes.
    pub fn of_same_kind(&self, file: &mut File, length: u64, tell: impl FnMut(u64)) -> io::Result<Self> {
        match self {
            Self::Sha256(_) => digits(Sha256::new(), file, tell).map(Self::Sha256),
            Self::GitBlob(_) => {
                digits(Sha1::new().chain_update(format!("blob {length}\0")), file, tell).map(Self::GitBlob)
            }
        }
    }

    /// Whether a file of this length has this hash; `tell` as above.
    #[cfg(feature = "hub")]
    pub fn matches(&self, file: &mut File, length: u64, tell: impl FnMut(u64)) -> io::Result<bool> {
        Ok(self.of_same_kind(file, length, tell)? == *self)
    }
}

/// The hash of what it has and the whole file, in hexadecimal digits.
fn digits(mut hash: impl Digest, file: &mut File, mut tell: impl FnMut(u64)) -> io::Result<String> {
    const PIECE: usize = 1 << 20;
    file.seek(SeekFrom::Start(0))?;
    let mut piece = vec![0; PIECE];
    loop {
        let read = match file.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let bytes = piece.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        hash.update(bytes);
        tell(read as u64);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello\n").unwrap();
        // `git hash-object` and `sha256sum`.
        let git = FileHash::from_etag("\"ce013625030ba8dba906f756967f9e9ca394464a\"").unwrap();
        let sha =
            FileHash::from_etag("W/\"5891B5B522D5DF086D0FF0B110FBD9D21BB4FC7163AF34D08286A2E846F6BE03\"").unwrap();
        assert!(matches!((&git, &sha), (FileHash::GitBlob(_), FileHash::Sha256(_))));
        let mut told = 0;
        assert_eq!(git.of_same_kind(&mut file, 6, |bytes| told += bytes).unwrap(), git);
        assert_eq!(sha.of_same_kind(&mut file, 6, |_| ()).unwrap(), sha);
        assert_eq!(told, 6);
        file.write_all(b"x").unwrap();
        assert_ne!(git.of_same_kind(&mut file, 7, |_| ()).unwrap(), git);
        assert_ne!(sha.of_same_kind(&mut file, 7, |_| ()).unwrap(), sha);
        for other in ["", "\"\"", "\"abc\"", "\"zz013625030ba8dba906f756967f9e9ca394464a\"", "../../x"] {
            assert_eq!(FileHash::from_etag(other), None);
        }
    }
}
