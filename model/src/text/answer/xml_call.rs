//! Calls that are written with tags: `<function=name><parameter=key>value</parameter></function></tool_call>`.

use std::ops::Range;

use serde_json::Value;

use super::parameters::Forms;
use super::scan::{Call, SPACE, Scanned};
use super::tools::{DeclaredTools, argument};

const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
const CALL_END: &str = "</tool_call>";

/// Bytes of a name at most.
const NAME: usize = 256;

/// Reads one call, going on where it stopped for want of text.
#[derive(Clone, Debug, Default)]
pub(super) struct XmlScan {
    /// Where `expected` begins, white space aside.
    at: usize,
    expected: Expected,
    name: String,
    /// Keys and the ranges of their values.
    parameters: Vec<(String, Range<usize>)>,
}

#[derive(Clone, Debug, Default)]
enum Expected {
    #[default]
    Function,
    Name,
    Parameter,
    Key,
    /// The rest of a value; no end of it is before `from`.
    Value {
        from: usize,
    },
    CallEnd,
}

/// A step of the scan.
enum Step {
    Next,
    Stop(Scanned),
}

impl XmlScan {
    /// Goes on; `text` begins as it did before.
    pub(super) fn advance(&mut self, text: &str, ended: bool, tools: &DeclaredTools) -> Scanned {
        loop {
            match self.step(text, ended, tools) {
                Step::Next => {}
                Step::Stop(Scanned::More) if ended => return Scanned::Malformed,
                Step::Stop(scanned) => return scanned,
            }
        }
    }

    fn step(&mut self, text: &str, ended: bool, tools: &DeclaredTools) -> Step {
        let rest = text.get(self.at..).unwrap_or_default();
        match self.expected {
            Expected::Function => self.tag(text, &[(FUNCTION, Expected::Name)]),
            Expected::Name => match name(rest) {
                Ok(Some(name)) if tools.get(name).is_none() => Step::Stop(Scanned::Malformed),
                Ok(Some(name)) => {
                    self.at += name.len() + 1;
                    self.name = name.to_owned();
                    self.go_to(Expected::Parameter)
                }
                Ok(None) => Step::Stop(Scanned::More),
                Err(()) => Step::Stop(Scanned::Malformed),
            },
            Expected::Parameter => self.tag(text, &[(PARAMETER, Expected::Key), (FUNCTION_END, Expected::CallEnd)]),
            Expected::Key => match name(rest) {
                // A value that is given twice is none.
                Ok(Some(key)) if self.parameters.iter().any(|(known, _)| known == key) => {
                    Step::Stop(Scanned::Malformed)
                }
                Ok(Some(key)) => {
                    self.at += key.len() + 1;
                    self.parameters.push((key.to_owned(), 0..0));
                    self.go_to(Expected::Value { from: self.at })
                }
                Ok(None) => Step::Stop(Scanned::More),
                Err(()) => Step::Stop(Scanned::Malformed),
            },
            Expected::Value { from } => self.value(text, from),
            Expected::CallEnd => {
                let tail = rest.trim_start_matches(SPACE);
                match tail.strip_prefix(CALL_END) {
                    Some(rest) => self.done(text, text.len() - rest.len(), tools),
                    None if !CALL_END.starts_with(tail) => Step::Stop(Scanned::Malformed),
                    None if !ended => Step::Stop(Scanned::More),
                    // The model stopped before the last tag.
                    None => self.done(text, text.len(), tools),
                }
            }
        }
    }

    fn go_to(&mut self, expected: Expected) -> Step {
        self.expected = expected;
        Step::Next
    }

    /// One of these tags, after white space.
    fn tag(&mut self, text: &str, tags: &[(&'static str, Expected)]) -> Step {
        let tail = text.get(self.at..).unwrap_or_default().trim_start_matches(SPACE);
        if let Some((tag, then)) = tags.iter().find(|(tag, _)| tail.starts_with(tag)) {
            self.at = text.len() - tail.len() + tag.len();
            return self.go_to(then.clone());
        }
        let may_follow = tags.iter().any(|(tag, _)| tag.starts_with(tail));
        Step::Stop(if may_follow { Scanned::More } else { Scanned::Malformed })
    }

    /// A value ends where its end tag is followed by a tag that may follow; elsewhere the tag is part of what is written.
    fn value(&mut self, text: &str, from: usize) -> Step {
        let found = text.get(from..).and_then(|rest| rest.find(PARAMETER_END));
        let Some(end) = found.map(|found| from + found) else {
            let mut from = text.len().saturating_sub(PARAMETER_END.len()).max(from);
            while !text.is_char_boundary(from) {
                from -= 1;
            }
            self.expected = Expected::Value { from };
            return Step::Stop(Scanned::More);
        };
        let behind = end + PARAMETER_END.len();
        let tail = text.get(behind..).unwrap_or_default().trim_start_matches(SPACE);
        let next = [PARAMETER, FUNCTION_END];
        if next.iter().any(|tag| tail.starts_with(tag)) {
            if let Some((_, value)) = self.parameters.last_mut() {
                *value = self.at..end;
            }
            self.at = behind;
            return self.go_to(Expected::Parameter);
        }
        if next.iter().any(|tag| tag.starts_with(tail)) {
            self.expected = Expected::Value { from: end };
            return Step::Stop(Scanned::More);
        }
        self.go_to(Expected::Value { from: behind })
    }

    fn done(&self, text: &str, end: usize, tools: &DeclaredTools) -> Step {
        let Some(tool) = tools.get(&self.name) else { return Step::Stop(Scanned::Malformed) };
        let forms = Forms::of(&tool.parameters);
        let mut arguments = String::from("{");
        for (key, value) in &self.parameters {
            if arguments.len() > 1 {
                arguments.push_str(", ");
            }
            let value = without_line_ends(text.get(value.clone()).unwrap_or_default());
            arguments.push_str(&Value::from(key.as_str()).to_string());
            arguments.push_str(": ");
            arguments.push_str(&argument(forms.kinds(key), value));
        }
        arguments.push('}');
        Step::Stop(Scanned::Calls { calls: vec![Call { name: self.name.clone(), arguments }], end })
    }
}

/// What stands before `>`; `None` where it is not there yet.
fn name(rest: &str) -> Result<Option<&str>, ()> {
    let end = rest.find(['>', '<', '\n']);
    match end.and_then(|end| Some((rest.get(..end)?, rest.get(end..)?.starts_with('>')))) {
        Some((name, true)) if !name.is_empty() && name.len() <= NAME => Ok(Some(name)),
        Some(_) => Err(()),
        None if rest.len() > NAME => Err(()),
        None => Ok(None),
    }
}

/// Without the line end behind the opening tag and the one before the closing tag.
fn without_line_ends(value: &str) -> &str {
    let value = value.strip_prefix("\r\n").or_else(|| value.strip_prefix('\n')).unwrap_or(value);
    value.strip_suffix("\r\n").or_else(|| value.strip_suffix('\n')).unwrap_or(value)
}
