//! Clients that leave, queues that are full, and the end of the server.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Connection, PATIENCE, Server};
use crate::scripted;

/// A server whose model is slow: what [`endless`] asks for is over when its client leaves, not before.
fn slow(args: &[&str]) -> (TempDir, Server) {
    let directory = scripted::slow();
    let server = Server::start(&[&["-m", directory.path().to_str().unwrap()], args].concat());
    (directory, server)
}

/// An answer that takes minutes of a [`slow`] server.
fn endless() -> Value {
    json!({"prompt": "The cats", "max_tokens": 8000, "ignore_eos": true, "temperature": 1.0, "seed": 1})
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    let (_model, server) = slow(&["--parallel", "1"]);
    let mut body = endless();
    for stream in [true, false] {
        body["stream"] = stream.into();
        let mut leaving = server.begin("/v1/completions", &body);
        if stream {
            leaving.head();
            leaving.chunk();
        }
        server.wait_until("ember_requests_running", |running| running == 1.0);
        // One that waits and leaves never begins.
        let waiting = server.begin("/v1/completions", &endless());
        server.wait_until("ember_requests_waiting", |waiting| waiting == 1.0);
        drop(waiting);
        server.wait_until("ember_requests_waiting", |waiting| waiting == 0.0);
        drop(leaving);
        let left = Instant::now();
        server.wait_until("ember_requests_running", |running| running == 0.0);
        assert!(left.elapsed() < Duration::from_millis(1500), "{:?}", left.elapsed());
    }
    let generated = server.metric("ember_generated_tokens_total");
    assert!(generated < 8000.0, "an answer was generated to its end: {generated}");
    server.wait_until("ember_completions_total{reason=\"cancelled\"}", |cancelled| cancelled == 4.0);
    assert_eq!(server.metric("ember_generated_tokens_total"), generated);
    // The place is free.
    let answer = server.ok("/v1/completions", &json!({"prompt": "The", "max_tokens": 2}));
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[test]
fn a_client_that_goes_away_while_its_prompt_is_read_frees_its_place() {
    let (_model, server) = slow(&["--parallel", "1", "--chunk", "1"]);
    let prompt = vec![40; 8000];
    let leaving = server.begin("/v1/completions", &json!({"prompt": prompt, "max_tokens": 1}));
    server.wait_until("ember_requests_running", |running| running == 1.0);
    drop(leaving);
    server.wait_until("ember_requests_running", |running| running == 0.0);
    assert!(server.metric("ember_engine_steps_total") < 8000.0);
    assert_eq!(server.metric("ember_generated_tokens_total"), 0.0);
}

#[test]
fn health_is_told_while_a_prompt_is_read() {
    let (_model, server) = slow(&["--parallel", "1"]);
    let reading = server.begin("/v1/completions", &json!({"prompt": vec![40; 8000], "max_tokens": 1}));
    server.wait_until("ember_requests_running", |running| running == 1.0);
    for _ in 0..5 {
        let asked = Instant::now();
        let health = server.get("/health");
        assert_eq!((health.status, &health.json()["status"]), (200, &json!("ok")));
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    assert_eq!(server.metric("ember_generated_tokens_total"), 0.0, "it was read before this was over");
    drop(reading);
}

#[test]
fn whoever_asks_while_the_model_is_loaded_is_told_to_wait() {
    let directory = scripted::slow();
    let mut server =
        Server::spawn(&["-m", directory.path().to_str().unwrap(), "--quant", "nf4", "--quant-head", "none"]);
    for (method, path) in [("GET", "/health"), ("POST", "/v1/chat/completions"), ("POST", "/v1/messages")] {
        let response = server.send(method, path, &[], "{}");
        assert_eq!((response.status, response.header("retry-after")), (503, Some("1")), "{path}: {}", response.body);
        assert!(response.message().contains("loaded"), "{path}: {}", response.body);
    }
    assert_eq!(server.get("/health").json()["status"], "loading");
    // What needs no weights is answered.
    assert_eq!(
        (server.get("/v1/models").status, server.get("/metrics").status, server.get("/").status),
        (200, 200, 200)
    );
    assert!(!server.log().contains("ready"), "it was loaded before this was over: {}", server.log());
    server.wait_for("\nready: ");
    assert_eq!((server.get("/health").status, &server.get("/health").json()["status"]), (200, &json!("ok")));
}

#[test]
fn an_engine_that_is_stalled_is_told_by_health() {
    // Whatever takes longer than nothing.
    let (_model, server) = slow(&["--parallel", "1", "--stall-limit", "0"]);
    assert_eq!(server.get("/health").status, 200);
    let reading = server.begin("/v1/completions", &json!({"prompt": vec![40; 8000], "max_tokens": 1}));
    let began = Instant::now();
    let told = loop {
        let health = server.get("/health");
        if health.status != 200 {
            break health;
        }
        assert!(began.elapsed() < PATIENCE, "it is always well:\n{}", server.log());
    };
    assert_eq!((told.status, &told.json()["status"]), (503, &json!("stalled")), "{}", told.body);
    drop(reading);
    while server.get("/health").status != 200 {
        assert!(began.elapsed() < PATIENCE, "it is not well again:\n{}", server.log());
    }
}

#[test]
fn a_stream_that_waits_has_its_headers_and_comments() {
    for (keep_alive, comments) in [("1", true), ("0", false)] {
        let (_model, server) = slow(&["--parallel", "1", "--keep-alive", keep_alive]);
        let busy = server.begin("/v1/completions", &endless());
        server.wait_until("ember_requests_running", |running| running == 1.0);
        let mut waiting = server
            .begin("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": "hi"}], "stream": true}));
        let asked = Instant::now();
        let (status, headers) = waiting.head();
        assert_eq!(status, 200);
        assert!(headers.contains(&("x-accel-buffering".into(), "no".into())), "{headers:?}");
        assert!(headers.contains(&("cache-control".into(), "no-cache".into())));
        let first = waiting.chunk().unwrap();
        assert!(first.contains("\"role\":\"assistant\""), "{first}");
        assert!(asked.elapsed() < Duration::from_millis(900), "{:?}", asked.elapsed());
        if comments {
            for _ in 0..2 {
                assert_eq!(waiting.chunk().unwrap(), ": waiting\n\n");
            }
        } else {
            std::thread::sleep(Duration::from_millis(1500));
            drop(busy);
            assert!(!waiting.chunk().unwrap().starts_with(':'));
        }
    }
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let (_model, server) = slow(&["--parallel", "1", "--max-queue", "1"]);
    let running = server.begin("/v1/completions", &endless());
    server.wait_until("ember_requests_running", |running| running == 1.0);
    let waiting = server.begin("/v1/completions", &endless());
    server.wait_until("ember_requests_waiting", |waiting| waiting == 1.0);
    for stream in [false, true] {
        let mut body = endless();
        body["stream"] = stream.into();
        let refused = server.post("/v1/completions", &body);
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.body);
        assert_eq!(refused.json()["error"]["code"], "queue_full");
        // When is in the header; clients and the page tell it.
        assert_eq!(refused.message(), "every place is taken, and 1 request waits already");
    }
    drop((running, waiting));
    server.wait_until("ember_requests_running", |running| running == 0.0);
    assert_eq!(server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 1})).status, 200);
}

