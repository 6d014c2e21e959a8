//! Everything that clients do, for as long as `EMBERLM_SOAK_SECONDS` says (60): `.ci/run` runs it, and half an hour of it belongs to a release.
//!
//! Every request has to be answered, refused or cancelled as [`KINDS`] says; afterwards nothing of any is left, and the memory is that of the
//! first minute.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Connection, PATIENCE, Server, events};

/// Clients at a time, besides those that come all at once.
const CLIENTS: u64 = 12;

/// Connections that come at once now and then, with places for 4 and a queue of 16.
const CROWD: usize = 200;

/// More than a body may have.
const TOO_LARGE: usize = (16 << 20) + 1;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Chat,
    Stream,
    Messages,
    Responses,
    Completions,
    Tokenize,
    Metrics,
    /// Reads its stream in bits, later than it comes.
    Slow,
    /// Never reads, and leaves after a while.
    Deaf,
    /// Leaves before its answer is there.
    Leaves,
    /// Leaves in its stream.
    LeavesStream,
    /// Says half a request, and leaves.
    Half,
    NoJson,
    Deep,
    Large,
    /// Says that its body is large, and sends none.
    ClaimsLarge,
    WrongField,
    NoModel,
    TooLong,
    Nothing,
}
use Kind::*;

/// How often of a hundred, and the answers that are right. Where places and queue are full it may always be 503, but for what takes no place.
const KINDS: [(Kind, u64, &[u16]); 20] = [
    (Chat, 12, &[200, 503]),
    (Stream, 16, &[200, 503]),
    (Messages, 7, &[200, 503]),
    (Responses, 7, &[200, 503]),
    (Completions, 8, &[200, 503]),
    (Tokenize, 4, &[200]),
    (Metrics, 3, &[200]),
    (Slow, 4, &[200, 503]),
    (Deaf, 2, &[]),
    (Leaves, 8, &[]),
    (LeavesStream, 8, &[200, 503]),
    (Half, 3, &[]),
    (NoJson, 3, &[400, 503]),
    (Deep, 3, &[400, 503]),
    (Large, 1, &[413, 503]),
    (ClaimsLarge, 2, &[413, 503]),
    (WrongField, 3, &[400, 503]),
    (NoModel, 2, &[404, 503]),
    (TooLong, 2, &[400, 503]),
    (Nothing, 2, &[404]),
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % end
    }

    fn kind(&mut self) -> (Kind, &'static [u16]) {
        let mut at = self.below(KINDS.iter().map(|(_, share, _)| share).sum());
        for (kind, share, right) in KINDS {
            if at < share {
                return (kind, right);
            }
            at -= share;
        }
        unreachable!()
    }

    fn text(&mut self, words: u64) -> String {
        const WORDS: [&str; 6] = ["fox", "boat", "sea", "red", "caf\u{e9}", "\u{1f600}"];
        (0..self.below(words) + 1).map(|_| format!("{} ", WORDS[self.below(6) as usize])).collect()
    }
}

/// Path and body of a request.
fn request(kind: Kind, random: &mut Random) -> (&'static str, String) {
    const CHAT: &str = "/v1/chat/completions";
    let messages = json!([
        {"role": "system", "content": format!("Be brief, as of {}.", random.below(12))},
        {"role": "user", "content": random.text(60)},
    ]);
    let most = 1 + random.below(100);
    let mut chat = json!({"messages": messages, "max_tokens": most, "ignore_eos": random.below(2) == 0});
    let mut more = |value: Value| {
        chat.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        chat.to_string()
    };
    match kind {
        Chat => match random.below(6) {
            0 => (CHAT, more(json!({"n": 3, "temperature": 1.0}))),
            1 => (CHAT, more(json!({"logprobs": true, "top_logprobs": 3, "trace": true}))),
            2 => (CHAT, more(json!({"stop": ["the", "a b"], "seed": random.below(9)}))),
            #[cfg(feature = "grammar")]
            3 => {
                let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
                (
                    CHAT,
                    more(
                        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}),
                    ),
                )
            }
            _ => (CHAT, more(json!({}))),
        },
        Stream | Slow | LeavesStream => {
            (CHAT, more(json!({"stream": true, "stream_options": {"include_usage": true}})))
        }
        Deaf => (
            CHAT,
            more(json!({"stream": true, "max_tokens": 300, "ignore_eos": true, "logprobs": true, "top_logprobs": 20})),
        ),
        Leaves => (CHAT, more(json!({"max_tokens": 300, "ignore_eos": true, "stream": random.below(2) == 0}))),
        Messages => (
            "/v1/messages",
            json!({"messages": [messages[1]], "max_tokens": most, "stream": random.below(2) == 0}).to_string(),
        ),
        Responses => (
            "/v1/responses",
            json!({"input": random.text(40), "max_output_tokens": most, "stream": random.below(2) == 0}).to_string(),
        ),
        Completions => {
            let prompts: Vec<String> = (0..1 + random.below(3)).map(|_| random.text(80)).collect();
            (
                "/v1/completions",
                json!({"prompt": prompts, "max_tokens": most, "echo": random.below(2) == 0, "logprobs": 1}).to_string(),
            )
        }
        Tokenize => ("/tokenize", json!({"prompt": random.text(200)}).to_string()),
        NoJson => {
            let body = more(json!({}));
            (CHAT, body[..body.len() - 1 - random.below(20) as usize].to_owned())
        }
        Deep => (CHAT, format!("{{\"messages\": {}", "[".repeat(5000))),
        Large => (CHAT, "x".repeat(TOO_LARGE)),
        WrongField => (CHAT, more(json!({"temperature": "hot"}))),
        NoModel => (CHAT, more(json!({"model": "another"}))),
        TooLong => ("/v1/completions", json!({"prompt": vec![40; 2000], "max_tokens": 1}).to_string()),
        Nothing => ("/v2/nothing", "{}".to_owned()),
        Metrics | Half | ClaimsLarge => (CHAT, more(json!({}))),
    }
}

