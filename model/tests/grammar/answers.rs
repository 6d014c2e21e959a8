//! Answers under a grammar, of models that know nothing: logits are random numbers.

use std::time::{Duration, Instant};

use crate::support::{files, in_child};
use emberlm_model::Error;
use emberlm_model::engine::TokenMask;
use emberlm_model::grammar::{Grammar, GrammarCompiler};
use emberlm_model::sampling::{Sampler, SamplingConfig};
use emberlm_model::text::{AnswerFormat, AnswerParser, AnswerPart, DeclaredTools, TextProcessor, Thinking, ToolFormat};
use serde_json::{Map, Value, json};

const FIXTURES: [&str; 3] = ["nano_compact", "leanllama", "crest_k4"];

fn text(fixture: &str) -> TextProcessor {
    TextProcessor::from_files(&files(fixture)).unwrap()
}

/// A generator of numbers between 0 and 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// What a model says whose logits are random, and the tokens; the end token is taken when it is the most probable one.
fn answer(text: &TextProcessor, mut grammar: Grammar, seed: u64, most: usize) -> Option<(String, Vec<u32>)> {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1);
    let config = SamplingConfig {
        temperature: if seed.is_multiple_of(3) { 0.0 } else { 1.0 },
        seed: Some(seed),
        ..SamplingConfig::default()
    };
    let mut sampler = Sampler::new(&config).unwrap();
    let (eos, size) = (text.eos_id().unwrap(), text.vocab_size());
    let mut ids = Vec::new();
    while !grammar.is_at_end() {
        if ids.len() == most {
            return None;
        }
        let mut logits: Vec<f32> = (0..size).map(|_| random.next() * 6.0).collect();
        let complete = grammar.is_complete();
        if let Some(allowed) = grammar.allowed().unwrap() {
            for (id, logit) in logits.iter_mut().enumerate() {
                if allowed.get(id / 32).is_none_or(|word| word >> (id % 32) & 1 == 0) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        logits[eos as usize] = if complete { 6.0 } else { f32::NEG_INFINITY };
        let id = sampler.sample(&mut logits, &ids).unwrap();
        if id == eos {
            break;
        }
        grammar.accept(id).unwrap();
        ids.push(id);
    }
    Some((text.decode(&ids, false).unwrap(), ids))
}

/// Whether a value is one of a schema that uses few keywords.
fn fits(value: &Value, schema: &Value, root: &Value) -> bool {
    let keyword = |name: &str| schema.get(name);
    if let Some(at) = keyword("$ref") {
        return fits(value, root.pointer(at.as_str().unwrap().strip_prefix('#').unwrap()).unwrap(), root);
    }
    let type_fits = match keyword("type").and_then(Value::as_str) {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        // -0 is an integer, but not one of Rust's.
        Some("integer") => value.as_f64().is_some_and(|value| value.fract() == 0.0),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some(other) => panic!("{other}"),
        None => true,
    };
    let listed = keyword("enum").is_none_or(|list| list.as_array().unwrap().contains(value));
    let any =
        keyword("anyOf").is_none_or(|list| list.as_array().unwrap().iter().any(|schema| fits(value, schema, root)));
    let at_least = keyword("minimum").is_none_or(|least| value.as_f64().unwrap() >= least.as_f64().unwrap());
    let at_most = keyword("maximum").is_none_or(|most| value.as_f64().unwrap() <= most.as_f64().unwrap());
    let size =
        value.as_str().map(|text| text.chars().count()).or_else(|| value.as_array().map(Vec::len)).unwrap_or(0) as u64;
    let bounds =
        ["maxLength", "maxItems"].iter().all(|name| keyword(name).is_none_or(|most| size <= most.as_u64().unwrap()))
            && ["minLength", "minItems"]
                .iter()
                .all(|name| keyword(name).is_none_or(|least| size >= least.as_u64().unwrap()));
    let items = value
        .as_array()
        .zip(keyword("items"))
        .is_none_or(|(items, schema)| items.iter().all(|item| fits(item, schema, root)));
    let object =
        value.as_object().zip(keyword("properties").and_then(Value::as_object)).is_none_or(|(object, properties)| {
            let required = keyword("required").map_or(&[][..], |names| names.as_array().unwrap());
            object.iter().all(|(key, value)| properties.get(key).is_some_and(|schema| fits(value, schema, root)))
                && required.iter().all(|name| object.contains_key(name.as_str().unwrap()))
        });
    type_fits && listed && any && at_least && at_most && bounds && items && object
}

fn schemas() -> [Value; 4] {
    [
        json!({
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 6},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "tags": {"type": "array", "items": {"enum": ["a b", "\"ü\"", "{"]}, "minItems": 1, "maxItems": 3},
                "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}, {"$ref": "#/$defs/Point"}]},
            },
            "required": ["name", "age", "more"],
            "additionalProperties": false,
            "$defs": {"Point": {"type": "object", "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}}, "required": ["x"], "additionalProperties": false}},
        }),
        json!({"enum": ["yes", "no", null, 17]}),
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}),
        // A list that ends in itself.
        json!({
            "$ref": "#/$defs/List",
            "$defs": {"List": {"anyOf": [{"enum": [0, 1]}, {"type": "object", "properties": {"next": {"$ref": "#/$defs/List"}}, "required": ["next"], "additionalProperties": false}]}},
        }),
    ]
}

