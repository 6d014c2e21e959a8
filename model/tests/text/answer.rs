//! Answers of chat models: thoughts, content and tool calls, however the text is cut.

use std::sync::OnceLock;

use emberlm_model::text::{AnswerFormat, AnswerParser, AnswerPart, DeclaredTools, Thinking, ToolFormat};
use proptest::prelude::*;
use serde_json::{Value, json};

/// An answer, its parts of each kind joined.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    reasoning: Option<String>,
    content: Option<String>,
    /// Names and arguments.
    calls: Vec<(String, String)>,
    /// `R`, `C` and the numbers of calls, in the order in which they came.
    order: String,
    ids: Vec<String>,
}

impl Answer {
    fn add(&mut self, parts: Vec<AnswerPart>) {
        let mut came = |what: char| {
            if !self.order.ends_with(what) {
                self.order.push(what);
            }
        };
        for part in parts {
            match part {
                AnswerPart::Content(text) => {
                    assert!(!text.is_empty());
                    came('C');
                    *self.content.get_or_insert_default() += &text;
                }
                AnswerPart::Reasoning(text) => {
                    assert!(!text.is_empty());
                    came('R');
                    *self.reasoning.get_or_insert_default() += &text;
                }
                AnswerPart::ToolCallBegin { index, id, name } => {
                    assert_eq!(index, self.calls.len());
                    came(char::from_digit(index as u32, 36).unwrap());
                    self.ids.push(id);
                    self.calls.push((name, String::new()));
                }
                AnswerPart::ToolCallArguments { index, delta } => self.calls[index].1 += &delta,
            }
        }
    }
}

fn tools() -> DeclaredTools {
    static TOOLS: OnceLock<DeclaredTools> = OnceLock::new();
    TOOLS.get_or_init(declare).clone()
}

fn declare() -> DeclaredTools {
    let parameters = json!({
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "count": {"type": "integer"},
            "share": {"type": "number"},
            "on": {"type": "boolean"},
            "list": {"type": "array", "items": {"type": "string"}},
            "map": {"type": "object"},
            "unit": {"enum": ["C", "F"]},
            "maybe": {"type": ["string", "null"]},
            "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "by_name": {"$ref": "#/$defs/Count"},
            "escaped": {"$ref": "#/$defs/a%20b~1c"},
            "circle": {"$ref": "#/$defs/Circle"},
            "any": {},
        },
        "$defs": {"Count": {"type": "integer"}, "a b/c": {"type": "string"}, "Circle": {"anyOf": [{"$ref": "#/$defs/Circle"}, {"$ref": "#/$defs/Circle"}]}},
    });
    // Parameters that do not stand at the root.
    let behind = json!({
        "$ref": "#/definitions/Args",
        "definitions": {
            "Args": {"type": "object", "properties": {"text": {"type": "string"}, "code": {"allOf": [{"$ref": "#/definitions/Code"}]}, "either": {"type": ["string", "integer"]}},
                "allOf": [{"properties": {"more": {"$ref": "#/definitions/Code"}, "either": {"type": ["integer", "null"]}}}],
                "anyOf": [{"properties": {"id": {"type": "string"}}}, {"properties": {"id": {"type": "null"}}}]},
            "Code": {"anyOf": [{"pattern": "^[0-9]+$"}, {"enum": ["null", null]}]},
        },
    });
    DeclaredTools::parse(&json!([
        {"type": "function", "function": {"name": "f", "parameters": parameters}},
        {"type": "function", "function": {"name": "get-weather", "parameters": {"type": "object"}}},
        {"name": "noop"},
        {"name": "behind", "parameters": behind},
        {"name": "map", "parameters": {"additionalProperties": {"type": "string"}, "patternProperties": {"^n": {"type": "integer"}}}},
        {"name": "texts", "parameters": {"type": "object", "additionalProperties": {"type": "string"}}},
    ]))
    .unwrap()
}

fn format(tools: ToolFormat) -> AnswerFormat {
    AnswerFormat { tools, thinking: true }
}

fn parser(format: ToolFormat, thinking: Thinking) -> AnswerParser {
    AnswerParser::new(self::format(format), thinking, tools(), 7)
}

