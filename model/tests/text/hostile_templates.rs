//! Broken and hostile chat templates: a named error with the line, no panic, no abort, bounded time and memory.

use std::time::Duration;

use emberlm_model::Error;
use emberlm_model::text::{ChatOptions, ChatTemplate, Message, TextFiles, TextProcessor};
use serde_json::json;

use crate::support::{computed, files, fixture, in_child};

/// Renders a template that must fail within the limits; the message.
fn refused(template: &str) -> String {
    let messages = [Message::system("s"), Message::user("What is a river?")];
    println!("{}", template.chars().take(60).collect::<String>());
    let start = computed();
    let result = ChatTemplate::new("default", template)
        .and_then(|t| t.render(&messages, &ChatOptions::prompt(), [("bos_token", "<s>")]));
    let shown: String = template.chars().take(200).collect();
    let took = computed() - start;
    assert!(took < Duration::from_secs(2), "{shown}: {took:?}");
    match result {
        Err(Error::Template(message)) => {
            println!("{took:?} {message}");
            message
        }
        other => panic!("{shown}: {:?}", other.map(|text| text.len())),
    }
}

#[test]
fn templates_that_never_end() {
    in_child(module_path!(), "templates_that_never_end", || {
        for template in [
            "{% for a in range(50000) %}{% for b in range(50000) %}{% endfor %}{% endfor %}",
            "{% for a in range(50000) %}{% for b in range(50000) %}x{% endfor %}{% endfor %}",
            "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
            "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(90) }}",
            "{% macro m() %}{{ caller() }}{% call m() %}x{% endcall %}{% endmacro %}{% call m() %}x{% endcall %}",
            // Slow operations on long texts, each one instruction.
            "{% set s = 'a' * 2000000 %}{% for i in range(50000) %}{% if 'aab' in s %}{% endif %}{% endfor %}",
            "{% set s = 'a' * 2000000 %}{% for i in range(50000) %}{% if s == s ~ '' %}{% endif %}{% endfor %}",
            "{% set s = 'a' * 2000000 %}{% for i in range(50000) %}{% set t = s.strip('b') %}{% endfor %}",
            "{% set s = 'a' * 900000 %}{% set t = 'b' * 900000 ~ 'a' %}{% for i in range(50000) %}{% set u = s.strip(t) %}{% endfor %}",
            "{% set s = 'a' * 2000000 %}{% for i in range(50000) %}{% set t = s|length %}{% endfor %}",
            "{% set s = 'a' * 2000000 %}{% for i in range(50000) %}{% set t = s[::-1] %}{% endfor %}",
            "{% set s = 'a' * 2000000 %}{% for i in range(50000) %}{% set t = s[1999999] %}{% endfor %}",
            "{% set s = 'a' * 2000000 %}{% for i in range(50000) %}{% set t = s is upper %}{% endfor %}",
            "{% set s = 'a' * 2000000 %}{% for i in range(50000) %}{% set t = s.find('b') %}{% endfor %}",
            "{% set s = 'a' * 2000000 %}{% for i in range(50000) %}{% for c in s %}{% break %}{% endfor %}{% endfor %}",
            "{% set s = 'a' * 2000000 %}{% for i in range(50000) %}{% set t = s[1:][1:][1:] %}{% endfor %}",
            "{% set l = range(50000)|list %}{% for i in range(50000) %}{% set m = l[::-1] %}{% endfor %}",
            "{% set l = range(50000)|list %}{% for i in range(50000) %}{% if 'x' in l %}{% endif %}{% endfor %}",
            "{% set l = range(50000)|list %}{% for i in range(50000) %}{% set m = l|sort(reverse=true) %}{% endfor %}",
            "{% set l = range(50000)|list %}{% for i in range(50000) %}{% if l == l + [] %}{% endif %}{% endfor %}",
        ] {
            let message = refused(template);
            let known = ["steps", "longer", "recursion", "memory", "grows"];
            assert!(known.iter().any(|k| message.contains(k)), "{template}: {message}");
        }
    });
}