#[test]
fn the_answers_of_one_request_are_taken_together_or_not_at_all() {
    let (_model, server) = slow(&["--parallel", "1", "--max-queue", "2"]);
    let asked = |prompts: usize, n: usize| json!({"prompt": vec!["a"; prompts], "n": n, "max_tokens": 1});
    for (prompts, n) in [(1, 4), (2, 2), (64, 2)] {
        // Never: there is no use in coming back.
        let refused = server.post("/v1/completions", &asked(prompts, n));
        let numbers = format!("{} answers at once, but at most 3", prompts * n);
        assert!(refused.status == 400 && refused.message().contains(&numbers), "{}", refused.body);
    }
    assert_eq!(server.ok("/v1/completions", &asked(1, 3))["choices"].as_array().unwrap().len(), 3);
    let running = server.begin("/v1/completions", &endless());
    server.wait_until("ember_requests_running", |running| running == 1.0);
    let refused = server.post("/v1/completions", &asked(1, 3));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.body);
    assert!(refused.message().contains("room for 2 more"), "{}", refused.body);
    assert_eq!(server.metric("ember_requests_waiting"), 0.0, "some of its answers wait");
    let waiting = server.begin("/v1/completions", &asked(1, 2));
    server.wait_until("ember_requests_waiting", |waiting| waiting == 2.0);
    drop((running, waiting));
}