#[test]
fn answers_of_random_models_are_json_of_the_schema() {
    for fixture in FIXTURES {
        let text = text(fixture);
        let compiler = GrammarCompiler::new(&text).unwrap();
        for schema in schemas() {
            let grammar = compiler.json_schema(&schema, "schema").unwrap();
            let mut ended = 0;
            for seed in 0..60 {
                let Some((answer, _)) = answer(&text, grammar.clone(), seed, 600) else { continue };
                let value: Value =
                    serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{fixture} {seed} {answer:?}: {e}"));
                assert!(fits(&value, &schema, &schema), "{fixture} {seed}: {answer}");
                ended += 1;
            }
            assert!(ended >= 57, "{fixture}: {ended} of 60 ended");
        }
    }
}

#[test]
fn json_object_mode_gives_a_beginning_of_an_object_at_every_token() {
    let text = text("crest_k4");
    let grammar = GrammarCompiler::new(&text).unwrap().json_object().unwrap();
    assert!(!grammar.is_complete());
    let mut ended = 0;
    for seed in 0..100 {
        if let Some((answer, _)) = answer(&text, grammar.clone(), seed, 200) {
            assert!(serde_json::from_str::<Value>(&answer).unwrap().is_object(), "{answer}");
            ended += 1;
        }
    }
    assert!(ended >= 10, "{ended} of 100 ended");
}

#[test]
fn the_end_is_allowed_where_the_text_is_complete_and_nowhere_else() {
    let text = text("crest_k4");
    let schema = json!({"type": "integer", "minimum": 0, "maximum": 99});
    let mut grammar = GrammarCompiler::new(&text).unwrap().json_schema(&schema, "schema").unwrap();
    let digit = text.id("7").unwrap();
    assert!(!grammar.is_complete());
    grammar.accept(digit).unwrap();
    assert!(grammar.is_complete() && !grammar.is_at_end());
    let mut other = grammar.clone();
    grammar.accept(digit).unwrap();
    assert!(grammar.is_complete() && grammar.is_at_end());
    // A copy goes on by itself, and what is not allowed is an error.
    assert!(other.is_complete() && !other.is_at_end());
    let error = other.accept(text.id("x").unwrap()).unwrap_err();
    assert!(matches!(error, Error::Grammar(_)), "{error:?}");
    // Which says nothing of the parser's insides, and nor do those after it.
    let told = "grammar: the text cannot go on as its schema asks for; use a simpler one";
    assert_eq!((error.to_string(), other.allowed().unwrap_err().to_string()), (told.to_owned(), told.to_owned()));
}

