//! `ember tokenize` and `ember render`.

use serde_json::{Value, json};

use crate::program::{Scratch, ember, ember_reading, model};

fn dir(name: &str) -> String {
    model(name).to_str().expect("UTF-8").to_owned()
}

fn chats(name: &str) -> Vec<Value> {
    let goldens = std::fs::read_to_string(model(name).join("tokenizer_golden.json")).expect("the goldens");
    let goldens: Value = serde_json::from_str(&goldens).expect("JSON");
    goldens["chats"].as_array().expect("a list").clone()
}

fn ids(stdout: &str) -> Vec<u32> {
    stdout.split_whitespace().map(|id| id.parse().expect("an id")).collect()
}

/// Text and ids of every chat of the goldens, through files.
#[test]
fn chats_are_those_of_transformers() {
    for name in ["crest_k4", "leanllama", "nano_compact"] {
        let dir = dir(name);
        let scratch = Scratch::new();
        for (i, chat) in chats(name).iter().enumerate() {
            let file = scratch.path(&format!("{i}.json"));
            std::fs::write(&file, json!({"messages": chat["messages"]}).to_string()).expect("written");
            let kwargs = chat["kwargs"].to_string();
            let mut flags = vec!["-m", &dir, "--messages", file.to_str().expect("UTF-8"), "--kwargs", &kwargs];
            if chat["add_generation_prompt"] == json!(false) {
                flags.push("--no-generation-prompt");
            }
            let rendered = ember([&["render"][..], &flags].concat()).with_code(0);
            assert_eq!(rendered.stdout, chat["rendered"].as_str().expect("a text"), "{name} {i}");
            let tokens = ember([&["tokenize", "--ids"][..], &flags].concat()).with_code(0);
            assert_eq!(json!(ids(&tokens.stdout)), chat["ids"], "{name} {i}");
            let count = chat["ids"].as_array().expect("a list").len();
            assert!(tokens.stderr.contains(&format!("{count} tokens")), "{}", tokens.stderr);
        }
    }
}

/// What `render` writes comes back as the tokens of the chat: with its last line break, and with no BOS but its own.
#[test]
fn a_rendered_prompt_is_read_as_it_is() {
    for name in ["crest_k4", "leanllama", "nano_compact"] {
        let dir = dir(name);
        let rendered = ember(["render", "-m", &dir, "-p", "hi"]).with_code(0).stdout;
        let chat = ember(["tokenize", "--chat", "-m", &dir, "-p", "hi", "--ids"]).with_code(0);
        let again = ember_reading(&rendered, ["tokenize", "-m", &dir, "--no-special", "-f", "-", "--ids"]).with_code(0);
        assert_eq!(again.stdout, chat.stdout, "{name}");

        let flags = ["-n", "4", "--greedy", "--json", "-p"];
        let report = |ended: crate::program::Ended| -> Value {
            let mut report: Value = serde_json::from_str(&ended.with_code(0).stdout).expect("JSON");
            report.as_object_mut().expect("an object").retain(|key, _| key != "seed" && !key.contains("second"));
            report
        };
        let chat = report(ember([&["generate", "-m", &dir, "--chat"][..], &flags, &["hi"]].concat()));
        let again = [&["generate", "-m", &dir, "--rendered"][..], &flags, &["-"]].concat();
        assert_eq!(report(ember_reading(&rendered, again)), chat, "{name}");
    }
}

#[test]
fn a_text_from_each_place() {
    let dir = dir("leanllama");
    let scratch = Scratch::new();
    let file = scratch.path("text");
    std::fs::write(&file, "the quick").expect("written");
    let file = file.to_str().expect("UTF-8");
    let given = ember(["tokenize", "-m", &dir, "-p", "the quick", "--ids"]).with_code(0);
    let from_file = ember(["tokenize", "-m", &dir, "-f", file, "--ids"]).with_code(0);
    let piped = ember_reading("the quick\n", ["tokenize", "-m", &dir, "--ids"]).with_code(0);
    let dash = ember_reading("the quick\n", ["tokenize", "-m", &dir, "-p", "-", "--ids"]).with_code(0);
    assert_eq!(ids(&given.stdout)[0], 522);
    for other in [from_file, piped, dash] {
        assert_eq!(other.stdout, given.stdout);
    }
    let bare = ember(["tokenize", "-m", &dir, "-p", "the quick", "--ids", "--no-special"]).with_code(0);
    assert_eq!(ids(&bare.stdout), ids(&given.stdout)[1..]);
}

