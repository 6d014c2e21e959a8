//! Values that a config states, beside those that the tensors show.

use std::collections::BTreeSet;

use crate::{Error, Result};

/// A value as a config spells it, for messages.
pub(super) trait Spelled {
    /// In JSON.
    fn spelled(&self) -> String;
}

impl Spelled for bool {
    fn spelled(&self) -> String {
        self.to_string()
    }
}

impl Spelled for usize {
    fn spelled(&self) -> String {
        self.to_string()
    }
}

impl<T: Spelled> Spelled for Option<T> {
    fn spelled(&self) -> String {
        self.as_ref().map_or_else(|| "null".to_owned(), T::spelled)
    }
}

impl<T: Spelled> Spelled for BTreeSet<T> {
    fn spelled(&self) -> String {
        let values: Vec<String> = self.iter().map(T::spelled).collect();
        format!("[{}]", values.join(", "))
    }
}

/// A stated value of `object` must be what the tensors show.
///
/// # Errors
/// [`Error::Option`] with both, when they differ.
pub(super) fn agrees<T: PartialEq + Spelled>(object: &str, key: &str, stated: Option<&T>, found: &T) -> Result<()> {
    match stated {
        Some(stated) if stated != found => {
            let (stated, found) = (stated.spelled(), found.spelled());
            let message = format!("is stated as {stated}, but the tensors show {found}");
            Err(Error::Option { option: format!("{object}.{key}"), message })
        }
        _ => Ok(()),
    }
}