#[test]
fn a_grammar_begins_behind_the_thoughts() {
    let text = text("crest_k4");
    let compiler = GrammarCompiler::new(&text).unwrap();
    let grammar = compiler.json_schema(&json!({"enum": ["yes"]}), "schema").unwrap().after_thoughts();
    for (thoughts, wanted) in [
        ("a </thin </think>\n\n", "\"yes\""),
        ("{\"</think>\n", "\"yes\""),
        // Not one token: spelled in pieces.
        ("hm </think>", "\"yes\""),
    ] {
        let mut ids = text.encode(thoughts, false).unwrap();
        if thoughts.starts_with("hm") {
            ids = text.encode_literal(thoughts, false).unwrap();
            assert!(!ids.contains(&text.id("</think>").unwrap()));
        }
        let mut grammar = grammar.clone();
        let last = ids.pop().unwrap();
        for id in ids {
            assert!(!grammar.is_complete());
            grammar.accept(id).unwrap();
        }
        grammar.accept(last).unwrap();
        assert!(!grammar.is_complete());
        let allowed = grammar.allowed().unwrap().unwrap().to_vec();
        let is_allowed = |token: &str| {
            let id = text.id(token).unwrap() as usize;
            allowed[id / 32] >> (id % 32) & 1 == 1
        };
        assert!(is_allowed("\"") && !is_allowed("x"));
        // Two line ends may come, those that came already included.
        assert_eq!(is_allowed("Ċ"), !thoughts.ends_with("\n\n"), "{thoughts:?}");
        for id in text.encode(wanted, false).unwrap() {
            grammar.accept(id).unwrap();
        }
        assert!(grammar.is_at_end());
    }
}

fn tools() -> DeclaredTools {
    DeclaredTools::parse(&json!([
        {"type": "function", "function": {"name": "weather", "parameters": {
            "type": "object",
            "properties": {
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
                "unit": {"enum": ["C", "F"]},
                "at": {"$ref": "#/$defs/Point"},
                "wind": {"type": "boolean"},
            },
            "required": ["days", "at"],
            "additionalProperties": false,
            "$defs": {"Point": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 2, "maxItems": 2}},
        }}},
        {"type": "function", "function": {"name": "no\"op", "parameters": {"type": "object", "properties": {}, "additionalProperties": false}}},
        {"name": "plain", "parameters": {"properties": {"on": {"type": "boolean"}}, "additionalProperties": false}},
    ]))
    .unwrap()
}

#[test]
fn calls_of_random_models_are_calls_of_declared_tools() {
    let tools = tools();
    for (fixture, format) in [
        ("nano_compact", ToolFormat::Hermes),
        ("leanllama", ToolFormat::Llama3Json),
        ("crest_k4", ToolFormat::Qwen3Coder),
    ] {
        let text = text(fixture);
        let compiler = GrammarCompiler::new(&text).unwrap();
        for parallel in [false, true] {
            let grammar = compiler.tool_calls(format, &tools, parallel).unwrap();
            let (mut ended, mut most) = (0, 0);
            for seed in 0..60 {
                let Some((answer, _)) = answer(&text, grammar.clone(), seed, 1200) else { continue };
                ended += 1;
                let format = AnswerFormat { tools: format, thinking: false };
                let mut parser = AnswerParser::new(format, Thinking::Closed, tools.clone(), seed);
                let parts = [parser.push(&answer), parser.finish()].concat();
                let mut calls = 0;
                let mut name = "";
                for part in &parts {
                    match part {
                        AnswerPart::ToolCallBegin { name: called, .. } => (name, calls) = (called, calls + 1),
                        AnswerPart::ToolCallArguments { delta, .. } => {
                            let schema = &tools.get(name).unwrap().parameters;
                            assert!(
                                fits(&serde_json::from_str(delta).unwrap(), schema, schema),
                                "{fixture} {seed} {name}: {delta}"
                            );
                        }
                        other => panic!("{fixture} {seed}: {other:?} of {answer:?}"),
                    }
                }
                assert!(calls >= 1 && (parallel || calls == 1), "{answer:?}");
                most = most.max(calls);
            }
            assert!(ended >= 50, "{fixture}: {ended} of 60 ended");
            assert_eq!(most > 1, parallel && format != ToolFormat::Llama3Json, "{fixture}: {most} calls");
        }
    }
}

