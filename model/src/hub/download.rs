//! One file, from the hub into a blob of the cache: in parts, several at once where it is large, from where it was cut, checked by its
//! hash before it gets its name.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::cache::Repository;
use super::client::{Answer, Client, Failure, Request, Retries, content_length, cut, header};
use super::error::{HubError, HubResult};
use super::listing::Expected;
use super::lock::Lock;
use super::partial::{PartWriter, Partial};
use super::progress::{OnPull, PullEvent};
use crate::file_hash::FileHash;

/// Bytes that are read and written at once.
const PIECE: usize = 128 << 10;
/// A sender that is slower than this for [`SLOW_TIME`] is asked again, in bytes per second.
const SLOW: f64 = 1024.0;
const SLOW_TIME: Duration = Duration::from_secs(60);
/// Times that a file begins anew because what was sent did not fit together.
const MOST_RESTARTS: u32 = 2;

/// A file to be downloaded.
#[derive(Debug)]
pub(super) struct Download<'a> {
    pub client: &'a Client,
    pub repository: &'a Repository,
    /// For messages.
    pub model: &'a str,
    pub file: &'a str,
    /// Path below the endpoint.
    pub path: &'a str,
    pub expected: &'a Expected,
}

/// Why a part, and with it the attempt, ended.
enum Stop {
    Error(HubError),
    /// Asking again may help.
    Again(Failure),
    /// What is there belongs to other bytes than those that are sent now.
    Restart(String),
    /// The server sends whole files alone.
    NoRanges,
    /// Another part failed.
    Stopped,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Final(error) => Self::Error(error),
            other => Self::Again(other),
        }
    }
}

impl From<HubError> for Stop {
    fn from(error: HubError) -> Self {
        Self::Error(error)
    }
}