/// As deep as statements, expressions and macros can go inside each other together.
#[test]
fn recursion_through_everything() {
    in_child(module_path!(), "recursion_through_everything", || {
        let around = |open: &str, close: &str, n: usize| {
            format!("{{% macro m() %}}{}{{{{ m() }}}}{}{{% endmacro %}}{{{{ m() }}}}", open.repeat(n), close.repeat(n))
        };
        for template in [
            around("{% if true %}", "{% endif %}", 90),
            around("{% for x in [1] %}", "{% endfor %}", 90),
            around("{% filter upper %}", "{% endfilter %}", 90),
            around("{% set x %}", "{% endset %}{{ x }}", 90),
            format!("{{% macro m() %}}{{{{ {}m(){} }}}}{{% endmacro %}}{{{{ m() }}}}", "[".repeat(90), "]|first".repeat(90)),
            format!("{{% macro m() %}}{{{{ 0{} }}}}{{% endmacro %}}{{{{ m() }}}}", " or m()".repeat(900)),
            format!("{{% macro m() %}}{{{{ {}m() }}}}{{% endmacro %}}{{{{ m() }}}}", "not ".repeat(900)),
            "{% for x in [1] recursive %}{% for y in [1] %}{{ [loop]|first and loop([1]) }}{% endfor %}{{ loop([1]) }}{% endfor %}".to_owned(),
        ] {
            let message = refused(&template);
            assert!(["recursion", "recursive"].iter().any(|part| message.contains(part)), "{message}");
        }
    });
}

#[test]
fn templates_that_fill_memory() {
    in_child(module_path!(), "templates_that_fill_memory", || {
        let double = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}";
        for template in [
            "{{ 'x' * 10**9 }}".to_owned(),
            "{{ 10**9 * 'x' }}".to_owned(),
            "{{ ('x' * 100000) * 100000 }}".to_owned(),
            "{{ 'x' * 90000000 }}{{ 'y' * 90000000 }}{{ 'z' * 90000000 }}{{ 'w' * 90000000 }}".to_owned(),
            "{{ [0] * 10**9 }}".to_owned(),
            "{{ [] * 10**18 ~ [[]] * 10**12 }}".to_owned(),
            "{{ ('x' * 1000000)|list|join('x' * 1000000) }}".to_owned(),
            "{{ ('x' * 1000000).replace('', 'x' * 1000000) }}".to_owned(),
            "{{ ('x' * 1000000)|replace('x', 'x' * 1000000) }}".to_owned(),
            "{{ ('x' * 1000000).join(range(50000)) }}".to_owned(),
            "{{ '%0999999999d'|format(1) }}".to_owned(),
            "{{ '%*d'|format(999999999, 1) }}".to_owned(),
            "{{ '{:>999999999}'.format('x') }}".to_owned(),
            "{{ '{:>{w}}'.format('x', w=999999999) }}".to_owned(),
            "{{ 'a\nb'|indent(999999999) }}".to_owned(),
            "{{ ('\n' * 900000)|indent(9999, blank=true) }}".to_owned(),
            "{{ ('\n' * 900000)|indent('x' * 900000) }}".to_owned(),
            format!("{double}{{% set ns.x = ns.x ~ ns.x %}}{{% endfor %}}"),
            format!("{double}{{% set ns.x = ns.x + ns.x %}}{{% endfor %}}"),
            format!("{double}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{{{{ ns.x }}}}"),
            format!("{double}{{% set ns.x = {{'a': ns.x, 'b': ns.x}} %}}{{% endfor %}}{{{{ ns.x|tojson }}}}"),
            format!("{double}{{% set ns.x = (ns.x, ns.x) %}}{{% endfor %}}{{{{ ns.x == ns.x }}}}"),
            format!("{double}{{% set ns.x = [ns.x[:], ns.x[:]] %}}{{% endfor %}}"),
            format!(
                "{double}{{% set ns.x = [ns.x]|map('upper') %}}{{% set ns.x = ns.x|list + ns.x|list %}}{{% endfor %}}"
            ),
            format!(
                "{double}{{% set y %}}{{{{ ns.x }}}}{{{{ ns.x }}}}{{% endset %}}{{% set ns.x = y %}}{{% endfor %}}"
            ),
            format!("{double}{{% set ns.x = namespace(a=ns.x, b=ns.x) %}}{{% endfor %}}"),
            format!("{double}{{% set ns.x = dict(a=ns.x, b=ns.x) %}}{{% endfor %}}{{{{ ns.x }}}}"),
            "{% for i in range(50000) %}{{ 'x' * 100000 }}{% endfor %}".to_owned(),
            format!("{{% for i in range(50000) %}}{}{{% endfor %}}", "raw text ".repeat(20_000)),
            format!(
                "{{% set x %}}{{% for i in range(50000) %}}{}{{% endfor %}}{{% endset %}}",
                "raw text ".repeat(20_000)
            ),
            "{% macro m(s, n) %}{% if n %}{{ m(s ~ s, n - 1) }}{% endif %}{% endmacro %}{{ m('xx', 60) }}".to_owned(),
            "{% set ns = namespace(l=[]) %}{% for i in range(60000) %}{% set ns.l = ns.l + ['x' * 1000] %}{% endfor %}"
                .to_owned(),
            "{% set ns = namespace(l=[]) %}{% for i in range(60000) %}{% set ns.l = [ns.l] %}{% endfor %}".to_owned(),
            "{{ 'x'|batch(999999999, 'y')|list }}".to_owned(),
            "{{ range(10**9)|list }}".to_owned(),
            "{{ 10 ** 10 ** 10 }}".to_owned(),
        ] {
            refused(&template);
        }
    });
}

