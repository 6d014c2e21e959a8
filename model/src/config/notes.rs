//! Notes on a config: defaults that were assumed, and keys that have no effect.

/// Defaults that were assumed and keys that have no effect, as sentences without a full stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// What is assumed because it is not stated: the defaults of transformers.
    pub assumed: Vec<String>,
    /// What is stated and not used.
    pub unused: Vec<String>,
}

impl Notes {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &String> {
        self.assumed.iter().chain(&self.unused)
    }
}