impl Download<'_> {
    /// Downloads the file unless its blob is there; gives the blob.
    ///
    /// # Errors
    /// [`HubError::Integrity`] when what comes is not what the hub lists; what else [`HubError`] names.
    pub fn run(&self, on: OnPull<'_>) -> HubResult<PathBuf> {
        let blob = self.repository.blob(&self.expected.hash);
        let file = self.file;
        let waits = |first| {
            if first {
                on(PullEvent::Waiting { name: file });
            }
            self.client.unless_cancelled()
        };
        let _lock = Lock::take(&self.repository.lock_path(&self.expected.hash), waits)?;
        let length = self.expected.length;
        // A file of another length was cut by a crash, or by hand.
        if fs::metadata(&blob).is_ok_and(|blob| blob.is_file() && blob.len() == length) {
            on(PullEvent::File { name: file, length, kept: length });
            on(PullEvent::Done { name: file });
            return Ok(blob);
        }
        let mut restarts = 0u32;
        let partial = Partial::open(&self.repository.blobs(), self.expected, self.client.options().part_bytes)?;
        on(PullEvent::File { name: file, length, kept: partial.written() });
        loop {
            let ended = self.fetch(&partial, on);
            let reason = match ended {
                Ok(()) if self.is_right(&partial, on)? => break,
                Ok(()) => "its hash is not the one that the hub lists".to_owned(),
                Err(Stop::Restart(reason)) => reason,
                Err(Stop::NoRanges) => {
                    on(PullEvent::Lost(partial.reset()?));
                    partial.as_one_part();
                    continue;
                }
                Err(stop) => {
                    // What is there is worth more than an error about noting it.
                    let _ = partial.keep();
                    return Err(match stop {
                        Stop::Error(error) => error,
                        Stop::Again(failure) => failure.into_error(self.client.options().attempts),
                        _ => HubError::Network {
                            url: self.client.endpoint(),
                            message: format!("{file}: the download stopped"),
                        },
                    });
                }
            };
            on(PullEvent::Lost(partial.reset()?));
            restarts = restarts.saturating_add(1);
            if restarts > MOST_RESTARTS {
                partial.discard();
                let message =
                    format!("{reason} (after {MOST_RESTARTS} new beginnings): nothing of it is kept, try again later");
                return Err(HubError::Integrity { file: file.into(), message });
            }
            on(PullEvent::Retry { reason: &format!("{file}: {reason}"), wait: Duration::ZERO });
        }
        partial.finish(&blob)?;
        on(PullEvent::Done { name: file });
        Ok(blob)
    }

    fn is_right(&self, partial: &Partial, on: OnPull<'_>) -> HubResult<bool> {
        let mut file = partial.read()?;
        let matches = self.expected.hash.matches(&mut file, self.expected.length, |bytes| on(PullEvent::Hashed(bytes)));
        matches.map_err(|source| HubError::io(self.repository.blobs(), source))
    }

    /// Gets every part that is not there.
    fn fetch(&self, partial: &Partial, on: OnPull<'_>) -> Result<(), Stop> {
        let missing: Vec<usize> = (0..partial.parts())
            .filter(|&part| {
                let (_, length, written) = partial.part(part);
                written < length
            })
            .collect();
        let Some((&first, rest)) = missing.split_first() else { return Ok(()) };
        let stop = AtomicBool::new(false);
        // Whether the server sends ranges is known after the first answer.
        let answer = self.first_answer(partial, first, on)?;
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<Stop>> = Mutex::new(None);
        let fail = |reason: Stop| {
            // The first reason; the others stop because of it.
            if let Ok(mut failed) = failed.lock()
                && failed.is_none()
            {
                *failed = Some(reason);
            }
            stop.store(true, Ordering::Relaxed);
        };
        let work = |mut answer: Option<Answer>, mut part: Option<usize>| {
            loop {
                let Some(current) = part.take().or_else(|| rest.get(next.fetch_add(1, Ordering::Relaxed)).copied())
                else {
                    return;
                };
                if let Err(reason) = self.get_part(partial, current, answer.take(), &stop, on) {
                    return fail(reason);
                }
            }
        };
        let workers = self.client.options().connections.clamp(1, 16).min(missing.len());
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(|| work(None, None));
            }
            work(Some(answer), Some(first));
        });
        match failed.into_inner() {
            Ok(None) => Ok(()),
            Ok(Some(reason)) => Err(reason),
            Err(_) => Err(Stop::Stopped),
        }
    }

    fn first_answer(&self, partial: &Partial, part: usize, on: OnPull<'_>) -> Result<Answer, Stop> {
        let mut retries = Retries::new(self.client, on);
        loop {
            match self.ask(partial, part) {
                Ok(answer) => return Ok(answer),
                Err(Stop::Again(failure)) => retries.wait(failure)?,
                Err(stop) => return Err(stop),
            }
        }
    }

    /// Gets the rest of one part, in as many attempts as bring something and a few more.
    fn get_part(
        &self,
        partial: &Partial,
        part: usize,
        mut answer: Option<Answer>,
        stop: &AtomicBool,
        on: OnPull<'_>,
    ) -> Result<(), Stop> {
        let mut retries = Retries::new(self.client, on);
        loop {
            let (_, length, before) = partial.part(part);
            if before >= length {
                return Ok(());
            }
            let ended = match answer.take() {
                Some(answer) => self.receive(answer, partial, part, stop, on),
                None => self.ask(partial, part).and_then(|answer| self.receive(answer, partial, part, stop, on)),
            };
            if partial.part(part).2 > before {
                retries.forget();
            }
            match ended {
                Ok(()) => {}
                Err(Stop::Again(failure)) => retries.wait(failure)?,
                Err(other) => return Err(other),
            }
        }
    }

    /// Asks for the rest of a part, and makes sure that what is answered is the rest of it.
    fn ask(&self, partial: &Partial, part: usize) -> Result<Answer, Stop> {
        let (start, length, written) = partial.part(part);
        let whole = partial.parts() == 1;
        let from = start.saturating_add(written);
        let to = start.saturating_add(length).saturating_sub(1);
        let sender = partial.sender_etag();
        // If-Range asks for the whole file where its bytes are other ones now.
        let known = sender.as_deref().filter(|_| partial.written() > 0);
        let range = (!whole || written > 0).then_some((from, to));
        let request = Request { path: self.path, model: self.model, file: Some(self.file), range, if_range: known };
        let answer = match self.client.get(request) {
            Err(Failure::Range { .. }) if written > 0 || !whole => {
                return Err(Stop::Restart("the server has no such range of the file".into()));
            }
            answer => answer?,
        };
        let wrong = |message: String| Stop::from(HubError::Integrity { file: self.file.into(), message });
        if let Some(stated) = answer.stated_etag.as_deref().and_then(FileHash::from_etag)
            && stated != self.expected.hash
        {
            return Err(wrong("the hub has another version of it now than it listed: run this again".into()));
        }
        if let Some(coding) = header(&answer.headers, "content-encoding").filter(|coding| *coding != "identity") {
            let message =
                format!("the file comes encoded ({}), which was not asked for", super::address::header_shown(coding));
            return Err(HubError::Answer { url: answer.url, message }.into());
        }
        let sends = strong_etag(&answer);
        if answer.status == 206 {
            let Some(sent) = content_range(&answer) else {
                return Err(Stop::Again(Failure::again(answer.url, "the answer does not say which bytes it holds")));
            };
            if sent != (from, to, self.expected.length) {
                let message = format!(
                    "the server sends bytes {} to {} of {} instead of {from} to {to} of {}",
                    sent.0, sent.1, sent.2, self.expected.length
                );
                return Err(if sent.2 == self.expected.length {
                    Stop::Again(Failure::again(answer.url, message))
                } else {
                    wrong(message)
                });
            }
            if let (Some(known), Some(sends)) = (known, &sends)
                && known != sends
            {
                return Err(Stop::Restart("the server has other bytes now".into()));
            }
        } else if range.is_some() {
            return Err(if whole {
                Stop::Restart("the server sends the file from its beginning".into())
            } else {
                Stop::NoRanges
            });
        } else if let Some(length) = content_length(&answer.headers).filter(|&length| length != self.expected.length) {
            let page = header(&answer.headers, "content-type").is_some_and(|kind| kind.starts_with("text/html"));
            let page = if page { "; it is a web page: does this network ask for a login?" } else { "" };
            return Err(Stop::Restart(format!(
                "the server sends {length} bytes, the hub lists {}{page}",
                self.expected.length
            )));
        }
        partial.set_sender_etag(sends.or(sender));
        Ok(answer)
    }

    /// Writes what is sent.
    fn receive(
        &self,
        mut answer: Answer,
        partial: &Partial,
        part: usize,
        stop: &AtomicBool,
        on: OnPull<'_>,
    ) -> Result<(), Stop> {
        let mut writer: PartWriter<'_> = partial.writer(part)?;
        let sized = content_length(&answer.headers).is_some();
        let mut reader = answer.body.as_reader();
        let mut piece = vec![0; PIECE];
        let (mut since, mut came) = (Instant::now(), 0u64);
        while writer.left() > 0 {
            if stop.load(Ordering::Relaxed) {
                return Err(Stop::Stopped);
            }
            self.client.unless_cancelled()?;
            let most = usize::try_from(writer.left()).unwrap_or(PIECE).min(PIECE);
            let read = match reader.read(piece.get_mut(..most).unwrap_or_default()) {
                Ok(0) => return Err(Failure::again(answer.url, "the connection was cut").into()),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::again(answer.url, cut(&error)).into()),
            };
            writer.write(piece.get(..read).unwrap_or_default())?;
            on(PullEvent::Bytes(read as u64));
            came = came.saturating_add(read as u64);
            let elapsed = since.elapsed();
            if elapsed > SLOW_TIME {
                if (came as f64) < SLOW * elapsed.as_secs_f64() {
                    return Err(Failure::again(answer.url, "the server sends less than 1 KiB a second").into());
                }
                (since, came) = (Instant::now(), 0);
            }
        }
        // A body without a stated length may go on.
        if !sized && reader.read(piece.get_mut(..1).unwrap_or_default()).is_ok_and(|read| read > 0) {
            let message = format!("the server sends more than what was asked for of {} bytes", self.expected.length);
            return Err(Stop::Restart(message));
        }
        Ok(())
    }
}

/// The ETag of who sends the bytes, where it tells one version from another byte by byte.
fn strong_etag(answer: &Answer) -> Option<String> {
    let etag = header(&answer.headers, "etag")?;
    (etag.starts_with('"') && etag.len() <= 256).then(|| etag.to_owned())
}

/// First byte, last byte and length of the file of `Content-Range: bytes 0-9/10`.
fn content_range(answer: &Answer) -> Option<(u64, u64, u64)> {
    let (range, length) = header(&answer.headers, "content-range")?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    Some((from.trim().parse().ok()?, to.trim().parse().ok()?, length.trim().parse().ok()?))
}
