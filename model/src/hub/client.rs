//! Requests to a hub: redirects, who is given the token, what is tried again.
//!
//! # Untrusted input
//! The server, and whoever it redirects to, may answer anything. Redirects are followed here and not by the HTTP library: a few, to
//! http and https alone, never from https to http. The token goes to the origin of the endpoint alone. Answers that are read into
//! memory have a limit in bytes and in time.

use std::io::Read;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Response};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::address::{Address, header_shown};
use super::error::{HubError, HubResult};
use super::options::{HubOptions, Token};
use super::progress::{OnPull, PullEvent};
use super::trust;
use crate::cancel::CancelHandle;
use crate::checkpoint::recognise;
use crate::config::json;

/// Redirects that are followed for one request.
const MOST_REDIRECTS: usize = 5;
/// Largest answer of the API, in bytes; the list of a repository with 100,000 files has about 25 MB.
const MAX_JSON: u64 = 32 << 20;
/// Patience for an answer that is not needed: that of `huggingface_hub` for the ETag of a file.
const HURRIED_PATIENCE: Duration = Duration::from_secs(10);

/// As good as any longer time.
const LONGEST_PATIENCE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often a wait asks whether it was cancelled.
const MOMENT: Duration = Duration::from_millis(100);

/// Asks one hub.
#[derive(Debug)]
pub(super) struct Client {
    /// Made for the first request: the authorities of the system are read then.
    agent: OnceLock<Agent>,
    endpoint: Address,
    token: Option<Token>,
    options: HubOptions,
    /// Ends every request.
    cancel: CancelHandle,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    /// Path below the endpoint, encoded, with its query.
    pub path: &'a str,
    /// The model and its file, for messages.
    pub model: &'a str,
    pub file: Option<&'a str>,
    /// First and last byte.
    pub range: Option<(u64, u64)>,
    /// The ETag that the bytes before belong to.
    pub if_range: Option<&'a str>,
}

/// A successful answer, 200 or 206.
pub(super) struct Answer {
    pub status: u16,
    /// The ETag that the endpoint itself states of the file.
    pub stated_etag: Option<String>,
    /// The length that the endpoint itself states of the file.
    pub stated_length: Option<u64>,
    /// The headers of the last answer.
    pub headers: HeaderMap,
    pub body: Body,
    /// Who gave it, for messages.
    pub url: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// Asking again would not help.
    Final(HubError),
    /// Asking again may help.
    Again { url: String, reason: String, wait: Option<Duration>, limited: bool },
    /// The range that was asked for is not in the file.
    Range { url: String },
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

impl Failure {
    pub fn again(url: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Again { url: url.into(), reason: reason.into(), wait: None, limited: false }
    }

    /// What it is after the last attempt.
    pub fn into_error(self, attempts: u32) -> HubError {
        match self {
            Self::Final(error) => error,
            Self::Range { url } => HubError::Answer { url, message: "the server has no such range of the file".into() },
            Self::Again { url, wait, limited: true, .. } => {
                let after =
                    wait.map_or_else(String::new, |wait| format!("; the server asks to wait {} s", wait.as_secs()));
                let message = format!(
                    "too many requests (429){after}: try again later; with a token (HF_TOKEN) more are allowed"
                );
                HubError::RateLimited { url, message }
            }
            Self::Again { url, reason, .. } => {
                let times = if attempts == 1 { "attempt" } else { "attempts" };
                let message = format!("{reason} ({attempts} {times}); check the network and run this again");
                HubError::Network { url, message }
            }
        }
    }
}

/// Attempts at one thing.
pub(super) struct Retries<'a> {
    client: &'a Client,
    on: OnPull<'a>,
    failed: u32,
}

impl<'a> Retries<'a> {
    pub fn new(client: &'a Client, on: OnPull<'a>) -> Self {
        Self { client, on, failed: 0 }
    }