#[test]
fn the_table_shows_what_a_token_is() {
    let dir = dir("crest_k4");
    let shown = ember(["tokenize", "-m", &dir, "-p", "a<|im_end|>\n\"é<think>"]).with_code(0);
    let lines: Vec<Vec<&str>> = shown.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["0", "64", "\"a\""]);
    assert_eq!(lines[1], ["1", "507", "\"<|im_end|>\"", "special"]);
    assert_eq!(lines[2][2], "\"\\n\"");
    assert_eq!(lines[3][2], "\"\\\"\"");
    assert_eq!(lines.last().expect("a line")[2..], ["\"<think>\"", "added"]);
    assert!(shown.stderr.contains("1 special"), "{}", shown.stderr);
    assert!(!shown.stdout.contains('\x1b'));
    // What is no whole character is shown by its bytes.
    let bytes = ember(["tokenize", "-m", &dir, "-p", "🙂", "--json"]).with_code(0);
    let report: Value = serde_json::from_str(&bytes.stdout).expect("JSON");
    let tokens = report["tokens"].as_array().expect("a list");
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|t| t["bytes"].as_array().expect("bytes").iter())
        .map(|b| b.as_u64().expect("a byte") as u8)
        .collect();
    assert_eq!(bytes, "🙂".as_bytes());
    let shown = ember(["tokenize", "-m", &dir, "-p", "🙂"]).with_code(0);
    assert!(shown.stdout.contains("\"\\xf0"), "{}", shown.stdout);

    let literal = ember(["tokenize", "-m", &dir, "-p", "a<|im_end|>", "--literal", "--json"]).with_code(0);
    let report: Value = serde_json::from_str(&literal.stdout).expect("JSON");
    assert_eq!(report["count"], json!(report["ids"].as_array().expect("a list").len()));
    assert!(report["tokens"].as_array().expect("a list").iter().all(|token| token["kind"] == "ordinary"));
    let text: String =
        report["tokens"].as_array().expect("a list").iter().map(|t| t["text"].as_str().expect("a text")).collect();
    assert_eq!(text, "a<|im_end|>");
    assert_eq!(report["special_tokens"]["eos"], json!({"text": "<|im_end|>", "id": 507}));
}

#[test]
fn literal_keeps_the_tokens_around_a_text() {
    let dir = dir("leanllama");
    let parsed = ember(["tokenize", "-m", &dir, "-p", "the fox", "--ids"]).with_code(0);
    let literal = ember(["tokenize", "-m", &dir, "-p", "the fox", "--ids", "--literal"]).with_code(0);
    assert_eq!(literal.stdout, parsed.stdout);
}

