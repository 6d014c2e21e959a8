//! What lies where a file of a model is expected, recognised by its first bytes in order to say what to do.

/// First lines of the pointers that git keeps in place of large files, with the service's old name.
const LFS_VERSIONS: [&[u8]; 2] =
    [b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"];

/// What to do about a file for which [`is_lfs_pointer`] is true, as the rest of a sentence that begins with its path.
pub const LFS_ADVICE: &str =
    "is a git-lfs pointer, not the file itself: run `git lfs pull` in the directory, or download the file";

/// Whether the bytes of a file begin a git-lfs pointer: a clone without git-lfs has such texts in place of its large files.
/// Format: <https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>.
pub fn is_lfs_pointer(bytes: &[u8]) -> bool {
    LFS_VERSIONS.iter().any(|version| bytes.starts_with(version))
}

/// Whether the bytes begin as a safetensors file does: eight bytes of a length, any of whose values may look like the first bytes of another
/// format (the header of 640 bytes like a pickle), then the header's JSON object.
fn begins_safetensors(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{')
        && bytes.first_chunk().is_some_and(|length| u64::from_le_bytes(*length) <= super::header::MAX_HEADER)
}

/// What a file of a model is instead of what it should be, as the rest of a sentence; `None` for what is not recognised.
pub(crate) fn recognise(bytes: &[u8]) -> Option<&'static str> {
    const CONVERT: [(&[u8], &str); 4] = [
        (b"GGUF", "is a GGUF file by its contents, which is not read: get the model's safetensors files"),
        (
            b"PK\x03\x04",
            "is a zip file by its contents (PyTorch's pickles are), which is never read: convert it to safetensors",
        ),
        (b"\x80\x02", "is a Python pickle by its contents, which is never read: convert it to safetensors"),
        (b"\x89HDF", "is an HDF5 file by its contents, which is not read: convert it to safetensors"),
    ];
    if begins_safetensors(bytes) {
        return None;
    }
    if is_lfs_pointer(bytes) {
        return Some(LFS_ADVICE);
    }
    let start = bytes.trim_ascii_start();
    if start.starts_with(b"<!DOCTYPE") || start.starts_with(b"<!doctype") || start.starts_with(b"<html") {
        return Some("is a web page, not the file itself: the download was answered by a page; download it again");
    }
    CONVERT.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_any_length_is_not_another_format() {
        for length in [0x0280_u64, 0x0001_0280] {
            let file = [&length.to_le_bytes()[..], b"{\"a\":"].concat();
            assert_eq!(recognise(&file), None, "a header of {length} bytes");
        }
    }

    #[test]
    fn pointers_are_told_from_files() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
        assert!(is_lfs_pointer(pointer));
        assert!(is_lfs_pointer(b"version https://hawser.github.com/spec/v1\n"));
        for other in [&b""[..], b"version https://example.com", b"{\"version\": 1}", &40u64.to_le_bytes()] {
            assert!(!is_lfs_pointer(other));
            assert_eq!(recognise(other), None);
        }
        for (bytes, word) in
            [(&b"GGUF\x03"[..], "GGUF"), (b"PK\x03\x04..", "zip"), (b"\x80\x02}", "pickle"), (b"\n<html>", "web page")]
        {
            assert!(recognise(bytes).is_some_and(|text| text.contains(word)));
        }
    }
}
