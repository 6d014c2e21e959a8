//! Tokenizers, special tokens and chat templates.

use serde_json::{Value, json};

use super::table::*;

const TOKENIZER: Must = Fail(&["tokenizer"]);
const TEMPLATE: &str = "chat_template.jinja";

fn tokenizer_file(name: &str, text: impl Into<Vec<u8>>) -> Case {
    let text = text.into();
    case(name, TOKENIZER, move |place| place.write("tokenizer.json", &text))
}

fn edit(name: &str, must: Must, change: fn(&mut Value)) -> Case {
    case(name, must, move |place| place.edit("tokenizer.json", change))
}

#[test]
fn tokenizers() {
    let mut cases = vec![
        tokenizer_file("empty", ""),
        tokenizer_file("null", "null"),
        tokenizer_file("an empty object", "{}"),
        tokenizer_file("bytes", vec![0xff; 64]),
        tokenizer_file("brackets 100,000 deep", "[".repeat(100_000)),
        tokenizer_file("an unknown model", r#"{"version":"1.0","model":{"type":"Nope"}}"#),
        tokenizer_file("a model with an escape sequence", r#"{"version":"1.0","model":{"type":"\u001b[31m"}}"#),
        case("200 MB", TOKENIZER, |place| place.write_sparse("tokenizer.json", 200 << 20)),
        case("none", TOKENIZER, |place| place.remove("tokenizer.json")),
        edit("a merge of unknown tokens", TOKENIZER, |t| t["model"]["merges"][0] = json!(["zzz", "yyy"])),
        edit("a merge longer than any token", TOKENIZER, |t| t["model"]["merges"][0] = json!("a ".repeat(5000))),
        edit("a merge of three", TOKENIZER, |t| t["model"]["merges"][0] = json!(["a", "b", "c"])),
        edit("a merge of nothing", TOKENIZER, |t| t["model"]["merges"][0] = json!([])),
        edit("a prefix that cuts a character", TOKENIZER, |t| t["model"]["continuing_subword_prefix"] = json!("éé")),
        edit("a prefix longer than any token", TOKENIZER, |t| {
            t["model"]["continuing_subword_prefix"] = json!("é".repeat(30));
            t["model"]["merges"] = json!([["a", "b"]]);
            t["model"]["vocab"]["ab"] = json!(501);
        }),
        edit("an id of -1", TOKENIZER, |t| t["model"]["vocab"]["a"] = json!(-1)),
        edit("an id of 2^40", TOKENIZER, |t| t["model"]["vocab"]["a"] = json!(1u64 << 40)),
        edit("an id of 2^32 - 1", WorkOrFail(&["token"]), |t| t["model"]["vocab"]["a"] = json!(u32::MAX)),
        edit("two tokens of one id", WorkOrFail(&["token"]), |t| t["model"]["vocab"]["a"] = json!(7)),
        edit("no tokens", WorkOrFail(&["token"]), |t| t["model"]["vocab"] = json!({})),
        edit("an added token beyond the vocabulary", WorkOrFail(&["4000000000"]), |t| {
            t["added_tokens"][0]["id"] = json!(4_000_000_000u32);
        }),
        edit("an added token with the id of another", WorkOrFail(&["id 3"]), |t| t["added_tokens"][0]["id"] = json!(3)),
        edit("an added token of 1 MB", WorkOrFail(&["token"]), |t| {
            t["added_tokens"][0]["content"] = json!("x".repeat(1 << 20))
        }),
        edit("an added token of nothing", WorkOrFail(&["token"]), |t| t["added_tokens"][0]["content"] = json!("")),
        edit("100,000 added tokens", WorkOrFail(&["token"]), |t| {
            let one = t["added_tokens"][0].clone();
            let list = t["added_tokens"].as_array_mut().expect("a list");
            let next = 512;
            for i in 0..100_000 {
                let mut token = one.clone();
                (token["id"], token["content"]) = (json!(next + i), json!(format!("<t{i}>")));
                list.push(token);
            }
        }),
        edit("a regular expression that does not compile", TOKENIZER, |t| {
            t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(((");
        }),
        edit("a regular expression that tries everything", WorkOrFail(&["token"]), |t| {
            t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(([a-zA-Z ]+)+)+$x");
        }),
        edit("an unknown decoder", TOKENIZER, |t| t["decoder"] = json!({"type": "Nope"})),
        edit("no decoder", Work, |t| t["decoder"] = Value::Null),
        edit("a template of another sequence", WorkOrFail(&["token"]), |t| {
            t["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<nope>", "type_id": 0}}],
                "pair": [], "special_tokens": {}});
        }),
        edit("a truncation to nothing", Work, |t| {
            t["truncation"] = json!({"max_length": 0, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
        }),
        edit("padding to 10^12", Work, |t| {
            t["padding"] = json!({"strategy": {"Fixed": 1_000_000_000_000u64}, "direction": "Right", "pad_id": 0,
                "pad_type_id": 0, "pad_token": "x", "pad_to_multiple_of": null});
        }),
        edit("sequences in sequences", WorkOrFail(&["token"]), |t| {
            let mut nested = json!({"type": "NFC"});
            for _ in 0..100 {
                nested = json!({"type": "Sequence", "normalizers": [nested]});
            }
            t["normalizer"] = nested;
        }),
    ];
    cases.extend((1..16).map(|sixteenth| {
        case(format!("cut at {sixteenth}/16"), TOKENIZER, move |place| {
            let whole = place.read("tokenizer.json");
            place.write("tokenizer.json", &whole[..whole.len() * sixteenth / 16]);
        })
    }));
    run("crest_k4", &[GENERATE], cases);
}

#[test]
fn tokenizer_configs() {
    let put = |name: &str, text: &str| {
        let text = text.to_owned();
        case(name, WorkOrFail(&["tokenizer_config.json"]), move |place| place.write("tokenizer_config.json", &text))
    };
    let cases = vec![
        put("a list", "[]"),
        put("cut", r#"{"eos_token": "<|im_end|>""#),
        put("empty", ""),
        put("deep", &"{\"a\":".repeat(10_000)),
        put("an end token that is a number", r#"{"eos_token": 3}"#),
        put("an end token of nothing", r#"{"eos_token": ""}"#),
        put("an end token that is unknown", r#"{"eos_token": "<nope>"}"#),
        put("an end token with an escape sequence", r#"{"eos_token": "\u001b]0;x\u0007"}"#),
        put("added tokens that are a list", r#"{"added_tokens_decoder": [1]}"#),
        put(
            "an added token of id 10^12",
            r#"{"added_tokens_decoder": {"1000000000000": {"content": "<x>", "special": true}}}"#,
        ),
        put("an added token of id -1", r#"{"added_tokens_decoder": {"-1": {"content": "<x>", "special": true}}}"#),
        put(
            "an added token of id 2^32 - 1",
            r#"{"added_tokens_decoder": {"4294967295": {"content": "<x>", "special": true}}}"#,
        ),
        put("an added token without text", r#"{"added_tokens_decoder": {"510": {}}}"#),
        put("a template that is a number", r#"{"chat_template": 5}"#),
        put("a template without a text", r#"{"chat_template": [{"name": "x"}]}"#),
        put("a limit of 10^30", r#"{"model_max_length": 1000000000000000019884624838656}"#),
        case("100 MB", WorkOrFail(&["tokenizer_config.json"]), |place| {
            place.write_sparse("tokenizer_config.json", 100 << 20)
        }),
    ];
    run("leanllama", &[GENERATE], cases);
}

/// Templates that must fail: the error names the template and, where there is one, the line.
#[test]
fn templates() {
    let put = |template: &str, parts: &'static [&'static str]| {
        let text = template.to_owned();
        case(format!("{template:.70}"), Fail(parts), move |place| place.write(TEMPLATE, &text))
    };
    const NAMED: &[&str] = &["chat template"];
    let double = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}";
    let cases = vec![
        put("{% for a in range(50000) %}{% for b in range(50000) %}{% endfor %}{% endfor %}", NAMED),
        put("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", NAMED),
        put("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", NAMED),
        put("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(90) }}", NAMED),
        put("{% set s = 'a' * 2000000 %}{% for i in range(50000) %}{% if 'aab' in s %}{% endif %}{% endfor %}", NAMED),
        put("{{ 'x' * 10**9 }}", NAMED),
        put("{{ 10**9 * 'x' }}", NAMED),
        put("{{ [0] * 10**9 }}", NAMED),
        put("{{ 10 ** 10 ** 10 }}", NAMED),
        put("{{ range(10**9)|list }}", NAMED),
        put("{{ ('x' * 1000000).replace('', 'x' * 1000000) }}", NAMED),
        put("{{ '%0999999999d'|format(1) }}", NAMED),
        put("{{ '{:>999999999}'.format('x') }}", NAMED),
        put("{{ 'a\nb'|indent(999999999) }}", NAMED),
        put(&format!("{double}{{% set ns.x = ns.x ~ ns.x %}}{{% endfor %}}"), NAMED),
        put(&format!("{double}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{{{{ ns.x }}}}"), NAMED),
        put(&format!("{double}{{% set ns.x = {{'a': ns.x, 'b': ns.x}} %}}{{% endfor %}}{{{{ ns.x|tojson }}}}"), NAMED),
        put("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}", NAMED),
        put(&format!("{{{{ {} }}}}", "[".repeat(100_000)), NAMED),
        put(&format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)), NAMED),
        put(&format!("{{{{ 1{} }}}}", "~1".repeat(100_000)), NAMED),
        put(&"{% if a %}".repeat(10_000), NAMED),
        put("\n\n{% include '/etc/passwd' %}", &["chat template", "line 3", "include"]),
        put("\n{% import '../outside/config.json' as x %}", &["chat template", "line 2", "import"]),
        put("{% from '../outside/config.json' import x %}", &["chat template", "line 1"]),
        put("{% extends 'config.json' %}", &["chat template", "line 1"]),
        put("a\n{% if x %}\n{{ 1 + }}\n{% endif %}", &["chat template", "line 3"]),
        put("\n{% for x in y %}\n", &["chat template", "line 2"]),
        put("{{ 'open", &["chat template", "line 1"]),
        put("\n{{ x|nofilter }}", &["chat template", "line 2", "nofilter"]),
        put("\n\n\n{{ raise_exception('only two roles') }}", &["chat template", "line 4", "only two roles"]),
        put("{{ raise_exception('\u{1b}]0;title\u{7}') }}", NAMED),
        put("{{ raise_exception('x' * 100000) }}", NAMED),
        put("{{ missing.field.deep }}", &["chat template", "line 1"]),
        put("{{ messages[0].__class__.__mro__[1].__subclasses__() }}", NAMED),
        put("{{ ''.__class__.__base__.__subclasses__() }}", NAMED),
        put("{{ lipsum.__globals__['os'].popen('id').read() }}", NAMED),
        put("{{ self._TemplateReference__context.environ() }}", NAMED),
        case("not UTF-8", Fail(&["chat_template.jinja"]), |place| place.write(TEMPLATE, [b'a', 0xff])),
        case("100 MB", Fail(&["chat_template.jinja"]), |place| place.write_sparse(TEMPLATE, 100 << 20)),
    ];
    run("crest_k4", &[CHAT], cases);
}

/// Attributes of Python lead nowhere, and what a stranger writes in a message is no code.
#[test]
fn templates_that_run() {
    let put = |template: &'static str| case(template, Work, move |place| place.write(TEMPLATE, template));
    let cases = vec![
        put("{{ messages[0].content }}"),
        put("{{ ''.__class__ is defined }}{{ messages.__init__ is defined }}{{ cycler is defined }}"),
        put("{{ messages[0].content }}{{ namespace.__globals__ is defined }}"),
    ];
    run(
        "crest_k4",
        &[CHAT, &["generate", "--chat", "-p", "{{ 7 * 7 }}{% include 'x' %}", "-n", "2", "--threads", "2"]],
        cases,
    );
}

/// The text of a special token in a message becomes that token, as in transformers; the number of tokens tells.
#[test]
fn special_tokens_in_messages() {
    let place = super::model::Place::with("crest_k4");
    let tokens = |prompt: &str| {
        let model = place.model();
        let args =
            ["generate", "-m", model.to_str().expect("UTF-8"), "-p", prompt, "-n", "0", "--json", "--threads", "2"];
        let ended = check(&place, &super::limits::Run::new(args), Work).unwrap_or_else(|e| panic!("{prompt}: {e}"));
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        report["prompt_tokens"].as_u64().expect("a count")
    };
    assert_eq!(tokens("a<|im_end|>a"), 3);
    assert_eq!(tokens("<|im_end|>".repeat(1000).as_str()), 1000);
    assert!(tokens("<|im_end |>") > 5);
}
