//! Two servers behind a gateway that knows prefixes: `.ci/gateway` installs SMG and runs this.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::client::{Connection, PATIENCE, Response, Server};

struct Gateway {
    child: Child,
    address: String,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Gateway {
    /// Ready when this returns.
    fn start(workers: &[&Server]) -> Self {
        let program = std::env::var("EMBERLM_GATEWAY").expect("EMBERLM_GATEWAY: run .ci/gateway");
        // Ports that are free now.
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let (port, metrics) = (free(), free());
        let urls = workers.iter().map(|worker| format!("http://{}", worker.address));
        let mut command = Command::new(program);
        command.args(["launch", "--host", "127.0.0.1", "--port", &port]);
        command.args([
            "--prometheus-host",
            "127.0.0.1",
            "--prometheus-port",
            &metrics,
            "--policy",
            "cache_aware",
            "--worker-urls",
        ]);
        command.args(urls).stdout(Stdio::null()).stderr(Stdio::null());
        let gateway = Self { child: command.spawn().unwrap(), address: format!("127.0.0.1:{port}") };
        let began = Instant::now();
        while std::net::TcpStream::connect(&gateway.address).is_err()
            || gateway.chat(&[say("user", "hi")]).status != 200
        {
            assert!(began.elapsed() < PATIENCE, "the gateway does not answer");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        gateway
    }

    fn begin(&self, messages: &[Value], more: Value) -> Connection {
        let mut body = json!({"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 6});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut connection = Connection::open(&self.address);
        connection.send("POST", "/v1/chat/completions", &[("content-type", "application/json")], &body.to_string());
        connection
    }

    fn chat(&self, messages: &[Value]) -> Response {
        self.begin(messages, json!({})).response()
    }
}

/// Which server generates.
fn busy(workers: &[Server]) -> usize {
    let began = Instant::now();
    loop {
        if let Some(busy) = workers.iter().position(|worker| worker.metric("ember_requests_running") == 1.0) {
            return busy;
        }
        assert!(began.elapsed() < PATIENCE, "nobody streams");
    }
}

fn say(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

/// A conversation with a beginning of its own.
struct Talk {
    messages: Vec<Value>,
}

impl Talk {
    fn about(word: &str) -> Self {
        let system = format!("You tell stories about the {word} and nothing else, each of them short. ").repeat(4);
        Self { messages: vec![say("system", &system)] }
    }

    /// Tokens of the prompt, and how many of them were known.
    fn turn(&mut self, gateway: &Gateway, question: &str) -> (u64, u64) {
        self.messages.push(say("user", question));
        let response = gateway.chat(&self.messages);
        assert_eq!(response.status, 200, "{}", response.body);
        let told = response.json();
        // What other servers do not have passes the gateway.
        assert!(told["choices"][0].get("seed").is_some_and(Value::is_null), "{told}");
        self.messages.push(told["choices"][0]["message"].clone());
        let usage = &told["usage"];
        (usage["prompt_tokens"].as_u64().unwrap(), usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
    }
}

#[test]
#[ignore = "needs a Python package: .ci/run runs it through .ci/gateway where it can be installed"]
fn a_gateway_keeps_prefixes_where_they_are_and_survives_a_server() {
    let workers = [Server::start(&[]), Server::start(&[])];
    let gateway = Gateway::start(&[&workers[0], &workers[1]]);

    // Conversations in turns: each finds what it left.
    let mut talks = ["fox", "boat", "owl", "moon"].map(Talk::about);
    for turn in 0..4 {
        for talk in &mut talks {
            let (prompt, cached) = talk.turn(&gateway, &format!("And what was on day {turn}?"));
            println!("turn {turn}: {cached} of {prompt} tokens were known");
            assert!(turn == 0 || cached * 2 > prompt, "turn {turn}: {cached} of {prompt}");
        }
    }
    let hits = workers.each_ref().map(|worker| worker.metric("ember_prefix_cache_hits_total"));
    println!("hits of each server: {hits:?}");

    // A client that leaves is gone from the server too.
    let mut leaving = gateway.begin(&talks[0].messages, json!({"stream": true, "max_tokens": 900, "ignore_eos": true}));
    assert_eq!(leaving.head().0, 200);
    leaving.chunk();
    let busy = busy(&workers);
    drop(leaving);
    workers[busy].wait_until("ember_requests_running", |running| running == 0.0);

    // A server dies in the middle of a stream. That stream is lost; nothing else is.
    let mut cut = gateway.begin(&talks[0].messages, json!({"stream": true, "max_tokens": 900, "ignore_eos": true}));
    assert_eq!(cut.head().0, 200);
    cut.chunk();
    let busy = self::busy(&workers);
    let [first, second] = workers;
    let (mut dead, alive) = if busy == 0 { (first, second) } else { (second, first) };
    dead.signal("KILL");
    dead.wait_for_end();
    let rest = cut.text_to_end();
    assert!(!rest.contains("\"finish_reason\":\""), "it is told as if it had ended: {rest}");
    for talk in &mut talks {
        let (prompt, _) = talk.turn(&gateway, "And then?");
        let (_, cached) = talk.turn(&gateway, "And at last?");
        assert!(cached * 2 > prompt, "{cached} of {prompt}");
    }
    assert_eq!(alive.metric("ember_requests_running"), 0.0);
}