    /// After an attempt that brought something.
    pub fn forget(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// The failure, when another attempt would not help or there were enough; [`HubError::Cancelled`].
    pub fn wait(&mut self, failure: Failure) -> HubResult<()> {
        let options = &self.client.options;
        self.failed = self.failed.saturating_add(1);
        let Failure::Again { url, reason, wait, limited } = &failure else {
            return Err(failure.into_error(self.failed));
        };
        let doubled = options.pause.saturating_mul(1 << self.failed.saturating_sub(1).min(6));
        let pause = wait.unwrap_or(doubled);
        if self.failed >= options.attempts || (*limited && pause > options.longest_wait) {
            return Err(failure.into_error(self.failed));
        }
        // A server that is in trouble must not hold us for hours.
        let pause = pause.min(options.longest_wait);
        (self.on)(PullEvent::Retry { reason: &format!("{url}: {reason}"), wait: pause });
        self.client.sleep(pause)
    }
}

impl Client {
    /// # Errors
    /// [`HubError::Setting`] when the endpoint is no address of http or https.
    pub fn new(options: &HubOptions) -> HubResult<Self> {
        let wrong = |message| HubError::Setting { variable: "HF_ENDPOINT", message };
        let endpoint = Address::parse(&options.endpoint).map_err(wrong)?;
        let origin = endpoint.origin();
        let token = options.token.clone().filter(|_| origin.https || origin.is_loopback());
        if token.is_none() && options.token.is_some() {
            tracing::warn!(
                "the token is not sent to {}, which is not encrypted: use an address of https",
                endpoint.shown()
            );
        }
        let (options, cancel) = (options.clone(), CancelHandle::default());
        Ok(Self { agent: OnceLock::new(), endpoint, token, options, cancel })
    }

    fn agent(&self) -> HubResult<&Agent> {
        if let Some(agent) = self.agent.get() {
            return Ok(agent);
        }
        let authorities = trust::authorities(self.options.certificates.as_deref())?;
        // Beyond that the clock overflows.
        let patience = Some(self.options.patience.min(LONGEST_PATIENCE));
        let agent = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(authorities).build())
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("emberlm/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(patience)
            .timeout_connect(patience)
            .timeout_send_request(patience)
            .timeout_recv_response(patience)
            .timeout_per_read(patience)
            .build()
            .new_agent();
        // Another thread may have been first.
        Ok(self.agent.get_or_init(|| agent))
    }

    pub fn options(&self) -> &HubOptions {
        &self.options
    }

    /// The same hub, asked once and with little patience: for an answer that is not needed.
    pub fn hurried(&self) -> Self {
        let patience = self.options.patience.min(HURRIED_PATIENCE);
        let options = HubOptions { attempts: 1, patience, ..self.options.clone() };
        let (endpoint, token, cancel) = (self.endpoint.clone(), self.token.clone(), self.cancel.clone());
        Self { agent: OnceLock::new(), endpoint, token, options, cancel }
    }

    pub fn cancel_handle(&self) -> &CancelHandle {
        &self.cancel
    }

    /// # Errors
    /// [`HubError::Cancelled`].
    pub fn unless_cancelled(&self) -> HubResult<()> {
        if self.cancel.is_cancelled() { Err(HubError::Cancelled) } else { Ok(()) }
    }

    /// Waits.
    ///
    /// # Errors
    /// [`HubError::Cancelled`], a moment after it was.
    fn sleep(&self, mut wait: Duration) -> HubResult<()> {
        while !wait.is_zero() {
            self.unless_cancelled()?;
            let moment = wait.min(MOMENT);
            std::thread::sleep(moment);
            wait = wait.saturating_sub(moment);
        }
        self.unless_cancelled()
    }

    /// The endpoint, as it is shown.
    pub fn endpoint(&self) -> String {
        self.endpoint.shown()
    }

    /// Asks once and follows redirects.
    pub fn get(&self, request: Request<'_>) -> Result<Answer, Failure> {
        self.ask(request, false)
    }

    /// Asks once for the headers alone; a redirect to another origin is not followed, since the endpoint states the hash and the length
    /// of the file beside it.
    pub fn head(&self, request: Request<'_>) -> Result<Answer, Failure> {
        self.ask(request, true)
    }

    /// JSON of the API, asked for until it comes.
    ///
    /// # Errors
    /// As [`Retries::wait`]; [`HubError::Answer`] when it is not the JSON that was expected.
    pub fn json<T: DeserializeOwned>(&self, request: Request<'_>, on: OnPull<'_>) -> HubResult<T> {
        let mut retries = Retries::new(self, on);
        loop {
            match self.get(request).and_then(|answer| self.read_json(answer)) {
                Ok(json) => return Ok(json),
                Err(failure) => retries.wait(failure)?,
            }
        }
    }