#[test]
fn references_of_a_parameter_are_to_the_schema_of_all() {
    let text = text("crest_k4");
    let compiler = GrammarCompiler::new(&text).unwrap();
    let range = json!({"type": "array", "items": {"$ref": "#/properties/day"}, "minItems": 1, "maxItems": 2});
    let parameters = json!({
        "type": "object",
        "properties": {
            "day": {"type": "integer", "minimum": 1, "maximum": 7},
            "days": range,
            "last": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Last"}]},
            "again": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
            "named": {"type": "object", "properties": {"enum": {"$ref": "#/properties/day"}, "it": {"enum": [{"$ref": "#/x"}]}},
                "required": ["enum", "it"], "additionalProperties": false},
        },
        "required": ["day"],
        "additionalProperties": false,
        "$defs": {"Last": {"type": "array", "items": {"$ref": "#/properties/day"}, "minItems": 1, "maxItems": 1}},
    });
    let tools = DeclaredTools::parse(&json!([{"name": "f", "parameters": parameters}])).unwrap();
    let grammar = compiler.tool_calls(ToolFormat::Qwen3Coder, &tools, false).unwrap();
    let takes = |parameters: &[(&str, &str)]| {
        let tag = |(name, value): &(&str, &str)| format!("<parameter={name}>\n{value}\n</parameter>\n");
        let tags: String = parameters.iter().map(tag).collect();
        let call = format!("<tool_call>\n<function=f>\n{tags}</function>\n</tool_call>");
        let mut grammar = grammar.clone();
        let ids = text.encode_literal(&call, false).unwrap();
        ids.into_iter().all(|id| grammar.accept(id).is_ok()) && grammar.is_at_end()
    };
    let day = ("day", "3");
    for (more, taken) in [
        (("days", "[7]"), true),
        (("days", "[8]"), false),
        (("days", "[[7]]"), false),
        (("last", "[1]"), true),
        (("last", "1"), false),
        (("again", "{\"day\":1,\"days\":[2]}"), true),
        (("again", "{\"day\":1,\"again\":{\"day\":2,\"again\":null}}"), true),
        // Not one of its own kind.
        (("again", "{}"), false),
        (("named", "{\"enum\":4,\"it\":{\"$ref\":\"#/x\"}}"), true),
        (("named", "{\"enum\":9,\"it\":{\"$ref\":\"#/x\"}}"), false),
    ] {
        assert_eq!(takes(&[day, more]), taken, "{more:?}");
    }
    assert!(takes(&[day]) && !takes(&[]));
}

#[test]
fn texts_in_tags_are_any_text_up_to_the_end_tag() {
    let text = text("crest_k4");
    let tools = DeclaredTools::parse(
        &json!([{"name": "write", "parameters": {"properties": {"text": {"type": "string"}}, "required": ["text"]}}]),
    )
    .unwrap();
    let grammar = GrammarCompiler::new(&text).unwrap().tool_calls(ToolFormat::Qwen3Coder, &tools, false).unwrap();
    let call = |value: &str| {
        format!("<tool_call>\n<function=write>\n<parameter=text>\n{value}\n</parameter>\n</function>\n</tool_call>")
    };
    for value in [
        "",
        "\n",
        "a",
        "</parameter",
        "<p>\n</p>\n</parameter>.",
        "two\n\nlines \"{<é",
        "</parameter> \n<parameter=x>",
        "</tool_call>",
    ] {
        let mut grammar = grammar.clone();
        for id in text.encode_literal(&call(value), false).unwrap() {
            assert!(!grammar.is_at_end(), "{value:?}");
            grammar.accept(id).unwrap();
        }
        assert!(grammar.is_at_end(), "{value:?}");
    }
}