/// Does one thing. What was answered; none where the client left before.
fn act(address: &str, kind: Kind, random: &mut Random) -> Option<u16> {
    let (path, body) = request(kind, random);
    if kind == Half {
        let mut stream = TcpStream::connect(address).unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let _ = stream.write_all(&head.as_bytes()[..random.below(head.len() as u64) as usize]);
        std::thread::sleep(Duration::from_millis(random.below(300)));
        return None;
    }
    let mut connection = Connection::open(address);
    let claimed: &[(&str, &str)] = if kind == ClaimsLarge { &[("content-length", "99999999")] } else { &[] };
    let (method, path) = if kind == Metrics { ("GET", "/metrics") } else { ("POST", path) };
    connection.send(method, path, claimed, &body);
    match kind {
        Leaves => {
            std::thread::sleep(Duration::from_millis(random.below(200)));
            return None;
        }
        Deaf => {
            std::thread::sleep(Duration::from_millis(500 + random.below(1500)));
            return None;
        }
        // What is refused before all of it was read may end in a reset.
        Large => return Some(connection.status_or_reset().unwrap_or(413)),
        _ => {}
    }
    let (status, headers) = connection.head();
    let is = |name: &str, value: &str| headers.iter().any(|(known, found)| known == name && found == value);
    if status == 503 {
        assert!(is("retry-after", "1"), "{kind:?}: {headers:?}");
    }
    if kind == LeavesStream && status == 200 {
        // Some events may have come in one chunk, so that it ends before.
        let _ = (0..random.below(6)).all(|_| connection.chunk().is_some());
        return Some(status);
    }
    if kind == Slow && status == 200 {
        let mut all = Vec::new();
        let mut bit = [0; 97];
        loop {
            let count = match connection.stream().read(&mut bit) {
                Ok(0) => break,
                Ok(count) => count,
                // A process that was stopped for a while.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => panic!("{kind:?}: {error}"),
            };
            all.extend_from_slice(&bit[..count]);
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(String::from_utf8_lossy(&all).contains("data: [DONE]"), "{kind:?}: {}", String::from_utf8_lossy(&all));
        return Some(status);
    }
    let body = connection.rest(&headers);
    if is("content-type", "text/event-stream") {
        let events = events(&body);
        let (name, data) = events.last().expect("an event");
        let last =
            ["message_stop", "response.completed", "response.incomplete"].contains(&name.as_str()) || data == "[DONE]";
        assert!(last, "{kind:?} ends with {name} {data}");
    } else if kind != Metrics {
        let told: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{kind:?}: {error}: {body}"));
        assert_eq!(told["error"].is_object(), status != 200, "{kind:?}: {status} {body}");
    }
    Some(status)
}

/// All connections are open before the first is answered.
fn crowd(server: &Server, random: &mut Random) -> [usize; 2] {
    let body = json!({"prompt": random.text(8), "max_tokens": 12, "ignore_eos": true});
    let mut all: Vec<Connection> = (0..CROWD).map(|_| server.begin("/v1/completions", &body)).collect();
    let mut counts = [0, 0];
    for connection in &mut all {
        let response = connection.response();
        match (response.status, response.header("retry-after")) {
            (200, None) => counts[0] += 1,
            (503, Some("1")) => counts[1] += 1,
            other => panic!("{other:?}: {}", response.body),
        }
    }
    counts
}

/// Bytes that are resident.
fn resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

#[test]
#[ignore = "takes a minute and more: .ci/run runs it where the machine is fast enough, a release by hand (CONTRIBUTING.md)"]
fn nothing_is_left_of_what_clients_did() {
    let seconds = std::env::var("EMBERLM_SOAK_SECONDS").map_or(60, |text| text.parse().expect("a number of seconds"));
    let length = Duration::from_secs(seconds);
    let server = Server::start(&["--parallel", "4", "--max-queue", "16", "--cache-bytes", "12M"]);
    let began = Instant::now();
    let (ended, counts) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()));
    // The memory of every second, and how many a crowd were answered and refused.
    let (memory, crowds) = std::thread::scope(|scope| {
        // Also where something here fails.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let end = End(&ended);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|seed| {
                let (server, ended, counts) = (&server, &ended, &counts);
                scope.spawn(move || {
                    let mut random = Random(seed);
                    while !ended.load(Ordering::Relaxed) {
                        let (kind, right) = random.kind();
                        let status = act(&server.address, kind, &mut random);
                        assert!(
                            status.is_none_or(|status| right.contains(&status)),
                            "{kind:?} is answered with {status:?}"
                        );
                        if status == Some(503) {
                            // Half of what it is told to wait.
                            std::thread::sleep(Duration::from_millis(500));
                        }
                        *counts.lock().unwrap().entry((kind, status)).or_insert(0_u64) += 1;
                    }
                })
            })
            .collect();
        let (mut memory, mut crowds, mut random) = (Vec::new(), Vec::new(), Random(99));
        while began.elapsed() < length && !clients.iter().any(|client| client.is_finished()) {
            std::thread::sleep(Duration::from_secs(1));
            memory.extend(resident(server.id()));
            if memory.len() % 10 == 5 {
                crowds.push(crowd(&server, &mut random));
            }
            assert_eq!(server.get("/health").status, 200);
        }
        drop(end);
        clients
            .into_iter()
            .for_each(|client| client.join().expect("a client was answered otherwise than it should be"));
        (memory, crowds)
    });
    let counts = counts.into_inner().unwrap();
    for ((kind, status), count) in &counts {
        println!("{kind:?}: {count} times {}", status.map_or_else(|| "left".to_owned(), |status| status.to_string()));
    }
    println!("of {CROWD} at once answered and refused: {crowds:?}");
    let sum: u64 = counts.values().sum();
    println!(
        "{sum} requests in {:.0} s, {} tokens",
        began.elapsed().as_secs_f64(),
        server.metric("ember_generated_tokens_total")
    );
    for (kind, _, right) in KINDS {
        let seen = |status| counts.contains_key(&(kind, status));
        assert!(if right.is_empty() { seen(None) } else { seen(Some(right[0])) }, "{kind:?} was never right");
    }
    // Of a crowd whoever comes beyond the queue is refused; that nobody else is shows the last one, below.
    let refused: usize = crowds.iter().map(|[_, refused]| refused).sum();
    assert!(crowds.is_empty() || refused > 0, "{crowds:?}");

    // No place is taken, none waits, and what caches take is kept on purpose.
    server.wait_until("ember_requests_running", |running| running == 0.0);
    server.wait_until("ember_requests_waiting", |waiting| waiting == 0.0);
    let kept = server.metric("ember_prefix_cache_bytes");
    server.wait_until("ember_kv_cache_bytes", |bytes| bytes == kept);
    assert!(kept <= f64::from(12 << 20), "{kept}");
    let cancelled = server.metric("ember_completions_total{reason=\"cancelled\"}");
    assert!(cancelled > 0.0 && server.metric("ember_completions_total{reason=\"error\"}") == 0.0);
    let asked = Instant::now();
    let [answered, refused] = crowd(&server, &mut Random(7));
    assert!(answered >= 4 && refused > 0 && answered + refused == CROWD, "{answered} and {refused}");
    assert!(asked.elapsed() < PATIENCE);

    // At the end as after the first minute, or after the first half of a run that is not much longer.
    let after = memory.len().min(120).div_ceil(2);
    let (Some(first), Some(last)) =
        (memory[..after].iter().max(), memory[memory.len() - memory.len() / 4..].iter().max())
    else {
        println!("memory: not told by this system");
        return;
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "resident: {:.1} MiB at most in the first {after} s, {:.1} MiB in the last quarter",
        mib(*first),
        mib(*last)
    );
    assert!(*last as f64 <= *first as f64 * 1.05, "memory grows: {memory:?}");
}
