//! Reading the keys of an untrusted JSON object: every value is checked for its type and range, every error names the key.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use emberlm_quant::host::FloatType;
use serde_json::{Map, Value};

use crate::checkpoint::names::shown;
use crate::{Error, Result};

/// A JSON object with the file and the place it comes from, for messages. `null` counts as absent.
#[derive(Clone)]
pub(crate) struct Fields<'a> {
    file: &'a Path,
    at: String,
    map: &'a Map<String, Value>,
    /// Where to look for keys that `map` lacks (the outer object of a nested text config).
    outer: Option<&'a Map<String, Value>>,
    /// Takes the place of every key that is asked for, whether it is there or not.
    asked: Option<&'a RefCell<BTreeSet<String>>>,
}

impl<'a> Fields<'a> {
    /// The top level of a file.
    pub(crate) fn root(file: &'a Path, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { file, at: String::new(), map, outer: None, asked: None }),
            other => Err(wrong(file, String::new(), other, "an object")),
        }
    }

    /// The same object, which notes the place of every key that is asked for.
    pub(super) fn noting(mut self, asked: &'a RefCell<BTreeSet<String>>) -> Self {
        self.asked = Some(asked);
        self
    }

    /// Notes that a key was asked for.
    fn ask(&self, key: &str) {
        if let Some(asked) = self.asked {
            let mut asked = asked.borrow_mut();
            asked.insert(format!("{}{key}", self.at));
            // The outer object of a text config is the whole file.
            if self.outer.is_some() {
                asked.insert(key.to_owned());
            }
        }
    }

    /// This object, with keys that it lacks looked up in the parent.
    pub(crate) fn or_else(mut self, outer: &Fields<'a>) -> Self {
        self.outer = Some(outer.map);
        self
    }

    /// The object itself.
    pub(super) fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a String> {
        self.map.keys()
    }

    /// The first key whose value is an object. No key counts as asked for.
    pub(crate) fn nested_key(&self) -> Option<&'a String> {
        self.map.iter().find(|(_, value)| value.is_object()).map(|(key, _)| key)
    }

    /// The value of a key, unless it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.ask(key);
        let found = |map: &'a Map<String, Value>| map.get(key).filter(|v| !v.is_null());
        found(self.map).or_else(|| self.outer.and_then(found))
    }

    /// Whether the key is there and null.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.ask(key);
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// An error about a key.
    pub(crate) fn error(&self, key: &str, message: impl Into<String>) -> Error {
        Error::config(self.file, self.path(key), message)
    }

    /// An error about the type or range of a value.
    pub(crate) fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        wrong(self.file, self.path(key), value, expected)
    }

    /// The key with its parents. One of the outer object is named as it stands there.
    fn path(&self, key: &str) -> String {
        if self.is_outer(key) { shown(key) } else { format!("{}{}", self.at, shown(key)) }
    }

    /// Whether the value of a key is that of the outer object.
    fn is_outer(&self, key: &str) -> bool {
        let there = |map: &Map<String, Value>| map.get(key).is_some_and(|value| !value.is_null());
        !there(self.map) && self.outer.is_some_and(there)
    }

    /// The value of a key that must be there, by one of the readers below.
    pub(crate) fn required<T>(&self, key: &str, read: impl FnOnce(&Self, &str) -> Result<Option<T>>) -> Result<T> {
        read(self, key)?.ok_or_else(|| self.error(key, "is missing or null"))
    }

    /// An integer from 1 to `max`.
    pub(crate) fn size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        self.integer(key, 1, max)
    }

    /// An integer from `min` to `max`.
    pub(crate) fn integer(&self, key: &str, min: usize, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        integer(value, min, max)
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, &format!("an integer from {min} to {max}")))
    }

    /// A finite number in a range, which is named by `expected`.
    pub(crate) fn number(&self, key: &str, expected: &str, allowed: impl Fn(f64) -> bool) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(x) if x.is_finite() && allowed(x) => Ok(Some(x)),
            _ => Err(self.wrong(key, value, expected)),
        }
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a string"))
    }

    /// A string that names a variant.
    pub(crate) fn choice<T: Choice>(&self, key: &str) -> Result<Option<T>> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        T::read(text).map(Some).map_err(|message| self.error(key, message))
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<&'a [Value]>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value.as_array().map(|a| Some(a.as_slice())).ok_or_else(|| self.wrong(key, value, "an array"))
    }

    /// An array of strings.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(items) = self.array(key)? else {
            return Ok(None);
        };
        let texts = items.iter().map(|v| v.as_str().ok_or_else(|| self.wrong(key, v, "only strings in the array")));
        texts.collect::<Result<_>>().map(Some)
    }

    /// An array of integers from 0 to `max`.
    pub(crate) fn integers(&self, key: &str, max: usize) -> Result<Option<Vec<usize>>> {
        let Some(items) = self.array(key)? else {
            return Ok(None);
        };
        let expected = || format!("only integers from 0 to {max} in the array");
        let numbers = items.iter().map(|v| integer(v, 0, max).ok_or_else(|| self.wrong(key, v, &expected())));
        numbers.collect::<Result<_>>().map(Some)
    }

    /// An array of finite numbers in a range, which is named by `expected`.
    pub(crate) fn numbers(&self, key: &str, expected: &str, allowed: impl Fn(f64) -> bool) -> Result<Option<Vec<f64>>> {
        let Some(items) = self.array(key)? else {
            return Ok(None);
        };
        let number = |v: &Value| v.as_f64().filter(|&x| x.is_finite() && allowed(x));
        let numbers = items.iter().map(|v| number(v).ok_or_else(|| self.wrong(key, v, expected)));
        numbers.collect::<Result<_>>().map(Some)
    }

    /// One token id, by itself or as a list of one.
    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>> {
        let value = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array(ids)) => match ids.as_slice() {
                [] => return Ok(None),
                [id] => id,
                _ => return Err(self.error(key, "is a list, expected one token id")),
            },
            Some(value) => value,
        };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.wrong(key, value, "a token id")).map(Some)
    }

    /// A nested object.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value {
            Value::Object(map) => {
                let at = format!("{}.", self.path(key));
                Ok(Some(Fields { file: self.file, at, map, outer: None, asked: self.asked }))
            }
            other => Err(self.wrong(key, other, "an object")),
        }
    }
}

