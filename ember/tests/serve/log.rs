//! What the server tells on stderr.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Server;
use crate::project::fixture;
use crate::scripted::{ANSWER, model};

/// What clients ask for again and again.
const POLLED: [&str; 3] = ["/health", "/metrics", "/v1/models"];

fn told(log: &str, request: &str) -> bool {
    log.lines().any(|line| line.contains(request))
}

#[test]
fn requests_that_are_repeated_are_told_when_debugging_or_when_they_fail() {
    for (level, polls, others) in [("debug", true, true), ("info", false, true), ("warn", false, false)] {
        let mut server = Server::start(&["--log-level", level, "--api-key", "k3y"]);
        let key = [("authorization", "Bearer k3y")];
        for path in POLLED {
            for method in ["GET", "HEAD"] {
                assert_eq!(server.send(method, path, &key, "").status, 200, "{path}");
            }
        }
        for (method, path, status) in [("GET", "/metrics", 401), ("POST", "/health", 405)] {
            assert_eq!(server.send(method, path, &[], "").status, status, "{path}");
        }
        assert_eq!(server.send("GET", "/v1/models/none", &key, "").status, 404);
        end(&mut server);
        let log = server.log();
        for request in POLLED.iter().flat_map(|path| [format!("GET {path} 200"), format!("HEAD {path} 200")]) {
            assert_eq!(told(&log, &request), polls, "{level}: {request}\n{log}");
        }
        for request in ["GET /metrics 401", "POST /health 405", "GET /v1/models/none 404"] {
            assert_eq!(told(&log, request), others, "{level}: {request}\n{log}");
        }
        assert!(log.contains("\nready: "), "{level}: {log}");
    }
}

/// Ends a server in order, so that its log is whole.
fn end(server: &mut Server) {
    #[cfg(unix)]
    {
        server.signal("TERM");
        assert_eq!(server.wait_for_end().code(), Some(0));
    }
    #[cfg(not(unix))]
    server.wait_for("GET /v1/models/none");
}

#[test]
fn an_answer_to_head_is_whole_without_a_body() {
    let mut server = Server::start(&[]);
    for path in ["/", "/nothing"] {
        let mut asked = crate::client::Connection::open(&server.address);
        asked.send("HEAD", path, &[], "");
        let (_, headers) = asked.head();
        assert!(headers.iter().any(|(name, length)| name == "content-length" && length != "0"), "{headers:?}");
        assert_eq!(asked.text_to_end(), "");
    }
    server.wait_for("HEAD /nothing 404");
    server.wait_for("HEAD / 200");
    assert!(!server.log().contains("client gone"), "{}", server.log());
}

#[test]
fn the_first_lines_say_where_the_page_is() {
    for (host, opened) in [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")] {
        let server = Server::start(&["--host", host]);
        let (_, port) = server.address.split_once(':').unwrap();
        assert_eq!(server.address, format!("{host}:{port}"));
        let line = format!("\npage for a browser: http://{opened}:{port}/\n");
        assert!(server.log().contains(&line), "{}", server.log());
    }
}

/// A model whose tokenizer has a chat template, or none.
fn with_template(template: bool) -> TempDir {
    let directory = model("{{ messages[0].content }}<|answer|>", &[b"yes"]);
    if !template {
        let config = json!({"eos_token": "<|end|>"}).to_string();
        std::fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
    }
    directory
}

#[test]
fn the_first_lines_say_what_a_model_cannot_do() {
    let small = "this is the small model of the program";
    let chatless = "this model has no chat template: chats are refused";
    let boxed = Server::start(&[]).log();
    assert!(boxed.contains(small) && !boxed.contains(chatless), "{boxed}");
    for template in [true, false] {
        let directory = with_template(template);
        let server = Server::start(&["-m", directory.path().to_str().unwrap()]);
        let log = server.log();
        assert!(!log.contains(small) && log.contains(chatless) != template, "{log}");
        let card = server.get("/v1/models").json();
        assert_eq!(card["data"][0]["meta"]["chat_template"], template);
        // As the line says.
        let messages = json!([{"role": "user", "content": "hi"}]);
        for (path, body) in [
            ("/v1/chat/completions", json!({ "messages": messages })),
            ("/v1/messages", json!({"messages": messages, "max_tokens": 4})),
            ("/v1/responses", json!({"input": "hi"})),
        ] {
            let status = if template { 200 } else { 400 };
            assert_eq!(server.post(path, &body).status, status, "{path}");
        }
        let continued = server.ok("/v1/completions", &json!({"prompt": ANSWER, "temperature": 0}));
        assert_eq!(continued["choices"][0]["text"], "yes");
    }
}

#[test]
fn the_card_of_a_model_has_the_sampling_of_requests_that_say_nothing() {
    let sampling = |args: &[&str]| -> Value {
        let directory = with_template(true);
        let file = json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}).to_string();
        std::fs::write(directory.path().join("generation_config.json"), file).unwrap();
        let server = Server::start(&[&["-m", directory.path().to_str().unwrap()], args].concat());
        server.get("/v1/models").json()["data"][0]["meta"]["sampling"].clone()
    };
    let wanted = |do_sample: bool, temperature: f64, top_k: usize, top_p: f64, min_p: f64| json!({"do_sample": do_sample, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p});
    assert_eq!(sampling(&[]), wanted(true, 0.6, 20, 0.95, 0.0));
    assert_eq!(sampling(&["--temp", "0.7", "--top-k", "-1", "--min-p", "0.05"]), wanted(true, 0.7, 0, 0.95, 0.05));
    assert_eq!(sampling(&["--greedy"]), wanted(false, 0.0, 0, 1.0, 0.0));
}

/// Where its figures are read: in the first line about the model, in its card and in the metrics.
#[test]
fn the_kind_of_cache_is_told() {
    let model = fixture("leanllama");
    let model = model.to_str().unwrap();
    for (flags, format, hidden) in [(&[][..], "f16", false), (&["--cache-hidden", "--cache-type", "q8"], "q8", true)] {
        let server = Server::start(&[&["-m", model], flags].concat());
        let words = if hidden { format!("{format} cache with hidden values") } else { format!("{format} cache") };
        let log = server.log();
        assert!(log.contains(&format!(" of {words} for all answers together (")), "{log}");
        let meta = server.get("/v1/models").json()["data"][0]["meta"].clone();
        assert_eq!((&meta["cache_type"], &meta["cache_hidden"]), (&json!(format), &json!(hidden)));
        let info = format!("ember_kv_cache_info{{cache_type=\"{format}\",cache_hidden=\"{hidden}\"}}");
        assert_eq!(server.metric(&info), 1.0, "{}", server.get("/metrics").body);
    }
}
