//! A template to tokens, by the rules of jinja2's lexer with `trim_blocks` and `lstrip_blocks`.

use std::rc::Rc;

use super::error::{TemplateError, TemplateResult};
use super::python::is_space;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Data(Rc<str>),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(Rc<str>),
    Str(Rc<str>),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

impl Token {
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Data(_) => "text".to_owned(),
            Self::BlockBegin => "{%".to_owned(),
            Self::BlockEnd => "%}".to_owned(),
            Self::VariableBegin => "{{".to_owned(),
            Self::VariableEnd => "}}".to_owned(),
            Self::Name(name) => name.to_string(),
            Self::Str(_) => "a string".to_owned(),
            Self::Int(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Operator(sign) => (*sign).to_owned(),
            Self::End => "end of input".to_owned(),
        }
    }
}

/// Bounds how deep operators chain in one expression.
const TOKENS_PER_TAG: usize = 4_000;

/// Longest first, so that `**` is not two of `*`.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

/// The tokens of a template with their lines.
pub(super) fn tokenize(source: &str) -> TemplateResult<Vec<(Token, u32)>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { rest: source, line: 1, line_starting: true, tokens: Vec::new() };
    lexer.run().map_err(|e| e.at(lexer.line))?;
    let line = lexer.line;
    lexer.tokens.push((Token::End, line));
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    rest: &'s str,
    line: u32,
    /// Whether what was read last ended with a newline.
    line_starting: bool,
    tokens: Vec<(Token, u32)>,
}

impl<'s> Lexer<'s> {
    fn run(&mut self) -> TemplateResult<()> {
        while let Some(at) = find_tag(self.rest) {
            let (text, tag) = self.rest.split_at(at);
            let (open, after) = tag.split_at(2);
            let (sign, inner) = match after.chars().next() {
                Some(sign @ ('-' | '+')) => (Some(sign), after.get(1..).unwrap_or_default()),
                _ => (None, after),
            };
            let stripped = self.strip_before(text, sign, open == "{{");
            self.data(stripped);
            self.line = self.line.saturating_add(newlines(text));
            self.line_starting = false;
            let line = self.line;
            self.rest = inner;
            match open {
                "{#" => self.comment()?,
                "{{" => {
                    self.tokens.push((Token::VariableBegin, line));
                    self.tag(false)?;
                }
                _ => match raw_begin(inner) {
                    Some(after) => {
                        self.advance(after);
                        self.raw()?;
                    }
                    None => {
                        self.tokens.push((Token::BlockBegin, line));
                        self.tag(true)?;
                    }
                },
            }
        }
        self.data(self.rest);
        self.line = self.line.saturating_add(newlines(self.rest));
        Ok(())
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.tokens.push((Token::Data(text.into()), self.line));
        }
    }

    /// Text before a tag without the white space that the tag removes.
    fn strip_before(&self, text: &'s str, sign: Option<char>, variable: bool) -> &'s str {
        match sign {
            Some('-') => text.trim_end_matches(is_space),
            None if !variable => {
                let start = text.rfind('\n').map_or(0, |at| at + 1);
                let last = text.get(start..).unwrap_or_default();
                let alone = (start > 0 || self.line_starting) && last.chars().all(is_space);
                if alone { text.get(..start).unwrap_or_default() } else { text }
            }
            _ => text,
        }
    }

    /// Goes on at `after`, a tail of the rest.
    fn advance(&mut self, after: &'s str) {
        let length = self.rest.len().saturating_sub(after.len());
        let read = self.rest.get(..length).unwrap_or_default();
        self.line = self.line.saturating_add(newlines(read));
        self.line_starting = read.ends_with('\n');
        self.rest = after;
    }

    fn comment(&mut self) -> TemplateResult<()> {
        let Some(at) = self.rest.find("#}") else {
            return Err(TemplateError::new("unexpected end of comment: `#}` is missing"));
        };
        let (text, end) = self.rest.split_at(at);
        let after = end.get(2..).unwrap_or_default();
        let after = match text.chars().last() {
            Some('-') => after.trim_start_matches(is_space),
            Some('+') => after,
            _ => after.strip_prefix('\n').unwrap_or(after),
        };
        self.advance(after);
        Ok(())
    }

    fn raw(&mut self) -> TemplateResult<()> {
        let mut from = 0;
        while let Some(at) = self.rest.get(from..).and_then(|rest| rest.find("{%")).map(|at| at.saturating_add(from)) {
            let (text, tag) = self.rest.split_at(at);
            let inner = tag.get(2..).unwrap_or_default();
            let sign = inner.chars().next().filter(|c| matches!(c, '-' | '+'));
            let word = inner.get(sign.map_or(0, |_| 1)..).unwrap_or_default();
            let after = word.trim_start_matches(is_space).strip_prefix("endraw");
            if let Some(after) = after.and_then(|after| block_end(after.trim_start_matches(is_space))) {
                let stripped = self.strip_before(text, sign, false);
                self.data(stripped);
                self.advance(after);
                return Ok(());
            }
            from = at.saturating_add(2);
        }
        Err(TemplateError::new("unexpected end of input: the tag endraw is missing"))
    }

    /// The tokens between `{{` or `{%` and its end.
    fn tag(&mut self, block: bool) -> TemplateResult<()> {
        let mut open: Vec<&'static str> = Vec::new();
        let mut count = 0;
        let mut after_dot = false;
        loop {
            if open.is_empty() {
                let end = if block { block_end(self.rest) } else { variable_end(self.rest) };
                if let Some(after) = end {
                    let token = if block { Token::BlockEnd } else { Token::VariableEnd };
                    self.tokens.push((token, self.line));
                    self.advance(after);
                    return Ok(());
                }
            }
            let Some(first) = self.rest.chars().next() else {
                return Err(TemplateError::new("unexpected end of input: a tag is not closed"));
            };
            if is_space(first) {
                after_dot = false;
                self.advance(self.rest.trim_start_matches(is_space));
                continue;
            }
            count += 1;
            if count > TOKENS_PER_TAG {
                return Err(TemplateError::new(format!("a tag has more than {TOKENS_PER_TAG} parts")));
            }
            let line = self.line;
            let (token, length) = if let Some((token, length)) = number(self.rest, after_dot)? {
                (token, length)
            } else if first.is_alphanumeric() || first == '_' {
                let word = |c: char| !(c.is_alphanumeric() || c == '_');
                let length = self.rest.find(word).unwrap_or(self.rest.len());
                if first.is_numeric() {
                    return Err(TemplateError::new("unexpected digit at the start of a name"));
                }
                (Token::Name(self.rest.get(..length).unwrap_or_default().into()), length)
            } else if first == '"' || first == '\'' {
                let length = string_length(self.rest, first)?;
                let inner = self.rest.get(1..length.saturating_sub(1)).unwrap_or_default();
                (Token::Str(unescape(inner)?.into()), length)
            } else {
                let Some(sign) = OPERATORS.into_iter().find(|sign| self.rest.starts_with(sign)) else {
                    return Err(TemplateError::new(format!("unexpected character {first:?}")));
                };
                match sign {
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "{" => open.push("}"),
                    ")" | "]" | "}" => match open.pop() {
                        Some(expected) if expected == sign => {}
                        Some(expected) => {
                            return Err(TemplateError::new(format!("unexpected {sign:?}, expected {expected:?}")));
                        }
                        None => return Err(TemplateError::new(format!("unexpected {sign:?}"))),
                    },
                    _ => {}
                }
                (Token::Operator(sign), sign.len())
            };
            after_dot = token == Token::Operator(".");
            self.tokens.push((token, line));
            self.advance(self.rest.get(length..).unwrap_or_default());
        }
    }
}