fn parse<'a>(mut parser: AnswerParser, pieces: impl IntoIterator<Item = &'a str>) -> Answer {
    let mut answer = Answer::default();
    pieces.into_iter().for_each(|piece| answer.add(parser.push(piece)));
    answer.add(parser.finish());
    answer
}

/// Cuts a text at these places, moved back to the next character.
fn cut<'a>(text: &'a str, at: &[usize]) -> Vec<&'a str> {
    let mut at: Vec<usize> = at.iter().map(|&at| text.floor_char_boundary(at)).collect();
    at.sort_unstable();
    let ends = at.iter().copied().chain([text.len()]);
    let starts = [0].into_iter().chain(at.iter().copied());
    starts.zip(ends).map(|(start, end)| &text[start..end]).collect()
}

struct Sample {
    format: ToolFormat,
    thinking: Thinking,
    text: &'static str,
    reasoning: Option<&'static str>,
    content: Option<&'static str>,
    calls: &'static [(&'static str, &'static str)],
    order: &'static str,
}

use Thinking::{Closed, Open, Possible};
use ToolFormat::{Hermes, Llama3Json, Qwen3Coder};

#[rustfmt::skip]
fn samples() -> Vec<Sample> {
    let sample = |format, thinking, text, reasoning, content, calls, order| Sample { format, thinking, text, reasoning, content, calls, order };
    vec![
        // Thoughts.
        sample(Hermes, Open, "a < b\n</think>\n\nYes.\n", Some("a < b"), Some("Yes.\n"), &[], "RC"),
        sample(Hermes, Open, "never ends \n", Some("never ends \n"), None, &[], "R"),
        sample(Hermes, Open, "\n\n</think>\n\nAt once.", None, Some("At once."), &[], "C"),
        sample(Hermes, Open, "one </think\n</thin></think>two", Some("one </think\n</thin>"), Some("two"), &[], "RC"),
        sample(Hermes, Open, "<tool_call>{\"name\": \"noop\"}</tool_call></think>x", Some("<tool_call>{\"name\": \"noop\"}</tool_call>"), Some("x"), &[], "RC"),
        sample(Hermes, Possible, "\n<think>\nhm  hm\n</think>\n\nWell </think>", Some("hm  hm"), Some("Well </think>"), &[], "RC"),
        sample(Hermes, Possible, "  <thin ice> ", None, Some("  <thin ice> "), &[], "C"),
        sample(Hermes, Possible, "<thi", None, Some("<thi"), &[], "C"),
        sample(Hermes, Possible, " \n", None, Some(" \n"), &[], "C"),
        sample(Hermes, Possible, "", None, None, &[], ""),
        sample(Hermes, Closed, "\n<think>\nstill\n</think>\nText", None, Some("<think>\nstill\n</think>\nText"), &[], "C"),
        // Objects between tags.
        sample(Hermes, Possible, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"map\": {\"a\": {\"b\": [1, {}]}}}}\n</tool_call>", None, None,
            &[("f", r#"{"map": {"a": {"b": [1, {}]}}}"#)], "0"),
        sample(Hermes, Closed, "\n\nI look.\n\n<tool_call>{\"name\":\"f\",\"arguments\":{\"text\":\"} </tool_call> { \\\"\\\\\"}}</tool_call>\n", None, Some("I look."),
            &[("f", r#"{"text":"} </tool_call> { \"\\"}"#)], "C0"),
        sample(Hermes, Open, "so\n</think>\n\n<tool_call>\n{\"arguments\": {\"text\": \"Zürich 🏔️ \\u00e9\"}, \"name\": \"f\"}\n</tool_call>\n<tool_call>\n{\"name\": \"noop\", \"arguments\": {}}\n</tool_call>\n", Some("so"), None,
            &[("f", r#"{"text": "Zürich 🏔️ \u00e9"}"#), ("noop", "{}")], "R01"),
        sample(Hermes, Possible, "one\n<tool_call>{\"name\": \"noop\"}</tool_call>\n two \n<tool_call>{\"name\": \"noop\", \"arguments\": null}</tool_call>\nthree\n", None, Some("one\n\n two \n\nthree\n"),
            &[("noop", "{}"), ("noop", "{}")], "C0C1C"),
        sample(Hermes, Possible, "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"count\\\": 12345678901234567890123}\"}</tool_call>", None, None,
            &[("f", r#"{"count": 12345678901234567890123}"#)], "0"),
        sample(Hermes, Possible, "<tool_call>[{\"name\": \"noop\", \"arguments\": {}}, {\"name\": \"f\", \"arguments\": {\"list\": [\"}\"]}}]</tool_call>", None, None,
            &[("noop", "{}"), ("f", r#"{"list": ["}"]}"#)], "01"),
        // The model stopped before the last tag, or inside of it.
        sample(Hermes, Possible, "<tool_call>\n{\"name\": \"noop\", \"arguments\": {}}\n", None, None, &[("noop", "{}")], "0"),
        sample(Hermes, Possible, "<tool_call>\n{\"name\": \"noop\", \"arguments\": {}}\n</tool_c", None, None, &[("noop", "{}")], "0"),
        // None of these is a call.
        sample(Hermes, Possible, "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {\"a\": {}}}\n</tool_call>\n", None, Some("<tool_call>\n{\"name\": \"unknown\", \"arguments\": {\"a\": {}}}\n</tool_call>\n"), &[], "C"),
        sample(Hermes, Possible, "x <tool_call>\n{\"name\": \"f\", \"arguments\": {\"text\": \"cut o", None, Some("x <tool_call>\n{\"name\": \"f\", \"arguments\": {\"text\": \"cut o"), &[], "C"),
        sample(Hermes, Possible, "<tool_call>{'name': 'f'}</tool_call>", None, Some("<tool_call>{'name': 'f'}</tool_call>"), &[], "C"),
        sample(Hermes, Possible, "<tool_call>{\"name\": \"f\", \"arguments\": {\"text\": \"\n\"}}</tool_call>", None, Some("<tool_call>{\"name\": \"f\", \"arguments\": {\"text\": \"\n\"}}</tool_call>"), &[], "C"),
        sample(Hermes, Possible, "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>", None, Some("<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>"), &[], "C"),
        sample(Hermes, Possible, "<tool_call>{\"name\": \"f\", \"arguments\": {\"text\": \"\\ud800\"}}</tool_call>", None, Some("<tool_call>{\"name\": \"f\", \"arguments\": {\"text\": \"\\ud800\"}}</tool_call>"), &[], "C"),
        sample(Hermes, Possible, "<tool_call>{\"name\": \"f\", \"arguments\": {}} and</tool_call>", None, Some("<tool_call>{\"name\": \"f\", \"arguments\": {}} and</tool_call>"), &[], "C"),
        sample(Hermes, Possible, "The tag <tool_call> opens.\n<tool_call>{\"name\": \"noop\"}</tool_call> <tool_cal", None, Some("The tag <tool_call> opens.\n <tool_cal"), &[("noop", "{}")], "C0C"),
        sample(Hermes, Possible, "<tool_call><tool_call>{\"name\": \"noop\"}</tool_call>", None, Some("<tool_call>"), &[("noop", "{}")], "C0"),
        sample(Hermes, Possible, "{\"name\": \"noop\", \"arguments\": {}}", None, Some("{\"name\": \"noop\", \"arguments\": {}}"), &[], "C"),
        // Tags.
        sample(Qwen3Coder, Open, "I need it.\n</think>\n\n<tool_call>\n<function=f>\n<parameter=text>\n17\n</parameter>\n<parameter=count>\n17\n</parameter>\n<parameter=share>\n1.50\n</parameter>\n<parameter=on>\nTrue\n</parameter>\n</function>\n</tool_call>", Some("I need it."), None,
            &[("f", r#"{"text": "17", "count": 17, "share": 1.50, "on": true}"#)], "R0"),
        sample(Qwen3Coder, Closed, "<tool_call>\n<function=f>\n<parameter=text>\n\n fn x() {\n  \"</parameter> </tool_call>\" }\n\n</parameter>\n<parameter=list>\n[\"a\", \"}\"]\n</parameter>\n<parameter=map>\n{\"é\": {}}\n</parameter>\n</function>\n</tool_call>\n", None, None,
            &[("f", r#"{"text": "\n fn x() {\n  \"</parameter> </tool_call>\" }\n", "list": ["a", "}"], "map": {"é": {}}}"#)], "0"),
        sample(Qwen3Coder, Closed, "<tool_call><function=f><parameter=unit>F</parameter><parameter=maybe>null</parameter><parameter=either>None</parameter><parameter=by_name>3</parameter><parameter=escaped>4</parameter><parameter=circle>3</parameter><parameter=any>x y</parameter><parameter=other>[1]</parameter></function></tool_call>", None, None,
            &[("f", r#"{"unit": "F", "maybe": null, "either": null, "by_name": 3, "escaped": "4", "circle": 3, "any": "x y", "other": [1]}"#)], "0"),
        sample(Qwen3Coder, Closed, "<tool_call><function=behind><parameter=text>5</parameter><parameter=code>6</parameter><parameter=either>7</parameter><parameter=more>null</parameter><parameter=id>8</parameter><parameter=other>9</parameter></function></tool_call>", None, None,
            &[("behind", r#"{"text": "5", "code": "6", "either": 7, "more": null, "id": "8", "other": 9}"#)], "0"),
        sample(Qwen3Coder, Closed, "<tool_call><function=map><parameter=n>5</parameter></function></tool_call><tool_call><function=texts><parameter=n>5</parameter></function></tool_call>", None, None,
            &[("map", r#"{"n": 5}"#), ("texts", r#"{"n": "5"}"#)], "01"),
        sample(Qwen3Coder, Closed, "<tool_call><function=f><parameter=count>many</parameter><parameter=map>{1}</parameter><parameter=text>\"q\" 🏔️\\</parameter></function></tool_call>", None, None,
            &[("f", r#"{"count": "many", "map": "{1}", "text": "\"q\" 🏔️\\"}"#)], "0"),
        sample(Qwen3Coder, Closed, "First.\n\n<tool_call>\n<function=noop>\n</function>\n</tool_call>\n<tool_call>\n<function=get-weather>\n<parameter=city>\nZürich\n</parameter>\n</function>\n</tool_call>\n\nThen.", None, Some("First.\n\n\n\n\nThen."),
            &[("noop", "{}"), ("get-weather", r#"{"city": "Zürich"}"#)], "C01C"),
        sample(Qwen3Coder, Closed, "<tool_call>\n<function=noop>\n</function>\n", None, None, &[("noop", "{}")], "0"),
        sample(Qwen3Coder, Closed, "<tool_call>\n<function=unknown>\n</function>\n</tool_call>", None, Some("<tool_call>\n<function=unknown>\n</function>\n</tool_call>"), &[], "C"),
        sample(Qwen3Coder, Closed, "<tool_call>\n<function=f>\n<parameter=text>\nno end", None, Some("<tool_call>\n<function=f>\n<parameter=text>\nno end"), &[], "C"),
        sample(Qwen3Coder, Closed, "<tool_call><function=f><parameter=text>a</parameter><parameter=text>b</parameter></function></tool_call>", None, Some("<tool_call><function=f><parameter=text>a</parameter><parameter=text>b</parameter></function></tool_call>"), &[], "C"),
        sample(Qwen3Coder, Closed, "<tool_call>{\"name\": \"noop\"}</tool_call>!", None, Some("<tool_call>{\"name\": \"noop\"}</tool_call>!"), &[], "C"),
        sample(Qwen3Coder, Closed, "<tool_call><function=f\n><tool_call><function=noop></function></tool_call>", None, Some("<tool_call><function=f\n>"), &[("noop", "{}")], "C0"),
        // Bare objects.
        sample(Llama3Json, Possible, "{\"name\": \"f\", \"parameters\": {\"text\": \"{\\\"}\", \"map\": {\"a\": {}}}}", None, None, &[("f", r#"{"text": "{\"}", "map": {"a": {}}}"#)], "0"),
        sample(Llama3Json, Possible, "\n {\"type\": \"function\", \"name\": \"noop\", \"parameters\": {}}\n", None, None, &[("noop", "{}")], "0"),
        sample(Llama3Json, Possible, "<|python_tag|>{\"name\": \"get-weather\", \"arguments\": {\"city\": \"東京\"}}", None, None, &[("get-weather", r#"{"city": "東京"}"#)], "0"),
        sample(Llama3Json, Possible, "{\"name\": \"noop\", \"parameters\": {}}; {\"name\": \"f\", \"parameters\": {\"count\": 1}}\nDone; really.", None, Some("Done; really."),
            &[("noop", "{}"), ("f", r#"{"count": 1}"#)], "01C"),
        sample(Llama3Json, Possible, "I call.\n<|python_tag|>{\"name\": \"noop\", \"parameters\": {}}", None, Some("I call."), &[("noop", "{}")], "C0"),
        sample(Llama3Json, Possible, "I call {\"name\": \"noop\", \"parameters\": {}}", None, Some("I call {\"name\": \"noop\", \"parameters\": {}}"), &[], "C"),
        sample(Llama3Json, Possible, "{\"name\": \"unknown\", \"parameters\": {}} ", None, Some("{\"name\": \"unknown\", \"parameters\": {}} "), &[], "C"),
        sample(Llama3Json, Possible, "{\"temperature\": 20, \"name\": \"noop\"}", None, Some("{\"temperature\": 20, \"name\": \"noop\"}"), &[], "C"),
        sample(Llama3Json, Possible, "<|python_tag|>search.call(query=\"x\") <|python", None, Some("<|python_tag|>search.call(query=\"x\") <|python"), &[], "C"),
        sample(Llama3Json, Possible, "{\"name\": \"noop\", \"parameters\": {}", None, Some("{\"name\": \"noop\", \"parameters\": {}"), &[], "C"),
        sample(Llama3Json, Possible, "{}", None, Some("{}"), &[], "C"),
    ]
}

#[test]
fn answers_are_taken_apart_the_same_for_every_cut() {
    for sample in samples() {
        let Sample { format, thinking, text, .. } = sample;
        let whole = parse(parser(format, thinking), [text]);
        assert_eq!(whole.reasoning.as_deref(), sample.reasoning, "{text:?}");
        assert_eq!(whole.content.as_deref(), sample.content, "{text:?}");
        let calls: Vec<(&str, &str)> = whole.calls.iter().map(|(n, a)| (n.as_str(), a.as_str())).collect();
        assert_eq!(calls, sample.calls, "{text:?}");
        assert_eq!(whole.order, sample.order, "{text:?}");
        for (_, arguments) in &whole.calls {
            assert!(serde_json::from_str::<Value>(arguments).unwrap().is_object(), "{arguments}");
        }
        for first in 0..=text.len() {
            // A piece of up to 16 bytes at every place, which is longer than any marker, and the rest in one.
            for second in (first..=text.len().min(first + 16)).chain([text.len()]) {
                let pieces = cut(text, &[first, second]);
                assert_eq!(parse(parser(format, thinking), pieces.iter().copied()), whole, "{pieces:?}");
            }
            let equal: Vec<usize> = (0..text.len()).step_by(first + 1).collect();
            assert_eq!(
                parse(parser(format, thinking), cut(text, &equal)),
                whole,
                "pieces of {} bytes: {text:?}",
                first + 1
            );
        }
    }
}

/// Texts of the pieces that answers are made of, in any order.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<function=f>",
        "<function=unknown>",
        "</function>",
        "<parameter=text>",
        "<parameter=count>",
        "</parameter>",
        "<|python_tag|>",
        "{\"name\": \"f\", \"arguments\": {\"a\": \"b\"}}",
        "{\"name\": \"noop\"}",
        "{\"name\": ",
        "\"f\"",
        ", \"parameters\": {",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\\",
        "\\\"",
        "\n",
        " ",
        ";",
        "text",
        "é",
        "🏔️",
        "<",
        "</",
        "<tool",
        "17",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_taken_apart_the_same_for_any_cuts(
        text in any_text(),
        cuts in prop::collection::vec(0..400usize, 0..12),
        format in prop::sample::select(vec![Hermes, Qwen3Coder, Llama3Json]),
        thinking in prop::sample::select(vec![Open, Closed, Possible]),
    ) {
        let whole = parse(parser(format, thinking), [text.as_str()]);
        let cuts: Vec<usize> = cuts.into_iter().map(|at| at % (text.len() + 1)).collect();
        prop_assert_eq!(&parse(parser(format, thinking), cut(&text, &cuts)), &whole);
        let single = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
        prop_assert_eq!(&parse(parser(format, thinking), single), &whole);
        for (_, arguments) in &whole.calls {
            prop_assert!(serde_json::from_str::<Value>(arguments).unwrap().is_object());
        }
        // Without tools and thoughts all of it is content, at once.
        let plain = AnswerFormat { tools: format, thinking: false };
        let mut parser = AnswerParser::new(plain, thinking, DeclaredTools::default(), 0);
        let parts = parser.push(&text);
        prop_assert_eq!(parts, if text.is_empty() { vec![] } else { vec![AnswerPart::Content(text)] });
        prop_assert_eq!(parser.finish(), vec![]);
    }
}

#[test]
fn text_is_held_back_only_while_it_may_be_a_marker() {
    let mut parser = parser(Hermes, Possible);
    let content = |text: &str| vec![AnswerPart::Content(text.to_owned())];
    for (piece, told) in [
        ("<", ""),
        ("th", ""),
        ("ere", "<there"),
        (" is", " is"),
        (" <tool", ""),
        ("box", " <toolbox"),
        ("<tool_call", ""),
        (">", ""),
        ("x", "<tool_call>x"),
        ("</tool_call>", "</tool_call>"),
        ("\n", ""),
        ("\n.", "\n\n."),
    ] {
        let parts = parser.push(piece);
        assert_eq!(parts, if told.is_empty() { vec![] } else { content(told) }, "{piece:?}");
    }
    assert!(!parser.holds_call());
    assert_eq!(parser.push("<tool_call>\n{\"name\""), []);
    assert!(parser.holds_call());
    // Content is told as soon as the name is known to be none.
    assert_eq!(parser.push(": \"unknown\""), content("<tool_call>\n{\"name\": \"unknown\""));
}

#[test]
fn ids_of_calls_depend_on_the_seed_and_the_number_alone() {
    let text = "<tool_call>{\"name\": \"noop\"}</tool_call>".repeat(2);
    let ids = |seed| {
        let parser = AnswerParser::new(format(Hermes), Possible, tools(), seed);
        parse(parser, [text.as_str()]).ids
    };
    let [first, second] = ids(1).try_into().unwrap();
    assert_ne!(first, second);
    assert_eq!(ids(1), [first.clone(), second.clone()]);
    let other = ids(2);
    assert!(!other.contains(&first) && !other.contains(&second));
    for id in [first, second] {
        let letters = id.strip_prefix("call_").unwrap();
        assert!(letters.len() == 24 && letters.chars().all(|c| c.is_ascii_alphanumeric()), "{id}");
    }
}

#[test]
fn a_model_that_does_not_know_its_format_takes_no_time() {
    let begun = std::time::Instant::now();
    for (format, text) in [
        (Hermes, "<tool_call>{\"a\":"),
        (Hermes, "<tool_call>{"),
        (Hermes, "<tool_call>"),
        (Qwen3Coder, "<tool_call><function=f><parameter=a>"),
        (Qwen3Coder, "<tool_call><function=f><parameter=a></parameter>"),
        (Llama3Json, "<|python_tag|>{"),
    ] {
        let whole = text.repeat(20_000);
        let answer = parse(parser(format, Closed), (0..20_000).map(|_| text));
        assert_eq!(answer.content.as_deref(), Some(whole.as_str()));
        assert_eq!(answer.calls, []);
    }
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}

#[test]
fn declared_tools_are_checked() {
    assert!(DeclaredTools::parse(&Value::Null).unwrap().is_empty());
    assert_eq!(tools().get("noop").unwrap().parameters, Value::Null);
    for (tools, place) in [
        (json!({}), "tools: "),
        (json!([{}]), "tools[0].name: "),
        (json!([{"function": {"name": 1}}]), "tools[0].function.name: "),
        (json!([{"name": "a"}, {"name": "a"}]), "tools[1].name: \"a\" is declared twice"),
        (json!([{"name": "a", "parameters": []}]), "tools[0].parameters: "),
    ] {
        let error = DeclaredTools::parse(&tools).unwrap_err().to_string();
        assert!(error.starts_with(place), "{error}");
    }
}