#[test]
fn what_no_grammar_can_be_made_of_is_named_with_its_place() {
    let text = text("crest_k4");
    let compiler = GrammarCompiler::new(&text).unwrap();
    let deep = (0..60).fold(json!({"type": "string"}), |schema, _| json!({"type": "array", "items": schema}));
    let wide = Value::from((0..30_000).collect::<Vec<u32>>());
    for (schema, wanted) in [
        (json!(3), "response_format.schema: must be a JSON schema: an object"),
        (json!({"type": "strin"}), "response_format.schema: no grammar can be made of it: "),
        (json!({"type": "string", "pattern": "("}), "response_format.schema: no grammar can be made of it: "),
        (
            json!({"type": "object", "properties": {"a": {"not": {"type": "null"}}}}),
            "response_format.schema: no grammar can be made of it: ",
        ),
        (json!({"$ref": "https://example.com/schema.json"}), "response_format.schema: no grammar can be made of it: "),
        (json!({"$ref": "#/$defs/Missing"}), "response_format.schema: no grammar can be made of it: "),
        (json!({"enum": []}), "response_format.schema: no grammar can be made of it: "),
        (
            json!({"type": "integer", "minimum": 3, "maximum": 2}),
            "response_format.schema: no grammar can be made of it: ",
        ),
        (deep, "response_format.schema.items.items"),
        (
            json!({"properties": Value::Object((0..401).map(|i| (format!("k{i}"), json!({}))).collect())}),
            "response_format.schema.properties: has 401 keys, and 400 are allowed",
        ),
        (
            json!({"items": {"type": "integer", "multipleOf": 1001}}),
            "response_format.schema.items.multipleOf: 1001 has more remainders",
        ),
        (json!({"type": "number", "multipleOf": 0.0001234}), "response_format.schema.multipleOf: 0.0001234 has more"),
        (json!({"enum": wide}), "response_format.schema.enum[19998]: is beyond"),
    ] {
        let error = compiler.json_schema(&schema, "response_format.schema").unwrap_err().to_string();
        assert!(error.starts_with(wanted) && error.len() < 4000, "{error}");
    }
    let none = DeclaredTools::default();
    assert!(
        compiler
            .tool_calls(ToolFormat::Hermes, &none, true)
            .unwrap_err()
            .to_string()
            .starts_with("tools: there is none")
    );
    // What is wrong, and none of the rules that were made.
    let missing = json!({"properties": {"x": {"type": "array", "items": {"$ref": "#/$defs/Missing"}}}});
    let tools = DeclaredTools::parse(&json!([{"name": "f", "parameters": missing}])).unwrap();
    for format in [ToolFormat::Hermes, ToolFormat::Llama3Json, ToolFormat::Qwen3Coder] {
        let error = compiler.tool_calls(format, &tools, false).unwrap_err().to_string();
        assert!(error.starts_with("tools: no grammar can be made of it: failed to compile JSON schema"), "{error}");
        assert!(error.contains("'#/$defs/") && error.lines().count() == 1 && !error.contains("x-guidance"), "{error}");
    }
    let odd = DeclaredTools::parse(&json!([{"name": "a>b"}])).unwrap();
    let error = compiler.tool_calls(ToolFormat::Qwen3Coder, &odd, true).unwrap_err().to_string();
    assert!(error.starts_with("tools[0].function.name: \"a>b\" cannot be written in a tag"), "{error}");

    // Definitions are written again with every parameter in tags that refers to them, and with no other.
    let numbers: Vec<u64> = (0..1000).map(|i| 1_000_000_000_000_000 + i).collect();
    let tool = |count: usize, schema: Value| {
        let properties: Map<String, Value> = (0..count).map(|i| (format!("k{i}"), schema.clone())).collect();
        let parameters = json!({"type": "object", "properties": properties, "$defs": {"Number": {"enum": numbers}}});
        let tools = DeclaredTools::parse(&json!([{"name": "tool", "parameters": parameters}])).unwrap();
        compiler.tool_calls(ToolFormat::Qwen3Coder, &tools, false)
    };
    let error = tool(390, json!({"$ref": "#/$defs/Number"})).unwrap_err().to_string();
    assert!(
        error.starts_with("tools[0].function.parameters.properties.k")
            && error.contains("makes a grammar of more than"),
        "{error}"
    );
    let error = tool(401, json!({"type": "boolean"})).unwrap_err().to_string();
    assert!(error.starts_with("tools[0].function.parameters.properties: has 401 keys, and 400 are allowed"), "{error}");
    assert!(tool(60, json!({"type": "boolean"})).is_ok());
}

/// An object that holds another one of its kind.
fn endless(required: &[&str]) -> Value {
    json!({"type": "object", "properties": {"a": {"type": "boolean"}, "next": {"$ref": "#"}}, "required": required, "additionalProperties": false})
}

