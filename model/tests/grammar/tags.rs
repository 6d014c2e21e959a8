//! Calls in tags: which parameters they have, wherever in a schema those stand, and which texts their values may be.

use std::time::{Duration, Instant};

use crate::support::{files, in_child};
use emberlm_model::engine::TokenMask;
use emberlm_model::grammar::{Grammar, GrammarCompiler};
use emberlm_model::text::{AnswerFormat, AnswerParser, AnswerPart, DeclaredTools, TextProcessor, Thinking, ToolFormat};
use serde_json::{Value, json};

struct Compiler {
    text: TextProcessor,
    compiler: GrammarCompiler,
}

impl Compiler {
    fn new() -> Self {
        let text = TextProcessor::from_files(&files("crest_k4")).unwrap();
        let compiler = GrammarCompiler::new(&text).unwrap();
        Self { text, compiler }
    }

    fn grammar(&self, parameters: &Value) -> emberlm_model::Result<Grammar> {
        let tools = DeclaredTools::parse(&json!([{"name": "f", "parameters": parameters}])).unwrap();
        self.compiler.tool_calls(ToolFormat::Qwen3Coder, &tools, false)
    }

    fn error(&self, parameters: &Value) -> String {
        match self.grammar(parameters) {
            Ok(_) => panic!("{parameters} is taken"),
            Err(error) => error.to_string(),
        }
    }

    /// Whether a call with these parameters is one of a grammar.
    fn takes(&self, grammar: &Grammar, parameters: &[(&str, &str)]) -> bool {
        let tag = |(name, value): &(&str, &str)| format!("<parameter={name}>\n{value}\n</parameter>\n");
        let tags: String = parameters.iter().map(tag).collect();
        let call = format!("<tool_call>\n<function=f>\n{tags}</function>\n</tool_call>");
        let mut grammar = grammar.clone();
        let ids = self.text.encode_literal(&call, false).unwrap();
        ids.into_iter().all(|id| grammar.accept(id).is_ok()) && grammar.is_at_end()
    }

    /// Which texts one required parameter takes.
    fn check(&self, schema: &Value, definitions: &Value, taken: &[&str], refused: &[&str]) {
        let parameters =
            json!({"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": definitions});
        let grammar = self.grammar(&parameters).unwrap_or_else(|error| panic!("{schema}: {error}"));
        taken.iter().for_each(|text| assert!(self.takes(&grammar, &[("x", text)]), "{schema} takes {text:?}"));
        refused.iter().for_each(|text| assert!(!self.takes(&grammar, &[("x", text)]), "{schema} refuses {text:?}"));
        assert!(!self.takes(&grammar, &[]), "{schema}");
    }
}

fn arguments() -> Value {
    json!({"type": "object", "properties": {"unit": {"enum": ["c", "f"]}, "n": {"type": "integer"}, "note": {"type": "string"}},
        "required": ["unit", "n"]})
}

#[test]
fn parameters_at_the_root_are_found_behind_references_and_in_all_of() {
    let compiler = Compiler::new();
    for parameters in [
        json!({"$ref": "#/definitions/Args", "definitions": {"Args": arguments()}}),
        json!({"$ref": "#/$defs/One", "$defs": {"One": {"allOf": [{"$ref": "#/$defs/Two"}]}, "Two": arguments()}}),
        json!({"type": "object", "allOf": [arguments()]}),
        json!({"allOf": [{"properties": {"unit": {"enum": ["c", "f"]}}, "required": ["unit"]}, {"$ref": "#/$defs/Rest"}],
            "$defs": {"Rest": {"properties": {"n": {"type": "integer"}, "note": {"type": "string"}}, "required": ["n"]}}}),
        // What several schemas say of one parameter holds together.
        json!({"properties": {"unit": {"type": "string"}, "n": {"type": "integer"}, "note": {}}, "required": ["n"],
            "allOf": [{"properties": {"unit": {"enum": ["c", "f", 3]}}, "required": ["unit"]}]}),
    ] {
        let grammar = compiler.grammar(&parameters).unwrap_or_else(|error| panic!("{parameters}: {error}"));
        for (values, taken) in [
            (&[("unit", "c"), ("n", "5")][..], true),
            (&[("unit", "f"), ("n", "5"), ("note", "any")], true),
            (&[("unit", "k"), ("n", "5")], false),
            (&[("unit", "3"), ("n", "5")], false),
            (&[("unit", "c"), ("n", "x")], false),
            (&[("unit", "c")], false),
            (&[("n", "5")], false),
            (&[], false),
        ] {
            assert_eq!(compiler.takes(&grammar, values), taken, "{parameters}: {values:?}");
        }
    }
}

