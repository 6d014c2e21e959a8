//! A server of its own for each test, and a small HTTP client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing here takes longer.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The C library gives back what is freed, so that resident memory is what is in use: with an arena for each thread, what it keeps grows
/// for minutes.
const MALLOC: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "131072"), ("MALLOC_TRIM_THRESHOLD_", "131072")];

/// The program, or another build of it where that is asked for.
pub fn program() -> std::ffi::OsString {
    std::env::var_os("EMBERLM_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_ember").into())
}

/// A running `ember serve`; killed when dropped.
pub struct Server {
    child: Child,
    pub address: String,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Server {
    /// With the model in the program; ready when this returns.
    pub fn start(args: &[&str]) -> Self {
        let mut server = Self::spawn(args);
        server.wait_for("\nready: ");
        server
    }

    /// Listens when this returns, and loads its model.
    pub fn spawn(args: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.args(["serve", "--port", "0", "--threads", "2", "--device", "cpu"]).args(args);
        command.env_remove("EMBER_API_KEY").stdout(Stdio::null()).stderr(Stdio::piped());
        command.envs(MALLOC);
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let of_thread = log.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = of_thread.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut server = Self { child, address: String::new(), log, reader: Some(reader) };
        server.wait_for("listening on http://");
        let log = server.log();
        let address = log.lines().find_map(|line| line.strip_prefix("listening on http://"));
        server.address = address.expect("no address").to_owned();
        server
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log has a text.
    pub fn wait_for(&mut self, text: &str) {
        let began = Instant::now();
        while !self.log().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "no {text:?} ({ended:?}):\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.send("POST", path, &[], &body.to_string())
    }

    /// A body that is answered with 200.
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body);
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let mut connection = Connection::open(&self.address);
        connection.send(method, path, headers, body);
        connection.response()
    }

    /// Begins a request whose answer is read later, or never.
    pub fn begin(&self, path: &str, body: &Value) -> Connection {
        let mut connection = Connection::open(&self.address);
        connection.send("POST", path, &[], &body.to_string());
        connection
    }

    /// The events of a stream, to its end.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<(String, String)> {
        let mut connection = self.begin(path, body);
        let (status, headers) = connection.head();
        assert_eq!(status, 200, "{}", connection.rest(&headers));
        assert_eq!(find(&headers, "content-type"), Some("text/event-stream"));
        events(&connection.rest(&headers))
    }

    /// One number of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0.0)
    }

    /// Waits until a metric is as expected.
    pub fn wait_until(&self, name: &str, right: impl Fn(f64) -> bool) {
        let began = Instant::now();
        while !right(self.metric(name)) {
            assert!(began.elapsed() < PATIENCE, "{name} is {}\n{}", self.metric(name), self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// The log is whole when this returns.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.reader.take().into_iter().for_each(|reader| reader.join().unwrap());
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "goes on:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The message of an error.
    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// One connection, for one request.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head += "host: localhost\r\n";
        }
        if !headers.iter().any(|(name, _)| *name == "content-length") {
            head += &format!("content-length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        // A server that refuses may close before it has read all.
        let _ = self.0.get_mut().write_all(format!("{head}\r\n{body}").as_bytes());
    }

    /// The status; none where the connection was reset before it came.
    pub fn status_or_reset(&mut self) -> Option<u16> {
        let mut line = String::new();
        self.0.read_line(&mut line).ok()?;
        line.split(' ').nth(1)?.parse().ok()
    }

    /// What comes until the connection ends, however it ends.
    pub fn text_to_end(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = self.0.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What comes.
    pub fn stream(&mut self) -> &mut impl Read {
        &mut self.0
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Status and headers.
    pub fn head(&mut self) -> (u16, Vec<(String, String)>) {
        let status = self.line();
        let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("no status: {status:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else { return (status, headers) };
            headers.push((name.to_lowercase(), value.to_owned()));
        }
    }

    /// The next piece of a chunked body; none at its end.
    pub fn chunk(&mut self) -> Option<String> {
        let length = usize::from_str_radix(&self.line(), 16).unwrap();
        let mut bytes = vec![0; length + 2];
        self.0.read_exact(&mut bytes).unwrap();
        bytes.truncate(length);
        (length > 0).then(|| String::from_utf8(bytes).unwrap())
    }

    /// The body.
    pub fn rest(&mut self, headers: &[(String, String)]) -> String {
        if find(headers, "transfer-encoding") == Some("chunked") {
            return std::iter::from_fn(|| self.chunk()).collect();
        }
        let mut body = Vec::new();
        self.0.read_to_end(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }

    pub fn response(&mut self) -> Response {
        let (status, headers) = self.head();
        let body = self.rest(&headers);
        Response { status, headers, body }
    }
}

/// Names and data of events; comments have the name `:`.
pub fn events(body: &str) -> Vec<(String, String)> {
    let event = |text: &str| {
        if text.starts_with(':') {
            return (":".to_owned(), text.to_owned());
        }
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
        (field("event: "), field("data: "))
    };
    body.split("\n\n").filter(|text| !text.is_empty()).map(event).collect()
}

/// The objects of a stream that ends with `[DONE]`.
pub fn chunks(events: &[(String, String)]) -> Vec<Value> {
    let (last, before) = events.split_last().unwrap();
    assert_eq!(last.1, "[DONE]");
    before.iter().filter(|(name, _)| name != ":").map(|(_, data)| serde_json::from_str(data).unwrap()).collect()
}

/// A text of all chunks, by the path of it in a choice.
pub fn joined(chunks: &[Value], choice: u64, pointer: &str) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let of_choice = choices.filter(|one| one["index"] == choice);
    of_choice.filter_map(|one| one.pointer(pointer)?.as_str()).collect()
}