#[test]
fn every_answer_is_counted_once() {
    let (_model, server) = slow(&["--parallel", "8"]);
    let count = |reason: &str| server.metric(&format!("ember_completions_total{{reason=\"{reason}\"}}"));
    let mut body = endless();
    body["n"] = 8.into();
    let leaving = server.begin("/v1/completions", &body);
    server.wait_until("ember_requests_running", |running| running == 8.0);
    drop(leaving);
    server.wait_until("ember_completions_total{reason=\"cancelled\"}", |cancelled| cancelled == 8.0);
    // Some have ended when the client leaves.
    body["stop"] = json!(["a", "b", "c"]);
    let leaving = server.begin("/v1/completions", &body);
    server.wait_until("ember_completions_total{reason=\"stop\"}", |ended| ended >= 1.0);
    drop(leaving);
    server.wait_until("ember_requests_running", |running| running == 0.0);
    server.wait_until("ember_completions_total{reason=\"cancelled\"}", |cancelled| cancelled > 8.0);
    assert_eq!(count("stop") + count("cancelled"), 16.0);
}

#[test]
fn many_clients_at_once_are_all_answered_or_refused() {
    let server = Server::start(&["--parallel", "4", "--max-queue", "16"]);
    let body = json!({"prompt": "The", "max_tokens": 12, "ignore_eos": true});
    let mut all: Vec<Connection> = (0..200).map(|_| server.begin("/v1/completions", &body)).collect();
    // Some say nothing, some leave.
    let silent: Vec<Connection> = (0..20).map(|_| Connection::open(&server.address)).collect();
    all.truncate(180);
    let mut counts = [0, 0];
    for connection in &mut all {
        let response = connection.response();
        match response.status {
            200 => {
                assert_eq!(response.json()["usage"]["completion_tokens"], 12);
                counts[0] += 1;
            }
            503 => {
                assert_eq!(response.header("retry-after"), Some("1"));
                counts[1] += 1;
            }
            other => panic!("{other}: {}", response.body),
        }
    }
    drop(silent);
    assert!(counts[0] >= 4 && counts[0] + counts[1] == 180, "{counts:?}");
    server.wait_until("ember_requests_running", |running| running == 0.0);
    assert_eq!(server.metric("ember_requests_waiting"), 0.0);
}

#[test]
#[cfg(unix)]
fn the_end_is_announced_and_answers_are_finished() {
    let mut server = Server::start(&["--drain-delay", "2"]);
    let prompts = ["The cats", "A cat", "Cats", "One cat"];
    let mut going = server.begin("/v1/completions", &json!({"prompt": prompts, "max_tokens": 400, "ignore_eos": true}));
    server.wait_until("ember_requests_running", |running| running > 0.0);
    let told = Instant::now();
    server.signal("TERM");
    while server.get("/health").status == 200 {
        assert!(told.elapsed() < Duration::from_secs(1), "it is not said that the server ends");
    }
    let health = server.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("draining")));
    // Whoever has not heard of it yet is served.
    let late = server.ok("/v1/completions", &json!({"prompt": "The", "max_tokens": 2}));
    assert_eq!(late["usage"]["completion_tokens"], 2);
    let response = going.response();
    assert_eq!(response.status, 200, "{}", response.body);
    assert_eq!(response.json()["usage"]["completion_tokens"], 1600);
    assert_eq!(server.wait_for_end().code(), Some(0));
    assert!(told.elapsed() >= Duration::from_secs(2));
}

#[test]
#[cfg(unix)]
fn health_says_that_the_server_ends_until_it_has() {
    // Without a delay: nothing more is taken, and what was taken is finished.
    let (_model, mut server) = slow(&["--parallel", "1", "--drain-limit", "600"]);
    let mut body = endless();
    body["max_tokens"] = 600.into();
    let mut going = server.begin("/v1/completions", &body);
    server.wait_until("ember_requests_running", |running| running == 1.0);
    server.signal("TERM");
    server.wait_for("ending; 1 answer is being generated; answers have 600 s; a second signal ends at once\n");
    for _ in 0..3 {
        let health = server.get("/health");
        assert_eq!((health.status, &health.json()["status"]), (503, &json!("draining")));
        let late = server.post("/v1/completions", &json!({"prompt": "The", "max_tokens": 1}));
        assert_eq!((late.status, late.header("retry-after")), (503, Some("1")), "{}", late.body);
        assert_eq!(late.json()["error"]["code"], "draining");
    }
    assert_eq!(server.metric("ember_requests_running"), 1.0, "it has ended before this was over");
    let response = going.response();
    assert_eq!((response.status, &response.json()["usage"]["completion_tokens"]), (200, &json!(600)));
    assert_eq!(server.wait_for_end().code(), Some(0));
}

