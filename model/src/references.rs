//! What a `$ref` of a JSON schema refers to.
//!
//! It is a JSON pointer in a URI: `%20` is a space in it, `~1` a `/` and `~0` a `~`.

use serde_json::Value;

/// The keys on the way to what a reference inside of a schema names, and what is there; no keys for the schema itself. References that are spelled
/// without escapes, or with a part of them, are found too where what they mean by the letter is not there.
pub(crate) fn found<'a>(root: &'a Value, reference: &str) -> Option<(Vec<String>, &'a Value)> {
    let path = reference.strip_prefix('#')?;
    if path.is_empty() || path == "/" {
        return Some((Vec::new(), root));
    }
    let path = path.strip_prefix('/')?;
    let walk = |steps: &[Vec<String>]| {
        let mut keys = Vec::with_capacity(steps.len());
        let mut value = root;
        for spellings in steps {
            let (key, next) = spellings.iter().find_map(|key| Some((key, child(value, key)?)))?;
            keys.push(key.clone());
            value = next;
        }
        Some((keys, value))
    };
    let by_the_letter = |path: String| {
        let steps: Vec<Vec<String>> = path.split('/').map(|step| vec![unescaped(step)]).collect();
        walk(&steps)
    };
    percent_decoded(path).and_then(by_the_letter).or_else(|| {
        let spellings = |step: &str| {
            let decoded = percent_decoded(step).map(|step| unescaped(&step));
            decoded.into_iter().chain([step.to_owned()]).collect()
        };
        let steps: Vec<Vec<String>> = path.split('/').map(spellings).collect();
        walk(&steps)
    })
}

fn child<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Array(list) => list.get(key.parse::<usize>().ok()?),
        value => value.get(key),
    }
}

/// A step of a JSON pointer as a key.
fn unescaped(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}

/// A text without the escapes of a URI; `None` where it has escapes that are none.
fn percent_decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2).filter(|(code, _)| code.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_to_what_they_mean() {
        let definitions = json!({"a b": 1, "a/b": 2, "a~b": 3, "a%20c": {"a/b": 4}, "é": 5, "~1": 6, "": 7, "%zz": 8, "d": {"e": 9}, "d/e": 10});
        let root = json!({"$defs": definitions, "list": [{"x": 11}]});
        for (reference, expected) in [
            ("#/$defs/a%20b", Some(1)),
            ("#/$defs/a b", Some(1)),
            ("#/%24defs/a%20b", Some(1)),
            ("#/$defs/a~1b", Some(2)),
            ("#/$defs/a%7E1b", Some(2)),
            ("#/$defs/a~0b", Some(3)),
            // There is no `a c`: it was spelled without escapes, wholly or in part.
            ("#/$defs/a%20c/a~1b", Some(4)),
            ("#/$defs/a%2520c/a~1b", Some(4)),
            ("#/$defs/%C3%a9", Some(5)),
            ("#/$defs/é", Some(5)),
            ("#/$defs/~01", Some(6)),
            ("#/$defs/", Some(7)),
            ("#/$defs/%zz", Some(8)),
            // By the letter `%2F` is a `/` between two keys.
            ("#/$defs/d%2Fe", Some(9)),
            ("#/$defs/d~1e", Some(10)),
            ("#/$defs/a%2Fb", Some(2)),
            ("#/list/0/x", Some(11)),
            ("#/list/1/x", None),
            ("#/$defs/%FF", None),
            ("#anchor", None),
            ("other.json#/$defs/d", None),
        ] {
            assert_eq!(found(&root, reference).and_then(|(_, at)| at.as_u64()), expected, "{reference}");
        }
        for whole in ["#", "#/"] {
            assert_eq!(found(&root, whole), Some((Vec::new(), &root)));
        }
    }
}