#[test]
fn values_that_contain_themselves() {
    in_child(module_path!(), "values_that_contain_themselves", || {
        for template in [
            "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me|tojson }}",
            "{% set ns = namespace() %}{% set ns.me = {'a': (ns,)} %}{{ ns ~ '' }}",
            "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a == b }}",
            "{% set ns = namespace() %}{% set ns.me = [ns]|list|first %}{% if ns in 'x' %}{% endif %}",
        ] {
            let message = refused(template);
            assert!(message.contains("namespace"), "{message}");
        }
    });
}

#[test]
fn syntax_trees_that_are_deep() {
    in_child(module_path!(), "syntax_trees_that_are_deep", || {
        let n = 100_000;
        for template in [
            format!("{{{{ 1{} }}}}", "~1".repeat(n)),
            format!("{{{{ x{} }}}}", ".x".repeat(n)),
            format!("{{{{ x{} }}}}", "|e".repeat(n)),
            format!("{{{{ x{} }}}}", "()".repeat(n)),
            format!("{{{{ {}1 }}}}", "not ".repeat(n / 2)),
            format!("{{{{ {}1 }}}}", "-".repeat(n)),
            format!("{{{{ {} }}}}", "[".repeat(n)),
            format!("{{{{ {}1{} }}}}", "(".repeat(n), ")".repeat(n)),
            "{% if a %}".repeat(n / 10),
            format!("{{% if a %}}{}{{% endif %}}", "{% elif b %}".repeat(20_000)),
            format!("{{{{ 1{} }}}}", "~1".repeat(1_900)) + "{{ raise_exception('end') }}",
            format!("{{{{ x{} }}}}", " if x else y".repeat(900)) + "{{ raise_exception('end') }}",
            format!("{{{{ f({}) }}}}", "1,".repeat(n)),
            format!("{{{{ '{}' }}}}", "x".repeat(300_000)),
        ] {
            refused(&template);
        }
    });
}

#[test]
fn errors_of_templates_name_the_line() {
    for (template, line, part) in [
        ("a\n{% if x %}\n{{ 1 + }}\n{% endif %}", 3, "unexpected"),
        ("a\n\n{% endfor %}", 3, "endfor"),
        ("\n{% for x in y %}\n", 2, "end of input"),
        ("{{ 'open", 1, "end of string"),
        ("\n{{ x|nofilter }}", 2, "nofilter"),
        ("\n\n{{ x is notest }}", 3, "notest"),
        ("\n{{ nofunction() }}", 2, "nofunction"),
        ("\n\n\n{{ raise_exception('only two roles') }}", 4, "only two roles"),
        ("\n{{ missing.field.deep }}", 2, "undefined"),
        ("\n{{ 'a' + 1 }}", 2, "+ is not possible"),
        ("{% macro m() %}\n{{ 1 // 0 }}\n{% endmacro %}\n{{ m() }}", 2, "0"),
        ("\n{% include 'x' %}", 2, "include"),
        ("\n{% import '/etc/passwd' as x %}", 2, "import"),
        ("\n{% from 'x' import y %}", 2, "from"),
        ("\n{% extends 'x' %}", 2, "extends"),
        ("\n{% do x %}", 2, "do"),
        ("\n{% block b required %}{% endblock %}", 2, "block"),
        ("\n{{ strftime_now('%Q') }}", 2, "%Q"),
        ("\n{{ 'x' * 10**9 }}", 2, "grows"),
    ] {
        let message = refused(template);
        assert!(message.contains(&format!("line {line}")), "{template}: {message}");
        assert!(message.contains(part), "{template}: {message}");
    }
}