    fn read_json<T: DeserializeOwned>(&self, mut answer: Answer) -> Result<T, Failure> {
        let url = answer.url.clone();
        let wrong =
            |message: String| Failure::Final(HubError::Answer { url: url.clone(), message: self.hide(&message) });
        let deadline = Instant::now().checked_add(self.options.patience.saturating_mul(4));
        let length = content_length(&answer.headers);
        let mut bytes = Vec::new();
        let mut reader = answer.body.as_reader().take(MAX_JSON.saturating_add(1));
        loop {
            let mut piece = (&mut reader).take(64 << 10);
            match piece.read_to_end(&mut bytes) {
                Ok(0) => break,
                Ok(_) if deadline.is_some_and(|deadline| Instant::now() > deadline) => {
                    return Err(Failure::again(url, "the answer comes too slowly"));
                }
                Ok(_) => {}
                Err(error) => return Err(Failure::again(url, cut(&error))),
            }
        }
        if bytes.len() as u64 > MAX_JSON {
            return Err(wrong(format!("the answer is longer than the {MAX_JSON} bytes that are accepted")));
        }
        if length.is_some_and(|length| length != bytes.len() as u64) {
            return Err(Failure::again(url, "the answer was cut"));
        }
        if bytes.trim_ascii_start().starts_with(b"<") || recognise(&bytes).is_some() {
            return Err(wrong(
                "answered with a web page instead of JSON: is HF_ENDPOINT a hub, and does this network ask for a login?".into(),
            ));
        }
        json::from_slice(&bytes).map_err(|message| wrong(format!("the answer {message}")))
    }

    fn ask(&self, request: Request<'_>, head: bool) -> Result<Answer, Failure> {
        let redirect_error = |url: String, message: String| {
            Failure::Final(HubError::Redirect { url: self.hide(&url), message: self.hide(&message) })
        };
        self.unless_cancelled()?;
        let start = self.endpoint.join_path(request.path);
        let mut url = start.map_err(|message| HubError::Answer { url: self.endpoint(), message })?;
        let (mut stated_etag, mut stated_length) = (None, None);
        for _ in 0..=MOST_REDIRECTS {
            let ours = url.origin() == self.endpoint.origin();
            let response = self.send(&url, request, head, ours)?;
            let (parts, body) = response.into_parts();
            let (status, headers) = (parts.status.as_u16(), parts.headers);
            let shown = self.hide(&url.shown());
            let redirects = matches!(status, 301 | 302 | 303 | 307 | 308);
            if ours {
                let of_file = !redirects && status == 200;
                let etag = header(&headers, "x-linked-etag").or_else(|| header(&headers, "etag"));
                stated_etag = etag.map(str::to_owned).or(stated_etag);
                let linked = header(&headers, "x-linked-size").and_then(|text| text.parse().ok());
                stated_length = linked.or(content_length(&headers).filter(|_| of_file)).or(stated_length);
            }
            if !redirects {
                self.check_status(status, &headers, &shown, ours, request)?;
                return Ok(Answer { status, stated_etag, stated_length, headers, body, url: shown });
            }
            let location = header(&headers, "location")
                .ok_or_else(|| redirect_error(shown.clone(), "redirects without saying where to".into()))?;
            let next = url.redirect(location).map_err(|message| redirect_error(shown.clone(), message))?;
            if head && next.origin() != self.endpoint.origin() {
                return Ok(Answer { status: 200, stated_etag, stated_length, headers, body, url: shown });
            }
            url = next;
        }
        Err(redirect_error(url.shown(), format!("more than {MOST_REDIRECTS} redirects")))
    }

    /// One request to one address. `ours`: it has the origin of the endpoint.
    fn send(&self, url: &Address, request: Request<'_>, head: bool, ours: bool) -> Result<Response<Body>, Failure> {
        let agent = self.agent()?;
        let mut builder = if head { agent.head(url.text()) } else { agent.get(url.text()) };
        if let Some(token) = self.token.as_ref().filter(|_| ours) {
            builder = builder.header("authorization", format!("Bearer {}", token.reveal()));
        }
        if let Some((from, to)) = request.range {
            builder = builder.header("range", format!("bytes={from}-{to}"));
            if let Some(etag) = request.if_range {
                builder = builder.header("if-range", etag);
            }
        }
        builder.call().map_err(|error| self.failure(&url.shown(), &error))
    }

    /// What an error of the HTTP library means. Its own text is not shown where it may hold an address.
    fn failure(&self, url: &str, error: &ureq::Error) -> Failure {
        let url = self.hide(url);
        let refusal = match error {
            ureq::Error::Io(error) => trust::refusal(error, self.options.certificates.as_deref()),
            _ => None,
        };
        if let Some(message) = refusal {
            return Failure::Final(HubError::Network { url, message });
        }
        let reason = match error {
            ureq::Error::Io(error) => cut(error),
            ureq::Error::Timeout(_) => format!("no answer within {:?}", self.options.patience),
            ureq::Error::HostNotFound => "the host is not found".into(),
            ureq::Error::ConnectionFailed => "no connection".into(),
            ureq::Error::Protocol(_) => "the answer is not HTTP".into(),
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
                let message = "no encrypted connection: is the server one of https?".to_owned();
                return Failure::Final(HubError::Network { url, message });
            }
            ureq::Error::InvalidProxyUrl => {
                let message =
                    "the proxy's address in the environment (HTTPS_PROXY, HTTP_PROXY) is not valid".to_owned();
                return Failure::Final(HubError::Network { url, message });
            }
            _ => "the request failed".into(),
        };
        Failure::again(url, reason)
    }

