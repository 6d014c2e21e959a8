//! Environment variables with a fixed list of values.

use std::ffi::OsStr;
use std::fmt;

/// A value that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentError {
    /// The name of the variable.
    pub variable: &'static str,
    /// What it is set to.
    pub found: String,
    /// What is allowed, on this machine.
    pub allowed: Vec<&'static str>,
}

impl std::error::Error for EnvironmentError {}

impl fmt::Display for EnvironmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variable, found, allowed } = self;
        write!(f, "the environment variable {variable} is {found:?}; use {}, or unset it", allowed.join(", "))
    }
}

/// A variable and its values.
pub(crate) struct Variable<const N: usize> {
    pub(crate) name: &'static str,
    pub(crate) names: [&'static str; N],
}

/// Which instructions GPU kernels are compiled with. Builds without GPUs know its values, too.
pub(crate) const GPU: Variable<3> = Variable { name: "EMBERLM_GPU", names: ["plain", "planes", "matrices"] };

impl<const N: usize> Variable<N> {
    /// The place of its value among its names, when that is one of those that are `allowed`.
    pub(crate) fn index(&self, allowed: &[&'static str]) -> Result<Option<usize>, EnvironmentError> {
        self.parse(std::env::var_os(self.name).as_deref(), allowed)
    }

    fn parse(&self, value: Option<&OsStr>, allowed: &[&'static str]) -> Result<Option<usize>, EnvironmentError> {
        let text = value.map(OsStr::to_string_lossy).unwrap_or_default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let place = self.names.iter().position(|&name| name == text);
        match place.filter(|&place| allowed.contains(&self.names[place])) {
            Some(place) => Ok(Some(place)),
            None => Err(EnvironmentError { variable: self.name, found: text.to_owned(), allowed: allowed.to_vec() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_values_are_errors_and_empty_ones_are_none() {
        let parse = |text: &str| GPU.parse(Some(OsStr::new(text)), &GPU.names[..2]);
        assert_eq!(GPU.parse(None, &GPU.names), Ok(None));
        assert_eq!([parse(""), parse(" \n")], [Ok(None), Ok(None)]);
        assert_eq!([parse("plain"), parse(" planes ")], [Ok(Some(0)), Ok(Some(1))]);
        // Another word, another case, a name that this machine does not allow.
        for text in ["plane", "Plain", "matrices", "plain planes"] {
            let error = parse(text).expect_err(text);
            let message = error.to_string();
            assert!(message.contains("EMBERLM_GPU") && message.contains(&format!("{text:?}")), "{message}");
            assert!(message.contains("use plain, planes, or unset it"), "{message}");
        }
    }
}
