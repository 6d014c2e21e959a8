//! Names of tensors: how they are shown, which are ignored, and which prefix they carry.

/// Longest text of a file that a message shows.
const SHOWN: usize = 120;
/// Names that a report lists per kind.
const LISTED: usize = 20;

/// A text from a file, safe to print: control and invisible characters escaped, long texts shortened.
pub(crate) fn shown(text: &str) -> String {
    shown_within(text, SHOWN)
}

/// As [`shown`], for texts of up to `limit` bytes.
pub(crate) fn shown_within(text: &str, limit: usize) -> String {
    let escape = |out: &mut String, c: char| match c {
        // Not dangerous, and escaping an escaped text again should not change it.
        '"' | '\'' | '\\' => out.push(c),
        c => out.extend(c.escape_debug()),
    };
    let mut out = String::new();
    if text.len() <= limit {
        text.chars().for_each(|c| escape(&mut out, c));
        return out;
    }
    let tail: Vec<char> = text.chars().rev().take(limit / 6).collect();
    text.chars().take(limit.saturating_mul(2) / 3).for_each(|c| escape(&mut out, c));
    out.push_str("...");
    tail.into_iter().rev().for_each(|c| escape(&mut out, c));
    out.push_str(&format!(" ({} bytes)", text.len()));
    out
}

/// Names for a message, at most [`LISTED`] of them.
pub(crate) fn list<S: AsRef<str>>(names: &[S]) -> String {
    let mut out: Vec<String> = names.iter().take(LISTED).map(|name| shown(name.as_ref())).collect();
    if let Some(more) = names.len().checked_sub(LISTED).filter(|&more| more > 0) {
        out.push(format!("and {more} more"));
    }
    out.join(", ")
}

/// Whether a tensor belongs to a part that is not run: multi-token prediction, vision, buffers that are computed.
pub(super) fn is_ignored(name: &str) -> bool {
    let name = &canonical(name);
    let bare = name.strip_prefix("model.").unwrap_or(name);
    bare.starts_with("mtp.") || name.split('.').any(|part| part == "rotary_emb" || part.contains("visual"))
}

/// The name with the prefix `model.`, whichever prefix it had (`model.` and `language_model.` in any order, each more than
/// once); the head has none.
pub(super) fn canonical(name: &str) -> String {
    let mut bare = name;
    while let Some(shorter) = bare.strip_prefix("model.").or_else(|| bare.strip_prefix("language_model.")) {
        bare = shorter;
    }
    let known = ["layers.", "embed_tokens.", "norm."].iter().any(|part| bare.starts_with(part));
    if bare.starts_with("lm_head.") {
        bare.to_owned()
    } else if known || bare.len() < name.len() {
        format!("model.{bare}")
    } else {
        name.to_owned()
    }
}

/// `("layer index", "rest")` of a canonical name under `model.layers.`.
pub(crate) fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (index, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    // One spelling per layer: no sign, no leading zero.
    let layer: usize = index.parse().ok()?;
    (layer.to_string() == index).then_some((layer, rest))
}

/// The integers in a path, in order.
pub(super) fn integers(path: &str) -> Vec<u64> {
    let digits = path.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    digits.map(|run| run.parse().unwrap_or(u64::MAX)).collect()
}

/// Everything before the last dot.
pub(super) fn owner(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(owner, _)| owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_is_printable_and_short() {
        assert_eq!(shown("a\x1b[31m\n\u{202e}b"), "a\\u{1b}[31m\\n\\u{202e}b");
        assert_eq!(shown("it's \"x\""), "it's \"x\"");
        let long = shown(&"é".repeat(1 << 20));
        assert!(long.len() < 400 && long.ends_with("(2097152 bytes)"), "{long}");
    }

    #[test]
    fn every_prefix_becomes_one() {
        let prefixes = ["model.", "", "model.language_model.", "language_model.model.", "model.language_model.model."];
        for prefix in prefixes.into_iter().chain(["language_model.", "model.model."]) {
            assert_eq!(canonical(&format!("{prefix}layers.0.x")), "model.layers.0.x");
            assert_eq!(canonical(&format!("{prefix}lm_head.weight")), "lm_head.weight");
            assert!(is_ignored(&format!("{prefix}mtp.fc.weight")), "{prefix}");
        }
        assert_eq!(canonical("model.other.weight"), "model.other.weight");
        assert_eq!(canonical("lm_head.weight"), "lm_head.weight");
        assert_eq!(canonical("other.weight"), "other.weight");
        assert_eq!(layer_of("model.layers.12.mlp.x"), Some((12, "mlp.x")));
        assert_eq!(layer_of("model.layers.012.mlp.x"), None);
    }
}