#[test]
fn attributes_lead_nowhere() {
    let template = "{{ ''.__class__ }}{{ messages.__init__ }}{{ namespace.__globals__ }}{{ self }}{{ debug is defined }}{{ cycler is defined }}";
    let template = ChatTemplate::new("default", template).unwrap();
    let text = template.render(&[], &ChatOptions::default(), []).unwrap();
    assert_eq!(text, "<TemplateReference None>FalseTrue");
}

#[test]
fn variables_cannot_replace_the_messages() {
    let template = ChatTemplate::new("default", "{{ messages }}").unwrap();
    let options = ChatOptions::default().with("messages", "x");
    let error = template.render(&[], &options, []).unwrap_err();
    assert!(matches!(error, Error::Option { ref option, .. } if option == "messages"));
}

#[test]
fn a_long_honest_chat_fits_the_budget() {
    let text = TextProcessor::from_dir(&fixture("crest_k4")).unwrap();
    let line = "The river bends twice before it reaches the mill. ".repeat(20);
    let messages: Vec<Message> =
        (0..2_000).map(|i| Message::new(if i % 2 == 0 { "user" } else { "assistant" }, line.clone())).collect();
    let start = computed();
    let rendered = text.render_chat(&messages, &ChatOptions::prompt()).unwrap();
    println!("{:?} for {} bytes", computed() - start, rendered.len());
    assert!(rendered.len() > 2_000 * 999);
    // Adding to one text message by message is quadratic, and still within bounds for an honest chat.
    let collecting = "{% set ns = namespace(out='') %}{% for m in messages %}{% set ns.out = ns.out ~ m.role ~ m.content %}{% endfor %}{{ ns.out }}";
    let template = ChatTemplate::new("default", collecting).unwrap();
    let short: Vec<Message> = messages.into_iter().take(200).collect();
    let collected = template.render(&short, &ChatOptions::prompt(), []).unwrap();
    assert!(collected.len() > 200 * 999);
}

#[test]
fn the_date_is_todays() {
    let template = ChatTemplate::new("default", "{{ strftime_now('%d %b %Y') }}").unwrap();
    let before = chrono::Local::now().format("%d %b %Y").to_string();
    let text = template.render(&[], &ChatOptions::default(), []).unwrap();
    let after = chrono::Local::now().format("%d %b %Y").to_string();
    assert!(text == before || text == after, "{text}");
}

#[test]
fn a_model_without_a_template_says_so() {
    let mut files = files("crest_k4");
    files.chat_template_jinja = None;
    let text = TextProcessor::from_files(&files).unwrap();
    assert!(!text.has_chat_template());
    let error = text.render_chat(&[Message::user("x")], &ChatOptions::prompt()).unwrap_err();
    assert!(error.to_string().contains("plain prompt"), "{error}");
}

#[test]
fn a_broken_template_does_not_stop_plain_prompts() {
    let mut files = files("crest_k4");
    files.chat_template_jinja = Some(b"\n\n{% if %}".to_vec());
    let text = TextProcessor::from_files(&files).unwrap();
    assert_eq!(text.encode("a", true).unwrap(), [64]);
    let error = text.render_chat(&[Message::user("x")], &ChatOptions::prompt()).unwrap_err();
    assert!(error.to_string().contains("line 3"), "{error}");
}