#[test]
fn a_schema_that_no_finite_value_fits_is_refused_with_the_place() {
    let text = text("crest_k4");
    let compiler = GrammarCompiler::new(&text).unwrap();
    let node = json!({"type": "object", "properties": {"n": {"$ref": "#/$defs/Node"}}, "required": ["n"], "additionalProperties": false});
    let both = json!({"type": "object", "allOf": [{"properties": {"n": {"$ref": "#"}}, "required": ["n"]}]});
    for (schema, place) in [
        (endless(&["a", "next"]), "s.properties.next"),
        (json!({"$ref": "#"}), "s"),
        (json!({"allOf": [{"$ref": "#"}]}), "s.allOf[0]"),
        (json!({"$ref": "#/$defs/Node", "$defs": {"Node": node}}), "s.$defs.Node.properties.n"),
        (json!({"type": "array", "items": {"$ref": "#"}, "minItems": 1}), "s.items"),
        (json!({"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 2}), "s.prefixItems[1]"),
        (
            json!({"anyOf": [{"$ref": "#/$defs/Node"}, {"$ref": "#"}], "$defs": {"Node": node}}),
            "s.$defs.Node.properties.n",
        ),
        (json!({"oneOf": [{"type": "array", "items": {"$ref": "#"}, "minItems": 1}]}), "s.oneOf[0].items"),
        (json!({"type": "object", "required": ["x"], "additionalProperties": {"$ref": "#"}}), "s.additionalProperties"),
        (
            json!({"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#"}}),
            "s.additionalProperties",
        ),
        (both, "s.allOf[0].properties.n"),
        (
            json!({"type": "array", "items": {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}, "minItems": 1}),
            "s.items.properties.x",
        ),
    ] {
        let error = compiler.json_schema(&schema, "s").unwrap_err().to_string();
        let wanted = format!("{place}: no answer fits it: it contains itself without an end");
        assert!(error.starts_with(&wanted), "{schema}: {error}");
    }
    // In tools, in every format.
    let tool = DeclaredTools::parse(&json!([{"name": "f", "parameters": endless(&["next"])}])).unwrap();
    for format in [ToolFormat::Hermes, ToolFormat::Llama3Json, ToolFormat::Qwen3Coder] {
        let error = compiler.tool_calls(format, &tool, false).unwrap_err().to_string();
        assert!(error.starts_with("tools[0].function.parameters.properties.next: no answer fits it"), "{error}");
    }
}

#[test]
fn parts_that_no_finite_value_fits_are_left_out_of_answers() {
    let node = json!({"type": "object", "properties": {"n": {"$ref": "#/$defs/Node"}}, "required": ["n"], "additionalProperties": false});
    let null_or = json!({"anyOf": [{"type": "null"}, {"$ref": "#"}]});
    for schema in [
        // Each of them has an end, with nothing in the place of what has none.
        json!({"type": "object", "properties": {"a": {"type": "boolean"}, "n": {"$ref": "#/$defs/Node"}}, "required": ["a"],
            "additionalProperties": false, "$defs": {"Node": node}}),
        json!({"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "boolean"}], "$defs": {"Node": node}}),
        json!({"type": "array", "items": {"$ref": "#/$defs/Node"}, "$defs": {"Node": node}}),
        json!({"type": "object", "properties": {"a": {"type": "boolean"}, "next": null_or}, "required": ["a", "next"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"next": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}}, "required": ["next"], "additionalProperties": false}),
        // What is only listed is no schema.
        json!({"type": "object", "properties": {"$ref": {"enum": ["#"]}}, "required": ["$ref"], "additionalProperties": false}),
    ] {
        for fixture in FIXTURES {
            let text = text(fixture);
            let grammar = GrammarCompiler::new(&text).unwrap().json_schema(&schema, "s").unwrap();
            let mut ended = 0;
            for seed in 0..20 {
                let Some((answer, _)) = answer(&text, grammar.clone(), seed, 600) else { continue };
                let value: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{seed} {answer:?}: {e}"));
                assert!(fits(&value, &schema, &schema), "{schema} {seed}: {answer}");
                ended += 1;
            }
            assert!(ended >= 15, "{fixture}, {schema}: {ended} of 20 ended");
        }
    }
    // A call has no tag for them.
    let parameters =
        json!({"properties": {"n": {"$ref": "#/$defs/Node"}, "a": {"type": "boolean"}}, "$defs": {"Node": node}});
    let tools = DeclaredTools::parse(&json!([{"name": "f", "parameters": parameters}])).unwrap();
    let text = text("crest_k4");
    let compiler = GrammarCompiler::new(&text).unwrap();
    let mut grammar = compiler.tool_calls(ToolFormat::Qwen3Coder, &tools, false).unwrap();
    let ids = text.encode_literal("<tool_call>\n<function=f>\n<parameter=n", false).unwrap();
    let taken = ids.iter().take_while(|id| grammar.accept(**id).is_ok()).count();
    assert!(taken > 0 && taken < ids.len());
}

/// Schemas that ask for much, and answers that follow them, in bounded time and memory.
#[test]
fn hostile_schemas_take_neither_time_nor_memory() {
    in_child(module_path!(), "hostile_schemas_take_neither_time_nor_memory", || {
        let text = text("crest_k4");
        let compiler = GrammarCompiler::new(&text).unwrap();
        let many: serde_json::Map<String, Value> =
            (0..400).map(|i| (format!("k{i}"), json!({"type": "string"}))).collect();
        let circle = json!({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}});
        let names: Vec<Value> = (0..15_000).map(|i| json!(format!("value {}", i * 7919 % 15_000))).collect();
        let doubled = (0..40).fold(json!({"type": "string"}), |schema, i| {
            if i % 2 == 0 {
                json!({"anyOf": [schema, {"type": "array", "items": {"type": "null"}}]})
            } else {
                json!({"type": "array", "items": schema})
            }
        });
        let defs: serde_json::Map<String, Value> = (0..30)
            .map(|i| (format!("d{i}"), json!({"allOf": [{"$ref": format!("#/$defs/d{}", i + 1)}, {"$ref": format!("#/$defs/d{}", i + 1)}]})))
            .chain([("d30".to_owned(), json!({"type": "string"}))])
            .collect();
        // Whether one of them has an end is known when it is known of the next.
        let chain: serde_json::Map<String, Value> = (0..390)
            .map(|i| (format!("d{i}"), json!({"type": "array", "items": {"$ref": format!("#/$defs/d{}", (i * 7 + 1) % 390)}, "minItems": 1})))
            .collect();
        let schemas = [
            json!({"$ref": "#/$defs/d0", "$defs": chain}),
            json!({"type": "string", "pattern": "^(((a{1,100}){1,100}){1,100}){1,100}$"}),
            json!({"type": "string", "pattern": "^(a|b)*a(a|b){40}$"}),
            json!({"type": "string", "pattern": "^(.*a){30}.*$"}),
            json!({"type": "string", "minLength": 1_000_000_000u64}),
            json!({"type": "string", "maxLength": 4_000_000_000u64}),
            json!({"type": "array", "items": {"type": "array", "items": {"type": "string"}, "minItems": 100_000}, "minItems": 100_000, "maxItems": 1_000_000}),
            json!({"type": "object", "properties": many.clone(), "required": many.keys().collect::<Vec<_>>()}),
            json!({"type": "object", "properties": many}),
            json!({"type": "object", "patternProperties": {"^(a|aa)+$": {"type": "string"}, "^(a|ab)*$": {"type": "null"}}}),
            circle,
            json!({"enum": names}),
            json!({"type": "integer", "multipleOf": 999_983, "minimum": 0, "maximum": 900_000_000_000u64}),
            json!({"type": "integer", "multipleOf": 997, "minimum": 0, "maximum": 900_000_000_000u64}),
            json!({"type": "number", "multipleOf": 9.97}),
            json!({"type": "number", "minimum": -1.234_567_890_123e300, "maximum": 9.9e300}),
            doubled,
            json!({"$ref": "#/$defs/d0", "$defs": defs}),
        ];
        for (i, schema) in schemas.iter().enumerate() {
            let begun = Instant::now();
            let outcome = match compiler.json_schema(schema, "schema") {
                Err(error) => format!("{:.200}", error.to_string()),
                Ok(mut grammar) => {
                    let compiled = begun.elapsed();
                    let mut random = Random(i as u64);
                    let mut step = || -> emberlm_model::Result<bool> {
                        let Some(allowed) = grammar.allowed()? else { return Ok(true) };
                        let ids: Vec<u32> = (0..allowed.len() as u32 * 32)
                            .filter(|id| allowed[*id as usize / 32] >> (id % 32) & 1 == 1)
                            .collect();
                        let Some(&id) = ids.get((random.next() * ids.len() as f32) as usize) else { return Ok(true) };
                        grammar.accept(id)?;
                        Ok(grammar.is_at_end())
                    };
                    let steps = (0..60).map(|_| step()).take_while(|step| matches!(step, Ok(false))).count();
                    format!("compiled in {compiled:?}, then {steps} steps")
                }
            };
            println!("schema {i}: {:?}: {outcome}", begun.elapsed());
            assert!(begun.elapsed() < Duration::from_secs(20), "schema {i}: {:?}", begun.elapsed());
        }
    });
}
