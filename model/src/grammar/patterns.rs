//! Regular expressions of JSON schema, as Lark has them: of whole texts.

use llguidance::regex_to_lark;

/// Formats that are kept: those that llguidance knows, with texts of each without quotes. Others are annotations.
const FORMATS: [(&str, &str); 11] = [
    (
        "date",
        r"[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-9]))",
    ),
    ("time", r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"),
    (
        "date-time",
        concat!(
            r"[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-9]))",
            r"[tT]([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
        ),
    ),
    (
        "duration",
        concat!(
            r"P(([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)",
            r"(T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S))?",
            r"|T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)|[0-9]+W)",
        ),
    ),
    (
        "email",
        r"[a-zA-Z0-9!#$%&'*+\-\/=?^_`{|}~]+(\.[a-zA-Z0-9!#$%&'*+\-\/=?^_`{|}~]+)*@[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?)*",
    ),
    ("hostname", r"[a-zA-Z0-9]([a-zA-Z0-9\-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9\-]{0,61}[a-zA-Z0-9])?)*"),
    ("ipv4", r"((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"),
    (
        "ipv6",
        concat!(
            r"([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|([0-9a-fA-F]{1,4}:){1,7}:|([0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4}",
            r"|([0-9a-fA-F]{1,4}:){1,5}(:[0-9a-fA-F]{1,4}){1,2}|([0-9a-fA-F]{1,4}:){1,4}(:[0-9a-fA-F]{1,4}){1,3}",
            r"|([0-9a-fA-F]{1,4}:){1,3}(:[0-9a-fA-F]{1,4}){1,4}|([0-9a-fA-F]{1,4}:){1,2}(:[0-9a-fA-F]{1,4}){1,5}",
            r"|[0-9a-fA-F]{1,4}:(:[0-9a-fA-F]{1,4}){1,6}|:(:[0-9a-fA-F]{1,4}){1,7}|::",
        ),
    ),
    ("uuid", r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
    // Of the characters that may stand in one, in any order behind the scheme.
    ("uri", r"[a-zA-Z][a-zA-Z0-9+\-.]*:([a-zA-Z0-9\-._~!$&'()*+,;=:@\/?#\[\]]|%[0-9a-fA-F]{2})*"),
    ("unknown", r"(?s:.*)"),
];

/// The regular expression of the texts of a format; `None` where it is none that is kept.
pub(super) fn of_format(name: &str) -> Option<&'static str> {
    FORMATS.into_iter().find(|(known, _)| *known == name).map(|(_, texts)| texts)
}

/// Groups in groups that are looked into for anchors.
const DEPTH: usize = 16;

/// The texts in which a pattern is found, which is anywhere: `^` and `$` bind it to begin and end, and may stand only there.
pub(super) fn whole(pattern: &str) -> String {
    of_alternatives(&regex_to_lark(pattern, "dw"), DEPTH)
}

fn of_alternatives(pattern: &str, depth: usize) -> String {
    const ANY: &str = "(?s:.*)";
    // Flags are of all that follows.
    if let Some((flags, rest)) = pattern.strip_prefix("(?").and_then(|rest| rest.split_once(')'))
        && !flags.is_empty()
        && flags.chars().all(|c| c.is_ascii_alphabetic())
        && depth > 0
    {
        return format!("(?{flags}:{})", of_alternatives(rest, depth - 1));
    }
    let marks = Mark::all(pattern);
    let bars = marks.iter().filter(|mark| mark.depth == 0 && mark.is == '|').map(|mark| mark.at);
    let mut begin = 0;
    let mut found = Vec::new();
    // By what stands before and behind, which is written once: there may be many.
    let mut kinds = [("", "", Vec::new()), (ANY, "", Vec::new()), ("", ANY, Vec::new()), (ANY, ANY, Vec::new())];
    for bar in bars.chain([pattern.len()]) {
        let one = pattern.get(begin..bar).unwrap_or_default();
        begin = bar + 1;
        // What is in a group of its own may have anchors of its own.
        if let Some(inner) = in_group(one).filter(|inner| depth > 0 && inner.contains(['^', '$'])) {
            found.push(of_alternatives(inner, depth - 1));
            continue;
        }
        let body = one.trim_start_matches('^');
        let before = if body.len() < one.len() { "" } else { ANY };
        let (body, after) = match Mark::all(body).last() {
            Some(mark) if (mark.is, mark.at + 1) == ('$', body.len()) => (body.strip_suffix('$').unwrap_or(body), ""),
            _ => (body, ANY),
        };
        let like = kinds.iter_mut().find(|kind| (kind.0, kind.1) == (before, after));
        like.into_iter().for_each(|(.., bodies)| bodies.push(body));
    }
    for (before, after, bodies) in kinds.into_iter().filter(|(.., bodies)| !bodies.is_empty()) {
        found.push(format!("{before}(?:{}){after}", bodies.join("|")));
    }
    format!("(?:{})", found.join("|"))
}

/// What is in the group that a pattern is.
fn in_group(pattern: &str) -> Option<&str> {
    let marks = Mark::all(pattern);
    let [first, .., last] = marks.as_slice() else { return None };
    let is_one = (first.is, first.at, last.is, last.at + 1) == ('(', 0, ')', pattern.len())
        && marks.iter().filter(|mark| mark.depth == 0).count() == 2;
    let inner = pattern.get(1..last.at).filter(|_| is_one)?;
    inner.strip_prefix("?:").or_else(|| (!inner.starts_with('?')).then_some(inner))
}

/// A character of a pattern that has a meaning, outside of classes.
struct Mark {
    at: usize,
    is: char,
    /// Groups that it is in; their brackets are outside.
    depth: usize,
}

impl Mark {
    /// The brackets of groups, and `|` and `$`.
    fn all(pattern: &str) -> Vec<Self> {
        let (mut marks, mut depth, mut classes) = (Vec::new(), 0usize, 0usize);
        let mut characters = pattern.char_indices().peekable();
        while let Some((at, is)) = characters.next() {
            match is {
                '\\' => {
                    characters.next();
                }
                '[' => {
                    classes += 1;
                    characters.next_if(|(_, c)| *c == '^');
                    // As the first of a class it is one of it.
                    characters.next_if(|(_, c)| *c == ']');
                }
                ']' => classes = classes.saturating_sub(1),
                _ if classes > 0 => {}
                '(' => {
                    marks.push(Self { at, is, depth });
                    depth += 1;
                }
                ')' => {
                    depth = depth.saturating_sub(1);
                    marks.push(Self { at, is, depth });
                }
                '|' | '$' => marks.push(Self { at, is, depth }),
                _ => {}
            }
        }
        marks
    }
}

#[cfg(test)]
mod tests {
    use llguidance::derivre::{RegexAst, RegexBuilder};

    use super::*;

    fn takes(pattern: String, text: &str) -> bool {
        let mut builder = RegexBuilder::new();
        let made = builder.mk(&RegexAst::Regex(pattern.clone())).unwrap_or_else(|e| panic!("{pattern}: {e}"));
        builder.into_regex_limited(made, 100_000).unwrap().is_match(text)
    }

    #[test]
    fn patterns_are_looked_for_anywhere_unless_they_are_anchored() {
        for (pattern, taken, refused) in [
            ("b", &["b", "abc", "\nb\n"][..], &["", "a"][..]),
            ("^b", &["b", "bc"], &["ab"]),
            ("b$", &["b", "ab"], &["bc", "b$"]),
            ("^b$", &["b"], &["ab", "bc", "b\n"]),
            (r"b\$", &["b$c"], &["b"]),
            (r"b\\$", &[r"ab\"], &[r"b\c"]),
            ("^a|b$", &["ac", "cb"], &["ca", "bc"]),
            ("^(a|b)$", &["a", "b"], &["ab", ""]),
            ("(^$)|(^[0-9]+$)", &["", "12"], &["a", "1a"]),
            ("(?:^a|b$)", &["ac", "cb"], &["ca"]),
            ("(a)(b)$", &["cab"], &["abc"]),
            ("^[|$^(]$", &["|", "$", "^", "("], &["a", ""]),
            ("^[]|]$", &["]", "|"], &["a"]),
            (r"^\d\w/$", &["1a/"], &["aa/", "1é/"]),
            ("(?i)^ab$", &["AB", "ab"], &["cAB"]),
            ("", &["", "a\nb"], &[]),
            ("^", &["", "a"], &[]),
        ] {
            taken.iter().for_each(|text| assert!(takes(whole(pattern), text), "{pattern}: {text:?}"));
            refused.iter().for_each(|text| assert!(!takes(whole(pattern), text), "{pattern}: {text:?}"));
        }
    }

    #[test]
    fn formats_are_of_texts_that_have_them() {
        for (format, taken, refused) in [
            ("date", "2024-02-29", "2024-13-01"),
            ("time", "23:59:60.5+01:00", "24:00:00Z"),
            ("date-time", "2024-12-31T23:59:59Z", "2024-12-31 23:59:59"),
            ("duration", "P1Y2M3DT4H5M6S", "P"),
            ("email", "a.b+c@example.org", "a@b@c"),
            ("hostname", "a-1.example.org", "-a.org"),
            ("ipv4", "192.168.0.255", "192.168.0.256"),
            ("ipv6", "2001:db8::ff00:42:8329", "1::2::3"),
            ("ipv6", "::1", ":1"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
            ("uri", "https://example.org/a?b=%20#c", "example.org"),
        ] {
            let texts = of_format(format).unwrap();
            assert!(takes(texts.to_owned(), taken) && !takes(texts.to_owned(), refused), "{format}");
        }
        assert_eq!(of_format("color-hex"), None);
    }
}
