//! A hub on 127.0.0.1: the parts of the protocol that downloads use, with every fault that a server or the way to it may have.
//!
//! Small files are sent by the hub itself with git's hash as ETag; large ones are in a store on another port, to which the hub redirects with
//! a signed address. The store has ETags of its own and, as real ones do, refuses requests that carry the hub's token.

#![allow(dead_code)]

pub mod tls;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const TOKEN: &str = "hf_neverToBeSeenElsewhere";
/// The part of a signed address that must not be shown.
pub const SIGNATURE: &str = "c2lnbmF0dXJl";

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Hub,
    Store,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub side: Side,
    pub method: String,
    /// With the query.
    pub path: String,
    /// First byte, and last byte where it is stated.
    pub range: Option<(usize, Option<usize>)>,
    pub if_range: Option<String>,
    pub authorization: Option<String>,
}

/// What goes wrong with an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    None,
    /// A status without the file.
    Status(u16, Vec<(&'static str, String)>),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Nothing comes any more after so many bytes, for this long.
    Stall(usize, Duration),
    /// Another body, with its type.
    Body(&'static str, Vec<u8>),
    /// This byte of the file is another one.
    Flip(usize),
    /// So many bytes are missing at the end, and the length says so.
    Short(usize),
    /// A body without a stated length, longer than the file.
    Long,
    Redirect(String),
    /// The whole file, whatever range is asked for.
    NoRange,
    /// Bytes of another range.
    OtherRange,
    /// The store's ETag is this one now.
    Etag(&'static str),
    /// The hub states this hash of the file.
    Linked(String),
    /// Not HTTP.
    Garbage,
}

/// A file of a repository.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    pub bytes: Arc<Vec<u8>>,
    /// In the store.
    pub large: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Repository {
    pub files: BTreeMap<String, RemoteFile>,
    /// Whether the list states lengths and hashes.
    pub bare_list: bool,
}

type Faults = Box<dyn Fn(&Asked) -> Fault + Send + Sync>;

struct Inner {
    hub: String,
    store: String,
    repositories: Mutex<BTreeMap<String, Repository>>,
    faults: Mutex<Arc<Faults>>,
    asked: Mutex<Vec<(Asked, u16)>>,
}

/// The two servers; their threads end with the process.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

fn hex<D: Digest>(bytes: &[u8]) -> String {
    D::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::<Sha256>(bytes)
}

pub fn git_hash(bytes: &[u8]) -> String {
    hex::<Sha1>(&[format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat())
}

impl RemoteFile {
    pub fn etag(&self) -> String {
        if self.large { sha256(&self.bytes) } else { git_hash(&self.bytes) }
    }
}

impl Repository {
    pub fn with(mut self, name: &str, bytes: impl Into<Vec<u8>>, large: bool) -> Self {
        self.files.insert(name.into(), RemoteFile { bytes: Arc::new(bytes.into()), large });
        self
    }

    /// The files of a directory; those of safetensors are large.
    pub fn of(mut self, directory: &std::path::Path, prefix: &str) -> Self {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
            if path.is_file() {
                let large = name.ends_with(".safetensors");
                self = self.with(&format!("{prefix}{name}"), std::fs::read(&path).expect("a file"), large);
            }
        }
        self
    }
}

impl Server {
    pub fn start() -> Self {
        Self::start_as(|hub, store| (hub, store))
    }

    /// Under other addresses than those where the two listen: `public` makes them of these.
    pub fn start_as(public: impl FnOnce(String, String) -> (String, String)) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let (hub, store) = (listen(), listen());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("an address"));
        let (hub_url, store_url) = public(address(&hub), address(&store));
        let inner = Arc::new(Inner {
            hub: hub_url,
            store: store_url,
            repositories: Mutex::default(),
            faults: Mutex::new(Arc::new(Box::new(|_| Fault::None))),
            asked: Mutex::default(),
        });
        for (listener, side) in [(hub, Side::Hub), (store, Side::Store)] {
            let inner = inner.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let inner = inner.clone();
                    std::thread::spawn(move || inner.serve(stream, side));
                }
            });
        }
        Self { inner }
    }

    pub fn url(&self) -> &str {
        &self.inner.hub
    }

    pub fn store_url(&self) -> &str {
        &self.inner.store
    }

    pub fn add(&self, name: &str, repository: Repository) {
        self.inner.repositories.lock().expect("a lock").insert(name.into(), repository);
    }

    pub fn repository(&self, name: &str) -> Repository {
        self.inner.repositories.lock().expect("a lock")[name].clone()
    }

    pub fn faults(&self, faults: impl Fn(&Asked) -> Fault + Send + Sync + 'static) {
        *self.inner.faults.lock().expect("a lock") = Arc::new(Box::new(faults));
    }

    /// Requests since the last call, with the status of their answers.
    pub fn asked(&self) -> Vec<(Asked, u16)> {
        std::mem::take(&mut self.inner.asked.lock().expect("a lock"))
    }
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn json(value: &Value) -> Self {
        let headers = vec![("Content-Type", "application/json".to_owned())];
        Self { status: 200, headers, body: value.to_string().into_bytes() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl Inner {
    fn serve(&self, stream: TcpStream, side: Side) {
        let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
        while let Some(asked) = read_request(&mut reader, side) {
            let fault = self.faults.lock().expect("a lock").clone()(&asked);
            let mut reply = match side {
                Side::Hub => self.hub_reply(&asked),
                Side::Store => self.store_reply(&asked),
            };
            if let Fault::NoRange | Fault::OtherRange = fault {
                let range = match (&fault, asked.range) {
                    (Fault::OtherRange, Some((from, to))) => Some((from.saturating_sub(1), to)),
                    _ => None,
                };
                let other = Asked { range, ..asked.clone() };
                reply = if side == Side::Hub { self.hub_reply(&other) } else { self.store_reply(&other) };
            }
            let from = asked.range.map_or(0, |(from, _)| from);
            if !apply(&fault, &mut reply, &stream, from) {
                self.asked.lock().expect("a lock").push((asked, 0));
                return;
            }
            let (head, status) = (asked.method == "HEAD", reply.status);
            self.asked.lock().expect("a lock").push((asked, status));
            if !write_reply(&stream, reply, head, &fault) {
                return;
            }
        }
    }

    fn hub_reply(&self, asked: &Asked) -> Reply {
        let path = asked.path.split('?').next().unwrap_or_default();
        let repositories = self.repositories.lock().expect("a lock");
        let parts: Vec<String> = path.trim_matches('/').split('/').map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let missing = |code: &str| Reply::new(404).with("X-Error-Code", code);
        let known = |revision: &str| matches!(revision, "main" | COMMIT | "refs/pr/1");
        match parts.as_slice() {
            ["api", "models", organisation, name, rest @ ..] => {
                let id = format!("{organisation}/{name}");
                let Some(repository) = repositories.get(&id) else {
                    return Reply::new(401).with("X-Error-Code", "RepoNotFound");
                };
                match rest {
                    [] => Reply::json(&model_json(&id, repository)),
                    ["revision", revision] if known(revision) => Reply::json(&model_json(&id, repository)),
                    ["tree", revision] if known(revision) => Reply::json(&tree_json(repository)),
                    _ => missing("RevisionNotFound"),
                }
            }
            [organisation, name, "resolve", revision, file @ ..] => {
                let id = format!("{organisation}/{name}");
                let Some(repository) = repositories.get(&id) else {
                    return Reply::new(401).with("X-Error-Code", "RepoNotFound");
                };
                if !known(revision) {
                    return missing("RevisionNotFound");
                }
                let Some(file) = repository.files.get(&file.join("/")) else {
                    return missing("EntryNotFound").with("X-Repo-Commit", COMMIT);
                };
                if !file.large {
                    let reply = bytes_reply(&file.bytes, &format!("\"{}\"", file.etag()), asked);
                    return reply.with("X-Repo-Commit", COMMIT);
                }
                let location = format!("{}/blob/{}?Signature={SIGNATURE}", self.store, file.etag());
                Reply::new(302)
                    .with("Location", location)
                    .with("X-Repo-Commit", COMMIT)
                    .with("X-Linked-Etag", format!("\"{}\"", file.etag()))
                    .with("X-Linked-Size", file.bytes.len().to_string())
            }
            _ => Reply::new(404),
        }
    }

    fn store_reply(&self, asked: &Asked) -> Reply {
        if asked.authorization.is_some() || !asked.path.contains(SIGNATURE) {
            return Reply::new(403);
        }
        let hash = asked.path.trim_start_matches("/blob/").split('?').next().unwrap_or_default();
        let repositories = self.repositories.lock().expect("a lock");
        let file = repositories
            .values()
            .flat_map(|repository| repository.files.values())
            .find(|file| file.large && file.etag() == hash);
        match file {
            Some(file) => bytes_reply(&file.bytes, &format!("\"store-{}\"", &hash[..8]), asked),
            None => Reply::new(404),
        }
    }
}

/// As a list of a repository with its files is written.
fn model_json(id: &str, repository: &Repository) -> Value {
    let siblings: Vec<Value> = repository
        .files
        .iter()
        .map(|(name, file)| match (repository.bare_list, file.large) {
            (true, _) => json!({"rfilename": name}),
            (false, false) => json!({"rfilename": name, "size": file.bytes.len(), "blobId": file.etag()}),
            (false, true) => json!({
                "rfilename": name, "size": file.bytes.len(), "blobId": git_hash(b"the pointer"),
                "lfs": {"sha256": file.etag(), "size": file.bytes.len(), "pointerSize": 134},
            }),
        })
        .collect();
    json!({"_id": "1", "id": id, "modelId": id, "sha": COMMIT, "private": false, "gated": false, "disabled": false, "downloads": 0,
        "likes": 0, "tags": [], "siblings": siblings})
}

fn tree_json(repository: &Repository) -> Value {
    let file = |(name, file): (&String, &RemoteFile)| {
        let mut entry = json!({"type": "file", "path": name, "size": file.bytes.len(), "oid": git_hash(&file.bytes)});
        if file.large {
            entry["lfs"] = json!({"oid": file.etag(), "size": file.bytes.len(), "pointerSize": 134});
        }
        entry
    };
    repository.files.iter().map(file).collect()
}

/// The file, or the range of it that is asked for.
fn bytes_reply(bytes: &[u8], etag: &str, asked: &Asked) -> Reply {
    let same = asked.if_range.as_deref().is_none_or(|known| known == etag);
    let Some((from, to)) = asked.range.filter(|_| same) else {
        return Reply { body: bytes.to_vec(), ..Reply::new(200).with("ETag", etag).with("Accept-Ranges", "bytes") };
    };
    let to = to.unwrap_or(usize::MAX).min(bytes.len().saturating_sub(1));
    if from >= bytes.len() || from > to {
        return Reply::new(416).with("Content-Range", format!("bytes */{}", bytes.len()));
    }
    let reply = Reply::new(206).with("ETag", etag).with("Content-Range", format!("bytes {from}-{to}/{}", bytes.len()));
    Reply { body: bytes[from..=to].to_vec(), ..reply }
}

/// Changes an answer; false when the connection is to end at once.
fn apply(fault: &Fault, reply: &mut Reply, mut stream: &TcpStream, from: usize) -> bool {
    match fault {
        Fault::Status(status, headers) => {
            *reply = Reply::new(*status);
            reply.headers.clone_from(headers);
        }
        Fault::Body(kind, body) => *reply = Reply { body: body.clone(), ..Reply::new(200).with("Content-Type", *kind) },
        Fault::Redirect(location) => *reply = Reply::new(302).with("Location", location.clone()),
        Fault::Flip(at) => {
            if let Some(byte) = at.checked_sub(from).and_then(|at| reply.body.get_mut(at)) {
                *byte ^= 1;
            }
        }
        Fault::Short(by) => reply.body.truncate(reply.body.len().saturating_sub(*by)),
        Fault::Long => reply.body.extend(b"more"),
        Fault::Etag(etag) => {
            reply.headers.retain(|(name, _)| *name != "ETag");
            reply.headers.push(("ETag", (*etag).to_owned()));
        }
        Fault::Linked(hash) => {
            reply.headers.retain(|(name, _)| *name != "X-Linked-Etag");
            reply.headers.push(("X-Linked-Etag", format!("\"{hash}\"")));
        }
        Fault::Garbage => {
            let _ = stream.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n");
            return false;
        }
        Fault::None | Fault::Cut(_) | Fault::Stall(..) | Fault::NoRange | Fault::OtherRange => {}
    }
    true
}

/// False when the connection has ended.
fn write_reply(mut stream: &TcpStream, reply: Reply, head: bool, fault: &Fault) -> bool {
    let mut text = format!("HTTP/1.1 {} Status\r\n", reply.status);
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    let sized = !matches!(fault, Fault::Long);
    if sized {
        text += &format!("Content-Length: {}\r\n", reply.body.len());
    } else {
        text += "Connection: close\r\n";
    }
    text += "\r\n";
    if stream.write_all(text.as_bytes()).is_err() {
        return false;
    }
    if head {
        return true;
    }
    let end = match fault {
        Fault::Cut(at) | Fault::Stall(at, _) => (*at).min(reply.body.len()),
        _ => reply.body.len(),
    };
    let sent = stream.write_all(&reply.body[..end]).is_ok();
    match fault {
        Fault::Cut(_) => false,
        Fault::Stall(_, time) => {
            let _ = stream.flush();
            std::thread::sleep(*time);
            false
        }
        _ => sent && sized,
    }
}

fn read_request(reader: &mut BufReader<TcpStream>, side: Side) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.by_ref().take(64 << 10).read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let mut words = lines.first()?.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let header = |name: &str| {
        lines.iter().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let range = header("range").and_then(|range| {
        let (from, to) =
            range.strip_prefix("bytes=")?.split_once('-').map(|(from, to)| (from.to_owned(), to.to_owned()))?;
        Some((from.parse().ok()?, to.parse().ok()))
    });
    Some(Asked { side, method, path, range, if_range: header("if-range"), authorization: header("authorization") })
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        let code = more
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            _ => {
                bytes.push(first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
