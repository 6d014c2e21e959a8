//! Which methods a value has, and which of them a template may call.

use super::value::Value;

const TEXT: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const MARKUP: [&str; 3] = ["escape", "striptags", "unescape"];
const LIST: [&str; 3] = ["copy", "count", "index"];
const LIST_UNSAFE: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const DICT_UNSAFE: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

/// Attributes that every object of Python has.
const INTERNAL: [&str; 12] = [
    "__class__",
    "__delattr__",
    "__dir__",
    "__doc__",
    "__eq__",
    "__format__",
    "__getattribute__",
    "__hash__",
    "__init__",
    "__new__",
    "__reduce__",
    "__str__",
];

/// A method that a value has, and whether a template may use it.
pub(super) enum Access {
    Safe,
    /// It would change the value.
    Unsafe,
}

pub(super) fn find(value: &Value, name: &str) -> Option<Access> {
    if INTERNAL.contains(&name) {
        return Some(Access::Unsafe);
    }
    let (safe, changing): (&[&str], &[&str]) = match value {
        Value::Str(_) => (&TEXT, &[]),
        Value::Markup(_) if MARKUP.contains(&name) => return Some(Access::Safe),
        Value::Markup(_) => (&TEXT, &[]),
        Value::List(_) => (&LIST, &LIST_UNSAFE),
        Value::Tuple(_) | Value::Range(_) => (&["count", "index"], &[]),
        Value::Dict(_) => (&DICT, &DICT_UNSAFE),
        Value::Function("dict") => (&["fromkeys"], &[]),
        Value::Int(_) | Value::Bool(_) => (&["bit_length", "conjugate", "is_integer"], &[]),
        Value::Float(_) => (&["conjugate", "is_integer"], &[]),
        Value::Cycler(_) => (&["next", "reset"], &[]),
        Value::Loop(_) => (&["cycle", "changed"], &[]),
        _ => return None,
    };
    if safe.contains(&name) {
        Some(Access::Safe)
    } else if changing.contains(&name) {
        Some(Access::Unsafe)
    } else {
        None
    }
}