#[test]
fn templates_are_found_where_models_keep_them() {
    let render = |files: &TextFiles, options: &ChatOptions| {
        TextProcessor::from_files(files).unwrap().render_chat(&[], options).map_err(|e| e.to_string())
    };
    let plain = ChatOptions::default();
    let with_tools = plain.clone().with("tools", json!([]));
    let named = |name: &str| ChatOptions { template: Some(name.to_owned()), ..ChatOptions::default() };
    let list = json!([
        {"name": "default", "template": "D{{ eos_token }}"},
        {"name": "tool_use", "template": "T"},
        {"name": "rag", "template": "R"},
    ]);
    let object = json!({"default": "D{{ eos_token }}", "tool_use": "T", "rag": "R"});
    for templates in [list, object] {
        let config = json!({"chat_template": templates, "eos_token": {"content": "<|im_end|>", "lstrip": false}});
        let mut files = TextFiles {
            tokenizer_config: Some(serde_json::to_vec(&config).unwrap()),
            chat_template_jinja: None,
            chat_template_json: Some(br#"{"chat_template": "J"}"#.to_vec()),
            ..files("crest_k4")
        };
        assert_eq!(render(&files, &plain).unwrap(), "D<|im_end|>");
        assert_eq!(render(&files, &with_tools).unwrap(), "T");
        assert_eq!(render(&files, &named("rag")).unwrap(), "R");
        let error = render(&files, &named("other")).unwrap_err();
        assert!(error.contains("default, tool_use, rag"), "{error}");
        // Files of their own win over the config, all of it.
        files.named_templates = vec![("tool_use".to_owned(), b"U".to_vec())];
        assert_eq!(render(&files, &with_tools).unwrap(), "U");
        let error = render(&files, &plain).unwrap_err();
        assert!(error.contains("none is called \"default\"") && error.contains("tool_use"), "{error}");
        files.chat_template_jinja = Some(b"F".to_vec());
        assert_eq!(render(&files, &plain).unwrap(), "F");
        assert_eq!(render(&files, &with_tools).unwrap(), "U");
    }
    // Where transformers would find none.
    let files = TextFiles {
        tokenizer_config: None,
        chat_template_jinja: None,
        chat_template_json: Some(br#"{"chat_template": "J"}"#.to_vec()),
        ..files("crest_k4")
    };
    assert_eq!(render(&files, &plain).unwrap(), "J");
}

#[test]
fn named_templates_are_read_from_their_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    std::fs::copy(fixture("crest_k4").join("tokenizer.json"), path("tokenizer.json")).unwrap();
    std::fs::create_dir(path("additional_chat_templates")).unwrap();
    std::fs::write(path("chat_template.jinja"), "D").unwrap();
    std::fs::write(path("additional_chat_templates/rag.jinja"), "R").unwrap();
    std::fs::write(path("additional_chat_templates/notes.txt"), "{{").unwrap();
    let text = TextProcessor::from_dir(scratch.path()).unwrap();
    assert_eq!(text.render_chat(&[], &ChatOptions::default()).unwrap(), "D");
    let named = ChatOptions { template: Some("rag".to_owned()), ..ChatOptions::default() };
    assert_eq!(text.render_chat(&[], &named).unwrap(), "R");
}

#[test]
fn templates_of_wrong_types_do_not_stop_plain_prompts() {
    for (config, jinja, part) in [
        (r#"{"chat_template": 5}"#, None, "tokenizer_config.json: chat_template"),
        (r#"{"chat_template": [{"name": "default"}]}"#, None, "must be a text"),
        (r#"{"chat_template": ["x"]}"#, None, "`name` and `template`"),
        (r#"{"chat_template": {"default": null}}"#, None, "must be a text"),
        (r#"{"chat_template": {}}"#, None, "plain prompt"),
        ("{}", Some(vec![b'a', 0xff]), "chat_template.jinja: is not UTF-8"),
    ] {
        let files = TextFiles {
            tokenizer_config: Some(config.as_bytes().to_vec()),
            chat_template_jinja: jinja,
            ..files("crest_k4")
        };
        let text = TextProcessor::from_files(&files).unwrap();
        assert_eq!(text.encode("a", true).unwrap(), [64], "{config}");
        let error = text.render_chat(&[Message::user("x")], &ChatOptions::prompt()).unwrap_err().to_string();
        assert!(error.contains(part), "{config}: {error}");
    }
}