#[test]
fn tools_documents_and_dates_reach_the_template() {
    let scratch = Scratch::new();
    let dir = scratch.copy_of("crest_k4");
    let template = "{{ messages[0].content }}|{{ tools|tojson }}|{{ documents|map(attribute='title')|join }}|\
                    {{ strftime_now('%d %b %Y') }}|{{ extra }}|{{ enable_thinking }}|{{ add_generation_prompt }}";
    std::fs::write(dir.join("chat_template.jinja"), template).expect("written");
    let file = |name: &str, content: &Value| {
        let path = scratch.path(name);
        std::fs::write(&path, content.to_string()).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let tools = file("tools.json", &json!([{"type": "function", "function": {"name": "f"}}]));
    let documents = file("documents.json", &json!({"documents": [{"title": "T", "text": "x"}]}));
    let dir = dir.to_str().expect("UTF-8");
    let flags = [
        "render",
        "-m",
        dir,
        "-p",
        "hi",
        "--tools",
        &tools,
        "--documents",
        &documents,
        "--date",
        "2026-01-05",
        "--kwargs",
        "{\"extra\": 7}",
        "--no-think",
        "--no-generation-prompt",
    ];
    let rendered = ember(flags).with_code(0);
    let function = r#"[{"type": "function", "function": {"name": "f"}}]"#;
    assert_eq!(rendered.stdout, format!("hi|{function}|T|05 Jan 2026|7|False|False"));
    let report = ember(flags.into_iter().chain(["--json"])).with_code(0);
    let report: Value = serde_json::from_str(&report.stdout).expect("JSON");
    assert_eq!(report["prompt"], rendered.stdout);
    assert!(report["tokens"].as_u64().is_some_and(|n| n > 10));

    // The same list reaches the model.
    let rendered = ember(["render", "-m", dir, "-p", "hi", "--tools", &tools, "--date", "2026-01-05"]).with_code(0);
    std::fs::write(
        scratch.path("crest_k4").join("chat_template.jinja"),
        template.replace("strftime_now('%d %b %Y')", "'05 Jan 2026'"),
    )
    .expect("written");
    let args = ["generate", "-m", dir, "-p", "hi", "--chat", "--tools", &tools, "-n", "1", "--greedy", "--json"];
    let generated: Value = serde_json::from_str(&ember(args).with_code(0).stdout).expect("JSON");
    let tokens = ember_reading(&rendered.stdout, ["tokenize", "-m", dir, "--no-special", "--ids"]).with_code(0);
    assert_eq!(generated["prompt_tokens"], json!(ids(&tokens.stdout).len()));
}

/// Tools that a model is never told of would be looked for in vain in its answers.
#[test]
fn what_a_template_leaves_out_is_told() {
    let scratch = Scratch::new();
    let dir = scratch.copy_of("crest_k4");
    let list = scratch.path("list.json");
    std::fs::write(&list, r#"[{"type": "function", "function": {"name": "f"}}]"#).expect("written");
    let (path, list) = (dir.to_str().expect("UTF-8"), list.to_str().expect("UTF-8"));
    let flags = ["--tools", list, "--no-think"];
    let more = ["--documents", list, "--kwargs", r#"{"mood": "?"}"#, "--date", "2026-01-05"];
    let chats = [
        (vec!["render", "-m", path, "-p", "hi"], true),
        (vec!["tokenize", "-m", path, "-p", "hi", "--chat"], true),
        (vec!["generate", "-m", path, "-p", "hi", "--chat", "-n", "1", "--greedy", "--device", "cpu"], false),
    ];
    let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let all = "{{ tools|tojson if tools and messages|length > 0 }}{{ documents|length if documents }}{{ mood }}{{ date_string }}\
               {% if enable_thinking is defined and enable_thinking %}!{% endif %}";
    for (template, left_out) in [(plain.to_owned(), true), (format!("{plain}{all}"), false)] {
        std::fs::write(dir.join("chat_template.jinja"), template).expect("written");
        for (args, takes_more) in &chats {
            let more = more.iter().filter(|_| *takes_more);
            let told = ember(args.iter().chain(&flags).chain(more)).with_code(0).stderr;
            let notes = told.lines().filter(|line| line.starts_with("note: the model's chat template")).count();
            assert_eq!(
                notes,
                if !left_out {
                    0
                } else if *takes_more {
                    5
                } else {
                    2
                },
                "{args:?}: {told}"
            );
            for part in ["has no tools: they are left out", "no switch for thinking (enable_thinking)"] {
                assert_eq!(told.contains(part), left_out, "{args:?}: {told}");
            }
        }
    }
}

/// As templates of Llama 3.1 read it.
#[test]
fn a_date_is_told_as_date_string_too() {
    let scratch = Scratch::new();
    let dir = scratch.copy_of("crest_k4");
    let template =
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}";
    std::fs::write(dir.join("chat_template.jinja"), template).expect("written");
    let dir = dir.to_str().expect("UTF-8");
    let render = |flags: &[&str]| ember(["render", "-m", dir, "-p", "x"].iter().chain(flags)).with_code(0).stdout;
    assert_eq!(render(&["--date", "2026-01-05 09:30"]), "05 Jan 2026");
    assert_eq!(render(&["--date", "2026-01-05", "--kwargs", r#"{"date_string": "today"}"#]), "today");
    assert_eq!(render(&[]), "26 Jul 2024");
}

/// A directory with the tokenizer alone, and one whose tokenizer has a token more than the embedding.
#[test]
fn models_without_weights_and_tokens_beyond_the_embedding() {
    let scratch = Scratch::new();
    let alone = scratch.path("alone");
    std::fs::create_dir(&alone).expect("a directory");
    std::fs::copy(model("crest_k4").join("tokenizer.json"), alone.join("tokenizer.json")).expect("a copy");
    let shown = ember(["tokenize", "-m", alone.to_str().expect("UTF-8"), "-p", "a", "--ids"]).with_code(0);
    assert_eq!(shown.stdout, "64\n");

    let dir = scratch.copy_of("leanllama");
    let path = dir.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a config")).expect("JSON");
    config["pad_token"] = json!("[PAD]");
    std::fs::write(&path, config.to_string()).expect("written");
    let config: Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).expect("a config")).expect("JSON");
    let rows = config["vocab_size"].as_u64().expect("a number");
    let dir = dir.to_str().expect("UTF-8");
    let generate = |prompt: &'static str| ember(["generate", "-m", dir, "-p", prompt, "-n", "1", "--greedy"]);
    generate("hello").with_code(0);
    let vocabulary = ember(["tokenize", "-m", dir, "-p", "[PAD]", "--json"]).with_code(0);
    let report: Value = serde_json::from_str(&vocabulary.stdout).expect("JSON");
    let id = report["tokens"][1]["id"].as_u64().expect("an id");
    if id >= rows {
        assert_eq!(report["tokens"][1]["beyond_embedding"], json!(true));
        assert!(vocabulary.stderr.contains("beyond the embedding"), "{}", vocabulary.stderr);
        generate("hello [PAD]").fails_with(&["[PAD]", &id.to_string(), &rows.to_string(), "embedding"]);
    } else {
        generate("hello [PAD]").with_code(0);
    }
}

#[test]
fn mistakes_are_named() {
    let dir = dir("crest_k4");
    let scratch = Scratch::new();
    let file = |name: &str, content: &str| {
        let path = scratch.path(name);
        std::fs::write(&path, content).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let render = |flags: &[&str]| ember([&["render", "-m", &dir][..], flags].concat());
    for (content, part) in [
        ("{", "is no JSON"),
        ("5", "no list"),
        ("[]", "has no messages"),
        ("{}", "has no `messages`"),
        ("[{\"role\": \"user\", \"content\": \"x\"}, 5]", "message 1"),
        ("[{\"content\": \"x\"}]", "message 0"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": [1]}", "the tools are no list"),
    ] {
        render(&["--messages", &file("m.json", content)]).fails_with(&["m.json", part]);
    }
    render(&["--messages", "missing.json"]).fails_with(&["cannot read missing.json"]);
    render(&["-p", "x", "--tools", &file("t.json", "{\"name\": \"f\"}")]).fails_with(&["t.json", "tools"]);
    render(&["-p", "x", "--kwargs", "[1]"]).fails_with(&["--kwargs", "JSON object"]);
    render(&["-p", "x", "--kwargs", "{\"messages\": []}"]).fails_with(&["messages"]);
    render(&["-p", "x", "--date", "tomorrow"]).fails_with(&["tomorrow", "2026-01-31"]);
    render(&["-p", "x", "--template", "rag"]).fails_with(&["rag", "default"]);
    render(&["-p", "x", "--messages", "m.json"]).with_code(2);
    let tokenize = |flags: &[&str]| ember([&["tokenize", "-m", &dir, "-p", "x"][..], flags].concat());
    tokenize(&["--no-think"]).fails_with(&["--no-think", "--chat"]);
    tokenize(&["--chat", "--no-special"]).with_code(2);
    tokenize(&["--json", "--ids"]).with_code(2);
    ember(["tokenize", "-m", "nowhere", "-p", "x"]).fails_with(&["nowhere"]);
}