fn newlines(text: &str) -> u32 {
    u32::try_from(text.matches('\n').count()).unwrap_or(u32::MAX)
}

/// Where the next tag of any kind begins.
fn find_tag(text: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + text.get(from..)?.find('{')?;
        match text.as_bytes().get(at + 1) {
            Some(b'%' | b'{' | b'#') => return Some(at),
            _ => from = at + 1,
        }
    }
}

/// What follows `raw %}`.
fn raw_begin(inner: &str) -> Option<&str> {
    let after = inner.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
    match after.strip_prefix("-%}") {
        Some(after) => Some(after.trim_start_matches(is_space)),
        None => after.strip_prefix("%}"),
    }
}

/// What follows the end of a block, with the white space that the end removes.
fn block_end(rest: &str) -> Option<&str> {
    if let Some(after) = rest.strip_prefix("-%}") {
        return Some(after.trim_start_matches(is_space));
    }
    if let Some(after) = rest.strip_prefix("+%}") {
        return Some(after);
    }
    let after = rest.strip_prefix("%}")?;
    Some(after.strip_prefix('\n').unwrap_or(after))
}

fn variable_end(rest: &str) -> Option<&str> {
    match rest.strip_prefix("-}}") {
        Some(after) => Some(after.trim_start_matches(is_space)),
        None => rest.strip_prefix("}}"),
    }
}

/// The length of a quoted string with its quotes.
fn string_length(rest: &str, quote: char) -> TemplateResult<usize> {
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return Ok(at + 1);
        }
    }
    Err(TemplateError::new("unexpected end of string"))
}

