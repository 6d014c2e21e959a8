//! JSON as a stranger may write it: duplicate keys, byte order marks and numbers beyond `f64` are errors, depth is limited.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::checkpoint::names::{shown, shown_within};

/// Parses `bytes`; the error is a sentence without the path.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, String> {
    Ok(from_slice::<Strict>(bytes)?.0)
}

/// Parses `bytes` into any type; whether duplicate keys are errors is up to the type (derived structs refuse them).
pub(crate) fn from_slice<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err("starts with a byte order mark: save it as UTF-8 without one".into());
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    T::deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value))
        .map_err(|e| format!("is not valid JSON: {}", shown_within(&e.to_string(), 600)))
}

/// A value without duplicate keys at any depth. Depth is limited by `serde_json`.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if out.contains_key(&key) {
                return Err(A::Error::custom(format!("duplicate key {}", shown(&key))));
            }
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_serde_json_alone_would_accept() {
        for (text, word) in [
            (&b"\xef\xbb\xbf{}"[..], "byte order mark"),
            (b"{\"a\": 1, \"a\": 2}", "duplicate key"),
            (b"{\"a\": [{\"b\": 1, \"b\": 2}]}", "duplicate key"),
            (b"{\"a\": 1e400}", "out of range"),
            (b"{\"a\": 1", "EOF"),
            (b"{} {}", "trailing"),
            (b"", "EOF"),
            (b"{\"a\": \"\xff\"}", "JSON"),
        ] {
            let message = parse(text).expect_err("accepted");
            assert!(message.contains(word), "{message}");
        }
        assert!(parse("[".repeat(10_000).as_bytes()).is_err());
        assert_eq!(parse(b"{\"a\": [1, -2, 0.5, null, true, \"x\"]}").map(|v| v["a"][2].as_f64()), Ok(Some(0.5)));
    }
}