#[test]
fn alternatives_at_the_root_are_forms_of_a_call() {
    let compiler = Compiler::new();
    let named = |name: &str| json!({"type": "object", "properties": {"kind": {"const": name}, name: {"type": "integer"}}, "required": ["kind", name]});
    for key in ["anyOf", "oneOf"] {
        let parameters = json!({key: [{"$ref": "#/$defs/A"}, named("b"), {"type": "null"}], "$defs": {"A": named("a")},
            "properties": {"more": {"type": "boolean"}}});
        let grammar = compiler.grammar(&parameters).unwrap();
        for (values, taken) in [
            (&[("kind", "a"), ("a", "1")][..], true),
            (&[("more", "true"), ("kind", "b"), ("b", "1")], true),
            (&[("kind", "a"), ("b", "1")], false),
            (&[("kind", "a")], false),
            (&[], false),
        ] {
            assert_eq!(compiler.takes(&grammar, values), taken, "{key}: {values:?}");
        }
    }
    // Alternatives of what has to be there.
    let either = json!({"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]});
    let one_of_them = json!({"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "minProperties": 1});
    for parameters in [either, one_of_them] {
        let grammar = compiler.grammar(&parameters).unwrap();
        for (values, taken) in
            [(&[("a", "1")][..], true), (&[("b", "1")], true), (&[("a", "1"), ("b", "2")], true), (&[], false)]
        {
            assert_eq!(compiler.takes(&grammar, values), taken, "{parameters}: {values:?}");
        }
    }
}

#[test]
fn what_a_call_in_tags_cannot_have_and_has_to_is_refused_with_its_place() {
    let compiler = Compiler::new();
    let at = "tools[0].function.parameters";
    let many: Vec<Value> = (0..65).map(|i| json!({"required": [format!("k{i}")]})).collect();
    let doubled: serde_json::Map<String, Value> = (0..30)
        .map(|i| {
            (
                format!("d{i}"),
                json!({"anyOf": [{"$ref": format!("#/$defs/d{}", i + 1)}, {"$ref": format!("#/$defs/d{}", i + 1)}]}),
            )
        })
        .chain([("d30".to_owned(), json!({"type": "object"}))])
        .collect();
    for (parameters, place, part) in [
        (
            json!({"additionalProperties": {"type": "integer"}, "minProperties": 1}),
            ".minProperties: ",
            "name them in properties",
        ),
        (
            json!({"patternProperties": {"^x": {"type": "integer"}}, "minProperties": 1}),
            ".minProperties: ",
            "name them",
        ),
        (json!({"properties": {"a": {}, "b": {}}, "maxProperties": 1}), ".maxProperties: ", "leave it out"),
        (json!({"enum": [{"a": 1}]}), ".enum: ", "cannot be listed"),
        (
            json!({"properties": {"a": false}, "required": ["a"]}),
            ".properties.a: ",
            "no answer fits it, and it is required",
        ),
        (json!({"required": ["a"], "additionalProperties": false}), ".properties.a: ", "no answer fits it"),
        (json!({"anyOf": [{"type": "string"}]}), ": ", "no answer fits it"),
        (json!({"anyOf": many}), ": ", "more than 64 alternatives"),
        (json!({"$ref": "#/$defs/d0", "$defs": doubled.clone()}), ": ", "more than 64 alternatives"),
        (json!({"$ref": "#/$defs/Missing"}), ": ", "\"#/$defs/Missing\" names nothing"),
        (
            json!({"properties": {"a": {"$ref": "#/$defs/Missing"}}}),
            ".properties.a: ",
            "\"#/$defs/Missing\" names nothing",
        ),
        (json!({"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": doubled}), ".properties.a: ", "256 alternatives"),
        (
            json!({"properties": {"a": {"type": "string", "pattern": "("}}}),
            ".properties.a: ",
            "pattern \"(\" cannot be kept between tags: unclosed group",
        ),
        (
            json!({"properties": {"a": {"type": "string", "pattern": "a(?=b)"}}}),
            ".properties.a: ",
            "pattern \"a(?=b)\" cannot be kept",
        ),
        (json!({"properties": {"a": {"type": "string", "maxLength": -1}}}), ".properties.a: ", "maxLength must be"),
        (
            json!({"properties": {"a": {"enum": ["a</parameter>\n<parameter=b>"]}}}),
            ".properties.a: ",
            "cannot be written between tags",
        ),
        (
            json!({"properties": {"a": {"const": "x", "type": "integer"}}, "required": ["a"]}),
            ".properties.a: ",
            "no answer fits it",
        ),
        (
            json!({"properties": {"a": {"type": "string", "pattern": "^a$", "minLength": 2}}, "required": ["a"]}),
            ".properties.a: ",
            "no answer fits it",
        ),
    ] {
        let error = compiler.error(&parameters);
        assert!(error.starts_with(&format!("{at}{place}")) && error.contains(part), "{parameters}: {error}");
    }
    // Nothing of it has to be there.
    for parameters in [
        json!({"type": "object", "additionalProperties": {"type": "integer"}}),
        json!({"properties": {"a": {"const": "x", "type": "integer"}, "b": {"type": "string", "minLength": 2, "maxLength": 1}}}),
        json!({"allOf": [{"properties": {"a": {}}}, {"additionalProperties": false}]}),
    ] {
        let grammar = compiler.grammar(&parameters).unwrap();
        assert!(compiler.takes(&grammar, &[]), "{parameters}");
        assert!(!compiler.takes(&grammar, &[("a", "x")]), "{parameters}");
    }
    let any_name = json!({"patternProperties": {"^x": {"type": "string"}}, "required": ["x1"]});
    let grammar = compiler.grammar(&any_name).unwrap();
    assert!(compiler.takes(&grammar, &[("x1", "any\ntext")]) && !compiler.takes(&grammar, &[]));
}

#[test]
fn listed_texts_are_found_wherever_a_schema_has_them() {
    let compiler = Compiler::new();
    let definitions =
        json!({"Unit": {"type": "string", "enum": ["c", "f"], "title": "Unit"}, "Again": {"$ref": "#/$defs/Unit"}});
    let not_listed = ["Kelvin", "", "\"c\"", "c\nf", "cf"];
    for schema in [
        json!({"enum": ["c", "f"]}),
        json!({"$ref": "#/$defs/Unit"}),
        json!({"$ref": "#/$defs/Again"}),
        json!({"allOf": [{"$ref": "#/$defs/Unit"}], "default": "c"}),
        json!({"anyOf": [{"const": "c"}, {"const": "f"}]}),
        json!({"oneOf": [{"const": "c", "title": "C"}, {"enum": ["f"]}]}),
        json!({"enum": ["c", "f", "abcd"], "maxLength": 3}),
        json!({"enum": ["c", "f", "abc"], "pattern": "^[cf]$"}),
        json!({"enum": ["c", "f", "x"], "allOf": [{"enum": ["f", "c", "y"]}]}),
        json!({"type": "string", "enum": ["c", "f", 3]}),
    ] {
        compiler.check(&schema, &definitions, &["c", "f"], &[&not_listed[..], &["null", "3"]].concat());
    }
    for schema in [
        json!({"anyOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}], "default": null}),
        json!({"type": ["string", "null"], "enum": ["c", "f", null]}),
        json!({"enum": ["c", "f", null]}),
    ] {
        compiler.check(&schema, &definitions, &["c", "f", "null"], &not_listed);
    }
    let listed = json!({"enum": ["a", "abcd"], "minLength": 3});
    compiler.check(&listed, &definitions, &["abcd"], &["a", "abc"]);
    // One that begins as another, and one of several lines.
    let lines = json!({"enum": ["a", "a\nb", "\n", "", "</param", "\u{7f}\"\\"]});
    compiler.check(&lines, &definitions, &["a", "a\nb", "\n", "", "</param", "\u{7f}\"\\"], &["b", "a\n", "a\nc"]);
}

#[test]
fn texts_and_other_values_are_alternatives() {
    let compiler = Compiler::new();
    let definitions = json!({
        "Point": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        "Tree": {"anyOf": [{"enum": ["leaf"]}, {"type": "array", "items": {"$ref": "#/$defs/Tree"}, "maxItems": 2}]},
    });
    for (schema, taken, refused) in [
        (
            json!({"anyOf": [{"type": "integer"}, {"enum": ["c"]}]}),
            &["c", "278", "-3"][..],
            &["278.26", "d", "\"c\""][..],
        ),
        (json!({"type": ["integer", "string"], "pattern": "^x"}), &["x y", "12"], &["1.5", "y"]),
        (json!({"enum": ["auto", 1, 2, true, null]}), &["auto", "1", "2", "true", "null"], &["3", "false", "x"]),
        (
            json!({"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "string", "maxLength": 5}]}),
            &["[12345678, 2]", "word", ""],
            &["[1]", "longer than that"],
        ),
        (json!({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Point"}]}), &["[1]", "any\ntext"], &["</parameter>"]),
        (json!({"$ref": "#/$defs/Tree"}), &["leaf", "[\"leaf\", [\"leaf\"]]"], &["\"leaf\"", "[leaf]", "[\"x\"]"]),
        // A schema without a type is of that which its keywords mean.
        (json!({"properties": {"a": {"type": "integer"}}}), &["{\"a\": 1}"], &["{\"a\": \"x\"}", "\"x\"", "x", "3"]),
        (json!({"items": {"type": "integer"}}), &["[1]"], &["[\"x\"]", "\"x\"", "3"]),
        (json!({"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}]}), &["[1,2]", "null"], &["x", "[1]"]),
    ] {
        compiler.check(&schema, &definitions, taken, refused);
    }
}

#[test]
fn patterns_formats_and_lengths_of_texts_are_kept() {
    let compiler = Compiler::new();
    for (schema, taken, refused) in [
        (json!({"type": "string", "pattern": "^[cf]$"}), &["c", "f"][..], &["Kelvin", "\"c\"", "cf", ""][..]),
        (json!({"type": "string", "pattern": "[cf]"}), &["c", "a cat", "a\nf"], &["kelvin", ""]),
        (json!({"type": "string", "maxLength": 2}), &["", "ab", "é\n"], &["abc", "\"ab\""]),
        (
            json!({"type": "string", "minLength": 3}),
            &["abc", "a\nb", "</parameter", "a</parameter>"],
            &["ab", "abc\n</parameter>"],
        ),
        (json!({"type": "string", "format": "date"}), &["2024-02-29"], &["today", "2024-13-01"]),
        (json!({"type": "string", "format": "date-time"}), &["2024-02-29T10:00:00Z"], &["2024-02-29"]),
        (json!({"type": "string", "format": "uri", "maxLength": 12}), &["http://a/b"], &["a/b", "http://long.org"]),
        (json!({"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}), &["2024-02-29", "null"], &["nil"]),
        (json!({"type": "string", "allOf": [{"minLength": 2}, {"maxLength": 3}]}), &["ab", "abc"], &["a", "abcd"]),
        (json!({"anyOf": [{"pattern": "^a+$"}, {"pattern": "^b/$"}]}), &["aaa", "b/"], &["ab", ""]),
    ] {
        compiler.check(&schema, &json!({}), taken, refused);
    }
}

#[test]
fn formats_that_are_not_known_are_ignored() {
    let compiler = Compiler::new();
    let properties = json!({
        "data": {"type": "string", "format": "binary"},
        "path": {"anyOf": [{"type": "string", "format": "file-path"}, {"type": "null"}]},
        "format": {"type": "string", "format": "color-hex", "maxLength": 7},
        "listed": {"enum": [{"format": "regex"}]},
    });
    let schema = json!({"type": "object", "properties": properties, "required": ["format", "listed"], "additionalProperties": false,
        "$defs": {"Secret": {"type": "string", "format": "password"}}});
    let grammar = compiler.compiler.json_schema(&schema, "schema").unwrap();
    let takes = |answer: &str| {
        let mut grammar = grammar.clone();
        let ids = compiler.text.encode_literal(answer, false).unwrap();
        ids.into_iter().all(|id| grammar.accept(id).is_ok()) && grammar.is_complete()
    };
    assert!(takes(r##"{"data":"x","path":"/a","format":"#ffffff","listed":{"format":"regex"}}"##));
    assert!(!takes(r##"{"format":"too long a text","listed":{"format":"regex"}}"##));
    assert!(!takes(r##"{"format":"#ffffff","listed":{}}"##));
    let grammar = compiler.grammar(&schema).unwrap();
    let listed = ("listed", r#"{"format":"regex"}"#);
    assert!(compiler.takes(&grammar, &[("data", "any\ntext"), ("path", "/a"), ("format", "#ffffff"), listed]));
    assert!(!compiler.takes(&grammar, &[("format", "too long a text"), listed]));
    // Formats that are known are kept.
    for format in ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"] {
        let grammar = compiler.compiler.json_schema(&json!({"type": "string", "format": format}), "schema").unwrap();
        let mut grammar = grammar.clone();
        let ids = compiler.text.encode_literal("\" x\"", false).unwrap();
        assert!(!ids.into_iter().all(|id| grammar.accept(id).is_ok()), "{format}");
    }
}

/// The arguments of a call whose tokens are drawn among those that a grammar allows; `None` where it does not end.
fn drawn(compiler: &Compiler, mut grammar: Grammar, tools: &DeclaredTools, seed: u64) -> Option<Value> {
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let mut ids = Vec::new();
    while !grammar.is_at_end() {
        if ids.len() == 600 {
            return None;
        }
        let allowed = grammar.allowed().unwrap().unwrap();
        let all: Vec<u32> =
            (0..allowed.len() as u32 * 32).filter(|id| allowed[*id as usize / 32] >> (id % 32) & 1 == 1).collect();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let id = all[(random >> 33) as usize % all.len()];
        grammar.accept(id).unwrap();
        ids.push(id);
    }
    let text = compiler.text.decode(&ids, false).unwrap();
    let format = AnswerFormat { tools: ToolFormat::Qwen3Coder, thinking: false };
    let mut parser = AnswerParser::new(format, Thinking::Closed, tools.clone(), seed);
    let parts = [parser.push(&text), parser.finish()].concat();
    let arguments: String = parts
        .iter()
        .filter_map(|part| match part {
            AnswerPart::ToolCallArguments { delta, .. } => Some(delta.as_str()),
            AnswerPart::ToolCallBegin { .. } => None,
            other => panic!("{other:?} of {text:?}"),
        })
        .collect();
    Some(serde_json::from_str(&arguments).unwrap_or_else(|error| panic!("{error}: {text:?}")))
}

#[test]
fn calls_that_are_drawn_have_what_is_required_and_types_as_declared() {
    let compiler = Compiler::new();
    let args = json!({"type": "object", "properties": {
            "unit": {"anyOf": [{"$ref": "#/definitions/Unit"}, {"type": "null"}]},
            "code": {"type": "string", "pattern": "^[0-9]{1,3}$"},
            "day": {"type": "string", "format": "date"},
            "size": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"enum": ["auto", "7x"]}]},
            "note": {"type": "string", "maxLength": 8},
        }, "required": ["unit", "code", "day", "size"]});
    let parameters = json!({"$ref": "#/definitions/Args", "definitions": {"Args": args, "Unit": {"enum": ["c", "f"]}}});
    let tools = DeclaredTools::parse(&json!([{"name": "f", "parameters": parameters}])).unwrap();
    let grammar = compiler.compiler.tool_calls(ToolFormat::Qwen3Coder, &tools, false).unwrap();
    for seed in 0..60 {
        let call = drawn(&compiler, grammar.clone(), &tools, seed).unwrap_or_else(|| panic!("{seed} does not end"));
        let unit = &call["unit"];
        assert!(unit.is_null() && call.get("unit").is_some() || unit == "c" || unit == "f", "{call}");
        let is_code = |code: &str| (1..4).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_digit());
        assert!(call["code"].as_str().is_some_and(is_code), "{call}");
        assert!(call["day"].as_str().is_some_and(|day| day.len() == 10 && day.as_bytes()[4] == b'-'), "{call}");
        let size = &call["size"];
        assert!(size.as_u64().is_some_and(|size| (1..10).contains(&size)) || size == "auto" || size == "7x", "{call}");
        let note = call.get("note").map(|note| note.as_str().unwrap().chars().count());
        assert!(note.is_none_or(|count| count <= 8), "{call}");
    }
}

#[test]
fn hostile_schemas_of_texts_take_no_time() {
    in_child(module_path!(), "hostile_schemas_of_texts_take_no_time", || {
        let compiler = Compiler::new();
        let long = "a".repeat(2000);
        let names: Vec<Value> = (0..15_000).map(|i| json!(format!("value {}", i * 7919 % 15_000))).collect();
        let chain: serde_json::Map<String, Value> = (0..390)
            .map(|i| (format!("d{i}"), json!({"anyOf": [{"$ref": format!("#/$defs/d{}", i + 1)}, {"$ref": format!("#/$defs/d{}", (i + 7) % 390)}]})))
            .collect();
        let circle = json!({"A": {"anyOf": [{"$ref": "#/$defs/B"}, {"type": "string", "maxLength": 3}]}, "B": {"allOf": [{"$ref": "#/$defs/A"}]}});
        let patterns = [
            "^(((a{1,100}){1,100}){1,100}){1,100}$",
            "^(a|b)*a(a|b){40}$",
            "^(.*a){30}.*$",
            "(a*)*b",
            "^(a|aa)+$",
            "((((((((((a|)|)|)|)|)|)|)|)|)|)",
        ];
        let mut schemas = vec![
            (json!({"enum": names, "minLength": 7}), json!({})),
            (json!({"$ref": "#/$defs/d0"}), Value::Object(chain)),
            (json!({"$ref": "#/$defs/A"}), circle),
            (json!({"type": "string", "minLength": 1_000_000_000u64}), json!({})),
            (json!({"type": "string", "maxLength": 4_000_000_000u64}), json!({})),
            (json!({"type": "string", "pattern": "(".repeat(5000)}), json!({})),
            (json!({"type": "string", "pattern": format!("{}a{}", "(".repeat(5000), ")".repeat(5000))}), json!({})),
            (json!({"type": "string", "pattern": "|".repeat(50_000)}), json!({})),
            (json!({"type": "string", "pattern": "$".repeat(50_000)}), json!({})),
        ];
        for pattern in patterns {
            schemas.push((json!({"type": "string", "pattern": pattern}), json!({})));
            schemas.push((
                json!({"type": "string", "pattern": pattern, "format": "email", "minLength": 6, "maxLength": 3000}),
                json!({}),
            ));
            schemas.push((json!({"enum": [long, "ab", format!("{long}b")], "pattern": pattern}), json!({})));
        }
        for (i, (schema, definitions)) in schemas.into_iter().enumerate() {
            let begun = Instant::now();
            let parameters = json!({"properties": {"x": schema}, "required": ["x"], "$defs": definitions});
            let outcome = match compiler.grammar(&parameters) {
                Err(error) => format!("{:.200}", error.to_string()),
                Ok(mut grammar) => {
                    let compiled = begun.elapsed();
                    let begin = "<tool_call>\n<function=f>\n<parameter=x>\n";
                    compiler
                        .text
                        .encode_literal(begin, false)
                        .unwrap()
                        .into_iter()
                        .for_each(|id| grammar.accept(id).unwrap());
                    let mut step = |at: usize| -> emberlm_model::Result<bool> {
                        let Some(allowed) = grammar.allowed()? else { return Ok(true) };
                        let ids: Vec<u32> = (0..allowed.len() as u32 * 32)
                            .filter(|id| allowed[*id as usize / 32] >> (id % 32) & 1 == 1)
                            .collect();
                        let Some(&id) = ids.get(at * 7919 % ids.len().max(1)) else { return Ok(true) };
                        grammar.accept(id)?;
                        Ok(grammar.is_at_end())
                    };
                    let steps = (0..60).map(&mut step).take_while(|step| matches!(step, Ok(false))).count();
                    format!("compiled in {compiled:?}, then {steps} steps")
                }
            };
            println!("schema {i}: {:?}: {outcome}", begun.elapsed());
            assert!(begun.elapsed() < Duration::from_secs(20), "schema {i}: {:?}", begun.elapsed());
        }
    });
}
