//! Calls that are written as a JSON object, or a list of them.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::scan::{Call, SPACE, Scanned};
use super::tools::DeclaredTools;

/// Keys of a call that stands alone; an object with others is content.
const KEYS: [&str; 5] = ["name", "parameters", "arguments", "type", "id"];

/// Looks for the end of one JSON value without looking at any byte twice.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonScan {
    /// What must follow the value; empty where nothing has to.
    end_tag: &'static str,
    /// Bytes looked at.
    at: usize,
    /// Where the value begins.
    start: Option<usize>,
    /// Where it ends.
    end: Option<usize>,
    /// Objects and lists that are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Where the last string began.
    string: usize,
    /// Whether the next string of the outer object is a key.
    key_follows: bool,
    /// Whether the next string of the outer object is the name of the function.
    name_follows: bool,
}

impl JsonScan {
    /// For a value before this tag.
    pub(super) fn until(end_tag: &'static str) -> Self {
        Self { end_tag, ..Self::default() }
    }

    /// Goes on; `text` begins as it did before.
    pub(super) fn advance(&mut self, text: &str, ended: bool, tools: &DeclaredTools) -> Scanned {
        if self.end.is_none() {
            match self.value(text, tools) {
                Some(true) => {}
                Some(false) if !ended => return Scanned::More,
                _ => return Scanned::Malformed,
            }
        }
        let Some((start, end)) = self.start.zip(self.end) else { return Scanned::Malformed };
        let json = text.get(start..end).unwrap_or_default();
        let tail = text.get(end..).unwrap_or_default().trim_start_matches(SPACE);
        let end = match tail.strip_prefix(self.end_tag) {
            // A call that stands alone does not take the space behind it.
            Some(_) if self.end_tag.is_empty() => end,
            Some(rest) => text.len() - rest.len(),
            None if !self.end_tag.starts_with(tail) => return Scanned::Malformed,
            None if !ended => return Scanned::More,
            // The model stopped behind the last brace.
            None => text.len(),
        };
        match parse(json, tools) {
            Some(calls) => Scanned::Calls { calls, end },
            None => Scanned::Malformed,
        }
    }

    /// Whether the value is complete; none where there can be none.
    fn value(&mut self, text: &str, tools: &DeclaredTools) -> Option<bool> {
        let alone = self.end_tag.is_empty();
        while let Some(&byte) = text.as_bytes().get(self.at) {
            let at = self.at;
            self.at += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        let string = text.get(self.string..self.at).unwrap_or_default();
                        if self.depth == 1 && !self.outer_string(string, alone, tools) {
                            return None;
                        }
                    }
                    0..0x20 => return None,
                    _ => {}
                }
                continue;
            }
            match (byte, self.start) {
                (b' ' | b'\n' | b'\r' | b'\t', _) => {}
                (b'{' | b'[', None) if byte == b'{' || !alone => {
                    self.start = Some(at);
                    self.depth = 1;
                    self.key_follows = byte == b'{';
                }
                (_, None) => return None,
                (b'"', _) => (self.in_string, self.string) = (true, at),
                (b'{' | b'[', _) => {
                    self.depth += 1;
                    self.name_follows = false;
                }
                (b'}' | b']', _) => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        self.end = Some(self.at);
                        return Some(true);
                    }
                }
                (b',', _) if self.depth == 1 => (self.key_follows, self.name_follows) = (true, false),
                // No such byte is in a number, a literal or a separator.
                (b'<' | b'\'' | b';' | b'=', _) => return None,
                _ => {}
            }
        }
        Some(false)
    }

    /// Whether a key of the outer object, or its name, can be those of a call.
    fn outer_string(&mut self, string: &str, alone: bool, tools: &DeclaredTools) -> bool {
        let Ok(string) = serde_json::from_str::<String>(string) else { return false };
        if self.name_follows {
            self.name_follows = false;
            return tools.get(&string).is_some();
        }
        if self.key_follows {
            self.key_follows = false;
            self.name_follows = string == "name";
            return !alone || KEYS.contains(&string.as_str());
        }
        true
    }
}

/// The calls of a JSON object or list; none where one of them is no call of a declared tool.
fn parse(json: &str, tools: &DeclaredTools) -> Option<Vec<Call>> {
    #[derive(Deserialize)]
    struct Written<'a> {
        name: String,
        #[serde(borrow)]
        arguments: Option<&'a RawValue>,
        #[serde(borrow)]
        parameters: Option<&'a RawValue>,
    }
    // A value of its own, because `RawValue` lets escapes and numbers pass that few readers take.
    serde_json::from_str::<Value>(json).ok()?;
    let written: Vec<Written<'_>> =
        if json.starts_with('[') { serde_json::from_str(json).ok()? } else { vec![serde_json::from_str(json).ok()?] };
    let call = |written: Written<'_>| {
        tools.get(&written.name)?;
        let arguments = match (written.arguments, written.parameters) {
            (Some(_), Some(_)) => return None,
            (given, other) => given.or(other).map_or("{}", RawValue::get),
        };
        let arguments = match arguments.as_bytes().first()? {
            b'{' => arguments.to_owned(),
            // Some models write the object as a string that holds it.
            b'"' => serde_json::from_str::<String>(arguments).ok()?,
            _ => return None,
        };
        serde_json::from_str::<Value>(&arguments).ok()?.is_object().then_some(Call { name: written.name, arguments })
    };
    let calls: Vec<Call> = written.into_iter().map(call).collect::<Option<_>>()?;
    (!calls.is_empty()).then_some(calls)
}
