//! Which modules a flag means.

use std::str::FromStr;

/// Parts of the path of a module, which match a run of parts anywhere in it: `mlp.down_proj`, `layers.0`, `layers.*.self_attn`. In a part
/// `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<String>,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<String> = text.split('.').map(str::to_owned).collect();
        if parts.iter().any(String::is_empty) {
            return Err("expected parts of a module's path, such as mlp.down_proj or layers.0".into());
        }
        Ok(Self { text: text.to_owned(), parts })
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.text)
    }
}

impl Pattern {
    /// Whether it means the tensor of this name.
    pub fn matches(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.split('.').collect();
        parts
            .windows(self.parts.len())
            .any(|run| run.iter().zip(&self.parts).all(|(part, glob)| part_matches(glob, part)))
    }
}

/// `*` is any run of characters.
fn part_matches(glob: &str, part: &str) -> bool {
    let mut pieces = glob.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| part.strip_prefix(first)) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn a_pattern_is_a_run_of_parts() {
        let name = "model.layers.12.mlp.down_proj.weight";
        let matches = |text: &str| text.parse::<Pattern>().expect("a pattern").matches(name);
        for text in
            ["down_proj", "mlp.down_proj", "layers.12", "layers.*.mlp", "*_proj", "d*n_p*j", "*", "layers.1*", name]
        {
            assert!(matches(text), "{text}");
        }
        for text in ["down", "layers.1", "layers.mlp", "mlp.up_proj", "*_projx", "d*x*j", "layers.2*", "model.model"] {
            assert!(!matches(text), "{text}");
        }
        for text in ["", ".", "mlp.", ".mlp", "a..b"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }
}
