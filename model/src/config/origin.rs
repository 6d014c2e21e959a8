//! The file that states an option, for errors about it.

use std::path::Path;

use serde_json::{Map, Value};

use super::{CrestConfig, ModelConfig, ModelOptions};
use crate::Error;

/// Keys for which null is a statement.
const NULLABLE: [&str; 2] = ["gate_hidden", "hidden_dim"];

impl ModelConfig {
    /// An error about an option that a file of `directory` states, as one about that file; others stay as they are.
    pub(crate) fn by_file(&self, directory: &Path, error: Error) -> Error {
        let Error::Option { option, message } = &error else { return error };
        let Some((file, field)) = self.stated_in(option) else { return error };
        match file {
            ModelOptions::FILE => ModelOptions::does_not_fit(directory, &field, message),
            _ => Error::config(directory.join(file), field, format!("{message}: correct it, or leave it out")),
        }
    }

    /// The file that states an option `group.key`, and its place there; what may follow the key, such as a layer, stays.
    fn stated_in(&self, option: &str) -> Option<(&'static str, String)> {
        let (group, place) = option.split_once('.')?;
        let key = place.split(' ').next()?;
        let states =
            |map: &Map<String, Value>| map.get(key).is_some_and(|value| !value.is_null() || NULLABLE.contains(&key));
        let object = |map: &Map<String, Value>| map.get(group).and_then(Value::as_object).is_some_and(states);
        let whole = option.to_owned();
        if self.side_file.json().as_object().is_some_and(object) {
            return Some((ModelOptions::FILE, whole));
        }
        if group == CrestConfig::GROUP && states(&self.crest_file.0) {
            return Some((CrestConfig::FILE, place.to_owned()));
        }
        let nested = self.stated.0.get(Self::NESTED).and_then(Value::as_object);
        match nested.filter(|text| text.get(group).is_some_and(|value| !value.is_null())) {
            Some(text) => object(text).then(|| (Self::FILE, format!("{}.{option}", Self::NESTED))),
            None => object(&self.stated.0).then_some((Self::FILE, whole)),
        }
    }
}