fn integer(value: &Value, min: usize, max: usize) -> Option<usize> {
    let x = usize::try_from(value.as_u64()?).ok()?;
    (min..=max).contains(&x).then_some(x)
}

fn wrong(path: &Path, field: String, value: &Value, expected: &str) -> Error {
    let (path, found) = (path.into(), describe(value));
    let what = if field.is_empty() { "the top level is" } else { "is" };
    let message = format!("{what} {found}, expected {expected}");
    Error::Config { path, field, expected: Some(expected.into()), found: Some(found.into()), message }
}

/// A value in a message: its text when it is short, its kind otherwise.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => format!("the string \"{}\"", shown(s)),
        Value::Array(a) => format!("an array of {}", a.len()),
        Value::Object(_) => "an object".into(),
    }
}

/// An enum of which a config names a variant.
pub(crate) trait Choice: Copy + 'static {
    /// Every variant, in the order in which messages list them.
    const ALL: &'static [Self];
    /// The spelling that configs and messages have.
    fn spelling(self) -> &'static str;
    /// Other spellings that are read as well.
    fn aliases(self) -> &'static [&'static str] {
        &[]
    }

    /// The variant of this spelling, or what is to be said of the text.
    fn read(text: &str) -> std::result::Result<Self, String> {
        let named = |choice: &&Self| choice.spelling() == text || choice.aliases().contains(&text);
        Self::ALL.iter().find(named).copied().ok_or_else(|| {
            let spellings: Vec<&str> = Self::ALL.iter().map(|choice| choice.spelling()).collect();
            format!("is \"{}\", expected one of {}", shown(text), spellings.join(", "))
        })
    }
}

/// Declares an enum with the spellings of the checkpoint's configs: `Display` writes the first, `FromStr` reads all.
macro_rules! spelled {
    ($(#[$doc:meta])* $name:ident ($option:literal) { $($(#[$vdoc:meta])* $variant:ident = $text:literal $(| $alias:literal)*,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every variant.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The spelling in configs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl $crate::config::fields::Choice for $name {
            const ALL: &'static [Self] = Self::ALL;

            fn spelling(self) -> &'static str {
                self.as_str()
            }

            fn aliases(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($alias),*],)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::Error;

            fn from_str(text: &str) -> $crate::Result<Self> {
                let read = <Self as $crate::config::fields::Choice>::read(text);
                read.map_err(|message| $crate::Error::Option { option: $option.into(), message })
            }
        }
    };
}
pub(crate) use spelled;

/// A float type as configs spell it; `auto` and null count as absent.
pub(super) fn float_type(fields: &Fields, key: &str) -> Result<Option<FloatType>> {
    match fields.text(key)?.map(|text| text.trim_start_matches("torch.")) {
        None | Some("auto") => Ok(None),
        Some("float32" | "float") => Ok(Some(FloatType::F32)),
        Some("float16" | "half") => Ok(Some(FloatType::F16)),
        Some("bfloat16") => Ok(Some(FloatType::Bf16)),
        Some(other) => {
            Err(fields
                .error(key, format!("\"{}\" is not supported: expected float32, float16 or bfloat16", shown(other))))
        }
    }
}