    /// # Errors
    /// What a status other than 200 and 206 means.
    fn check_status(
        &self,
        status: u16,
        headers: &HeaderMap,
        url: &str,
        ours: bool,
        request: Request<'_>,
    ) -> Result<(), Failure> {
        let model = request.model.to_owned();
        match status {
            200 | 206 => Ok(()),
            416 if request.range.is_some() => Err(Failure::Range { url: url.into() }),
            429 => {
                let wait = header(headers, "retry-after").and_then(retry_after);
                Err(Failure::Again { url: url.into(), reason: "too many requests (429)".into(), wait, limited: true })
            }
            // Signed addresses expire: asking the endpoint again gives a new one.
            401 | 403 | 404 | 410 if !ours => {
                Err(Failure::again(url, format!("the store that the hub redirects to answered {status}")))
            }
            401 | 403 => {
                let message = self.denied(status, header(headers, "x-error-code").unwrap_or_default(), request);
                Err(HubError::Denied { model, message }.into())
            }
            404 => {
                let message = match (header(headers, "x-error-code"), request.file) {
                    (Some("RevisionNotFound"), _) => {
                        "there is no such revision: give the name of a branch, a tag or a commit".into()
                    }
                    (Some("EntryNotFound"), Some(file)) => format!("{file} is not there any more: run this again"),
                    _ => format!("there is no such model or revision at {}: check the name", self.endpoint()),
                };
                Err(HubError::NotFound { model, message }.into())
            }
            408 | 416 | 425 | 500..=599 => {
                let wait = header(headers, "retry-after").and_then(retry_after);
                let reason = format!("the server answered {status}");
                Err(Failure::Again { url: url.into(), reason, wait, limited: false })
            }
            _ => Err(HubError::Answer { url: url.into(), message: format!("the server answered {status}") }.into()),
        }
    }

    fn denied(&self, status: u16, code: &str, request: Request<'_>) -> String {
        let endpoint = self.endpoint();
        let page = format!(
            "{}/{}",
            endpoint.trim_end_matches('/'),
            request.model.split(['@', ':']).next().unwrap_or_default()
        );
        let login = "log in (`hf auth login`) or set HF_TOKEN to a token that may read it";
        if code == "GatedRepo" || status == 403 {
            return match self.token {
                Some(_) => {
                    format!("is gated: accept its conditions at {page} with the account of your token ({status})")
                }
                None => format!("is gated: accept its conditions at {page}, then {login} ({status})"),
            };
        }
        match self.token {
            Some(_) => format!(
                "does not exist, or your token is not valid or may not read it: check the name and HF_TOKEN ({status})"
            ),
            None => format!("does not exist, or is private or gated: check the name, or {login} ({status})"),
        }
    }

    fn hide(&self, text: &str) -> String {
        self.token.as_ref().map_or_else(|| text.to_owned(), |token| token.hide_in(text))
    }
}

/// A header that is text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The length of a body, where it is stated.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    header(headers, "content-length")?.trim().parse().ok()
}

/// `Retry-After`: seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    Some(at.to_utc().signed_duration_since(chrono::Utc::now()).to_std().unwrap_or_default())
}

/// What an error of a connection is called.
pub(super) fn cut(error: &std::io::Error) -> String {
    // What reads a body wraps the errors of the HTTP library.
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    match error.kind() {
        _ if matches!(inner, Some(ureq::Error::Timeout(_))) => "the server stopped sending".into(),
        std::io::ErrorKind::UnexpectedEof => "the connection was cut".into(),
        std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => "the server stopped sending".into(),
        std::io::ErrorKind::ConnectionRefused => "the connection is refused".into(),
        kind @ (std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::ConnectionAborted) => {
            header_shown(&kind.to_string())
        }
        _ => header_shown(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read() {
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let later = (chrono::Utc::now() + chrono::Duration::seconds(90)).to_rfc2822();
        let wait = retry_after(&later).unwrap().as_secs();
        assert!((85..=90).contains(&wait), "{wait}");
        assert_eq!((retry_after("soon"), retry_after("-1")), (None, None));
    }
}