/// Digits with single underscores between them.
fn digits(text: &str, radix: u32) -> usize {
    let mut end = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c.is_digit(radix) {
            end = at + 1;
        } else if c != '_' || end == 0 || end != at || !chars.peek().is_some_and(|(_, c)| c.is_digit(radix)) {
            break;
        }
    }
    end
}

/// A number at the front of the text. After a dot there is no fraction: `x.0.1` are two items.
fn number(text: &str, after_dot: bool) -> TemplateResult<Option<(Token, usize)>> {
    let whole = digits(text, 10);
    if whole == 0 {
        return Ok(None);
    }
    let tail = |at: usize| text.get(at..).unwrap_or_default();
    let fraction = match tail(whole).strip_prefix('.') {
        Some(fraction) if !after_dot => match digits(fraction, 10) {
            0 => whole,
            n => whole + 1 + n,
        },
        _ => whole,
    };
    let mut end = fraction;
    if let Some(exponent) = tail(fraction).strip_prefix(['e', 'E']).filter(|_| !after_dot) {
        let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let n = digits(unsigned, 10);
        if n > 0 {
            end = fraction + 1 + (exponent.len() - unsigned.len()) + n;
        }
    }
    let clean = |end: usize| text.get(..end).unwrap_or_default().replace('_', "");
    if end > whole {
        let x = clean(end).parse().map_err(|_| TemplateError::new("unexpected number"))?;
        return Ok(Some((Token::Float(x), end)));
    }
    let large = |_| TemplateError::new("an integer is too large");
    for (prefixes, radix) in [(["0b", "0B"], 2), (["0o", "0O"], 8), (["0x", "0X"], 16)] {
        if let Some(rest) = prefixes.into_iter().find_map(|p| text.strip_prefix(p)) {
            let n = digits(rest.strip_prefix('_').unwrap_or(rest), radix);
            if n > 0 {
                let skipped = rest.len() - rest.strip_prefix('_').unwrap_or(rest).len();
                let spelled = rest.get(..skipped + n).unwrap_or_default().replace('_', "");
                let value = i128::from_str_radix(&spelled, radix).map_err(large)?;
                return Ok(Some((Token::Int(value), 2 + skipped + n)));
            }
        }
    }
    // An integer has no leading zeros: `01` are two tokens.
    let end = if text.starts_with('0') {
        text.find(|c| c != '0' && c != '_').unwrap_or(text.len()).min(whole)
    } else {
        whole
    };
    let value = clean(end).parse().map_err(large)?;
    Ok(Some((Token::Int(value), end)))
}

/// The escapes of a Python string, as jinja2 undoes them: all but ASCII is written as escapes first.
fn unescape(text: &str) -> TemplateResult<String> {
    if !text.contains('\\') {
        return Ok(text.to_owned());
    }
    use std::fmt::Write;
    let mut ascii = String::with_capacity(text.len());
    for c in text.chars() {
        let code = u32::from(c);
        let _ = match code {
            0..=0x7f => write!(ascii, "{c}"),
            0x80..=0xff => write!(ascii, "\\x{code:02x}"),
            0x100..=0xffff => write!(ascii, "\\u{code:04x}"),
            _ => write!(ascii, "\\U{code:08x}"),
        };
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = ascii.as_str();
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let mut chars = escape.chars().skip(1);
        let Some(kind) = chars.next() else {
            return Err(TemplateError::new("unexpected end of string: \\ at its end"));
        };
        let tail = escape.get(2..).unwrap_or_default();
        let hex = |n: usize| {
            let digits = tail.get(..n).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
            let code = digits.and_then(|d| u32::from_str_radix(d, 16).ok());
            let code = code.and_then(char::from_u32);
            let code =
                code.ok_or_else(|| TemplateError::new(format!("\\{kind} needs {n} hexadecimal digits of a character")));
            code.map(|c| (c, n))
        };
        let (c, used) = match kind {
            '\n' => {
                rest = tail;
                continue;
            }
            '\\' | '\'' | '"' => (kind, 0),
            'a' => ('\x07', 0),
            'b' => ('\x08', 0),
            'f' => ('\x0c', 0),
            'n' => ('\n', 0),
            'r' => ('\r', 0),
            't' => ('\t', 0),
            'v' => ('\x0b', 0),
            'x' => hex(2)?,
            'u' => hex(4)?,
            'U' => hex(8)?,
            'N' => return Err(TemplateError::new("names of characters (\\N{...}) are not supported")),
            '0'..='7' => {
                let digits = tail.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let code = u32::from_str_radix(escape.get(1..2 + digits).unwrap_or_default(), 8);
                (code.ok().and_then(char::from_u32).unwrap_or_default(), digits)
            }
            other => {
                out.push('\\');
                (other, 0)
            }
        };
        out.push(c);
        rest = tail.get(used..).unwrap_or_default();
    }
    out.push_str(rest);
    Ok(out)
}