#[test]
#[cfg(unix)]
fn answers_that_take_too_long_do_not_keep_the_server() {
    let (_model, mut server) = slow(&["--drain-limit", "1", "--parallel", "1"]);
    let mut going = server.begin("/v1/completions", &{
        let mut body = endless();
        body["stream"] = true.into();
        body
    });
    going.head();
    server.wait_until("ember_requests_running", |running| running == 1.0);
    let told = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait_for_end().code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
    let log = server.log();
    assert!(log.contains("answers were given up after 1 s"), "{log}");
    cut_off(&log, 1);
}

/// So many answers were cut off by the server, and none by its client.
#[cfg(unix)]
fn cut_off(log: &str, answers: usize) {
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("POST /v1/completions")).collect();
    let cut = |line: &&&str| line.ends_with(" cut off") && line.contains(" generated=");
    assert_eq!((lines.len(), lines.iter().filter(cut).count()), (answers, answers), "{log}");
    assert!(!log.contains("client gone"), "{log}");
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_the_server() {
    let mut server = Server::start(&[]);
    server.signal("INT");
    assert_eq!(server.wait_for_end().code(), Some(130));
    assert!(server.log().contains("ending; no answer is being generated\n"), "{}", server.log());
}

#[test]
#[cfg(unix)]
fn a_second_signal_ends_the_server_at_once_and_every_answer_has_its_line() {
    for (first, second, code) in [("INT", "INT", 130), ("TERM", "INT", 130), ("INT", "TERM", 0)] {
        let (_model, mut server) = slow(&["--parallel", "2", "--drain-limit", "600"]);
        let mut body = endless();
        let whole = server.begin("/v1/completions", &body);
        body["stream"] = true.into();
        let mut streamed = server.begin("/v1/completions", &body);
        streamed.head();
        server.wait_until("ember_requests_running", |running| running == 2.0);
        server.signal(first);
        let name = if first == "INT" { "Ctrl-C" } else { "signal" };
        server.wait_for(&format!(
            "ending; 2 answers are being generated; answers have 600 s; a second {name} ends at once\n"
        ));
        let told = Instant::now();
        server.signal(second);
        assert_eq!(server.wait_for_end().code(), Some(code), "{first} {second}");
        assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
        let log = server.log();
        assert!(log.contains("ending at once, after a second signal"), "{log}");
        cut_off(&log, 2);
        drop((whole, streamed));
    }
}

#[test]
fn the_context_is_what_the_bytes_of_caches_have_room_for() {
    let server = Server::start(&["--cache-bytes", "300k"]);
    let card = server.send("GET", "/v1/models", &[], "").json();
    assert_eq!(card["data"][0]["max_model_len"], 512);
    assert!(server.log().contains("has room for a context of 512 tokens"), "{}", server.log());
    // An answer ends there, and is not lost.
    let asked = json!({"prompt": "a fox", "max_tokens": 480, "ignore_eos": true});
    let answer = server.ok("/v1/completions", &asked);
    assert_eq!(
        (&answer["choices"][0]["finish_reason"], &answer["usage"]["completion_tokens"]),
        (&json!("length"), &json!(480))
    );
    let refused = server.post("/v1/completions", &json!({"prompt": "a fox ".repeat(600), "max_tokens": 1}));
    assert!(refused.status == 400 && refused.message().contains("512"), "{}", refused.body);
}

#[test]
fn texts_that_fill_the_bytes_of_caches_together_are_not_lost() {
    // Room for both prompts, and then for one text after the other.
    let server = Server::start(&["--cache-bytes", "340k"]);
    let asked = |prompt: Value, most: usize| {
        server.ok("/v1/completions", &json!({"prompt": prompt, "max_tokens": most, "ignore_eos": true}))
    };
    // What this one leaves behind keeps the first of them from taking room for its whole text at once.
    asked(json!("one and another story"), 100);
    let answer = asked(json!(["a fox", "the cat"]), 400);
    assert_eq!(answer["usage"]["completion_tokens"], 800);
    let reasons: Vec<&Value> =
        answer["choices"].as_array().unwrap().iter().map(|choice| &choice["finish_reason"]).collect();
    assert_eq!(reasons, ["length"; 2]);
}
