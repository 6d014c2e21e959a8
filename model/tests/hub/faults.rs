//! Each fault alone: what comes of it, how often it is tried, and that nothing wrong is kept.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use emberlm_model::hub::{Hub, HubName, PullEvent};

use crate::hub_support::{Asked, Fault, Server, Side};
use crate::support::{NAME, NEEDED, PART, assert_blobs, assert_files, hub, kind, options, pull, repository, server};

/// Pulls with a fault that is there `times` times; gives the kind of the error, or "Ok".
#[track_caller]
fn outcome(
    server: &Server,
    times: usize,
    hit: impl Fn(&Asked) -> bool + Send + Sync + 'static,
    fault: Fault,
) -> String {
    let cache = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    server.asked();
    server.faults(move |asked| {
        if hit(asked) && count.fetch_add(1, Ordering::Relaxed) < times { fault.clone() } else { Fault::None }
    });
    let pulled = pull(&hub(server, cache.path()), NAME);
    assert_blobs(cache.path());
    assert!(server.asked().len() < 200);
    match pulled {
        Ok(directory) => {
            assert_files(&directory, &repository(), &NEEDED);
            "Ok".into()
        }
        Err(error) => {
            assert!(!cache.path().join("models--org--model/refs/main").exists(), "{error}");
            // The cache is none the worse for it.
            server.faults(|_| Fault::None);
            assert_files(&pull(&hub(server, cache.path()), NAME).unwrap(), &repository(), &NEEDED);
            kind(&error)
        }
    }
}

const ALWAYS: usize = usize::MAX;

fn list(asked: &Asked) -> bool {
    asked.path.starts_with("/api/")
}

fn small(asked: &Asked) -> bool {
    asked.path.ends_with("generation_config.json")
}

/// The large file of many parts, in the store.
fn large(asked: &Asked) -> bool {
    asked.side == Side::Store && asked.path.contains(&repository().files["model-00001-of-00002.safetensors"].etag())
}

/// The file of one part, in the store.
fn single(asked: &Asked) -> bool {
    asked.side == Side::Store && asked.path.contains(&repository().files["model-00002-of-00002.safetensors"].etag())
}

#[test]
fn what_passes_is_tried_again() {
    let server = server();
    let wait = |header: &str| Fault::Status(429, vec![("Retry-After", header.into())]);
    for hit in [list, small, large, single] {
        for fault in [
            Fault::Status(500, vec![]),
            Fault::Status(502, vec![]),
            Fault::Status(503, vec![("Retry-After", "0".into())]),
            Fault::Status(408, vec![]),
            wait("0"),
            wait("Wed, 21 Oct 2015 07:28:00 GMT"),
            wait("nonsense"),
            Fault::Cut(0),
            Fault::Cut(1),
            Fault::Garbage,
        ] {
            assert_eq!(outcome(&server, 3, hit, fault.clone()), "Ok", "{fault:?}");
        }
    }
    // Signed addresses expire.
    for status in [401, 403, 404, 410] {
        assert_eq!(outcome(&server, 2, large, Fault::Status(status, vec![])), "Ok", "{status}");
    }
}

#[test]
fn what_does_not_pass_is_named() {
    let server = server();
    let gone = |status| Fault::Status(status, vec![]);
    for hit in [list, small, large, single] {
        for (fault, expected) in [
            (gone(500), "Network"),
            (Fault::Cut(0), "Network"),
            (Fault::Garbage, "Network"),
            (Fault::Status(429, vec![("Retry-After", "0".into())]), "RateLimited"),
            (Fault::Status(429, vec![("Retry-After", "100000".into())]), "RateLimited"),
            (gone(418), "Answer"),
        ] {
            assert_eq!(outcome(&server, ALWAYS, hit, fault.clone()), expected, "{fault:?}");
        }
    }
    for hit in [list, small] {
        assert_eq!(outcome(&server, ALWAYS, hit, gone(401)), "Denied");
        assert_eq!(outcome(&server, ALWAYS, hit, gone(403)), "Denied");
        assert_eq!(outcome(&server, ALWAYS, hit, gone(404)), "NotFound");
    }
    assert_eq!(outcome(&server, ALWAYS, large, gone(403)), "Network");
}

#[test]
fn a_server_that_asks_for_too_long_a_wait_is_not_waited_for() {
    let server = server();
    let start = Instant::now();
    let fault = Fault::Status(429, vec![("Retry-After", "100000".into())]);
    assert_eq!(outcome(&server, ALWAYS, list, fault), "RateLimited");
    assert!(start.elapsed() < Duration::from_secs(5));
    let start = Instant::now();
    assert_eq!(outcome(&server, 1, list, Fault::Status(429, vec![("Retry-After", "1".into())])), "Ok");
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn wrong_bytes_are_never_kept() {
    let server = server();
    for hit in [small, large, single] {
        // Once: it begins anew. Always: an error.
        assert_eq!(outcome(&server, 1, hit, Fault::Flip(1)), "Ok");
        assert_eq!(outcome(&server, ALWAYS, hit, Fault::Flip(1)), "Integrity");
    }
    assert_eq!(outcome(&server, ALWAYS, large, Fault::Flip(20_000)), "Integrity");
    for hit in [small, single] {
        assert_eq!(outcome(&server, ALWAYS, hit, Fault::Short(1)), "Integrity");
        assert_eq!(outcome(&server, ALWAYS, hit, Fault::Long), "Integrity");
        assert_eq!(outcome(&server, ALWAYS, hit, Fault::Body("text/html", b"<html>log in".to_vec())), "Integrity");
    }
    // A part that is short is asked for again and again.
    assert_eq!(outcome(&server, 3, large, Fault::Short(1)), "Ok");
    assert_eq!(outcome(&server, ALWAYS, large, Fault::OtherRange), "Network");
    // An ETag that the hub states beside another hash than it lists.
    let hub_side = |asked: &Asked| asked.side == Side::Hub && asked.path.ends_with("00002-of-00002.safetensors");
    assert_eq!(outcome(&server, ALWAYS, hub_side, Fault::Linked("b".repeat(64))), "Integrity");
}

#[test]
fn servers_without_ranges_send_the_file_whole() {
    let server = server();
    assert_eq!(outcome(&server, ALWAYS, large, Fault::NoRange), "Ok");
    assert_eq!(outcome(&server, ALWAYS, single, Fault::NoRange), "Ok");
}

#[test]
fn a_store_that_changes_mid_way_does_not_mix_versions() {
    let server = server();
    // The first two parts with one ETag, then another: If-Range brings the whole file.
    let cache = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    server.faults(move |asked| match large(asked) {
        true if count.fetch_add(1, Ordering::Relaxed) < 2 => Fault::Etag("\"before\""),
        _ => Fault::None,
    });
    let directory = pull(&hub(&server, cache.path()), NAME).unwrap();
    assert_files(&directory, &repository(), &NEEDED);
    let asked = server.asked();
    let whole = asked
        .iter()
        .any(|(asked, status)| large(asked) && asked.if_range.as_deref() == Some("\"before\"") && *status == 200);
    assert!(whole, "no part was asked for with the ETag before");

    // Cut in the middle, and the rest has another ETag.
    let cache = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    server.faults(move |asked| match (single(asked), count.load(Ordering::Relaxed)) {
        (true, 0) => {
            count.fetch_add(1, Ordering::Relaxed);
            Fault::Cut(3000)
        }
        (true, 1) => {
            count.fetch_add(1, Ordering::Relaxed);
            Fault::Etag("\"after\"")
        }
        _ => Fault::None,
    });
    assert_files(&pull(&hub(&server, cache.path()), NAME).unwrap(), &repository(), &NEEDED);
}

#[test]
fn a_range_that_is_not_there_begins_anew() {
    let server = server();
    let ranged = |asked: &Asked| large(asked) && asked.range.is_some();
    assert_eq!(outcome(&server, 1, ranged, Fault::Status(416, vec![])), "Ok");
    assert_eq!(outcome(&server, ALWAYS, ranged, Fault::Status(416, vec![])), "Integrity");
}

#[test]
fn pages_and_nonsense_are_no_lists() {
    let server = server();
    let body = |kind, body: &[u8]| Fault::Body(kind, body.to_vec());
    for fault in [
        body("text/html", b"<!DOCTYPE html><html>Please log in</html>"),
        body("application/json", b"  <html>"),
        body("application/json", b""),
        body("application/json", b"[]"),
        body("application/json", b"{\"sha\": 1}"),
        body("application/json", b"{\"sha\": null}"),
        body("application/json", b"{\"siblings\": [{}], \"sha\": \"0123456789abcdef0123456789abcdef01234567\"}"),
        body("application/json", "[".repeat(100_000).as_bytes()),
        body("application/json", &vec![b' '; (32 << 20) + 2]),
    ] {
        let shown = format!("{fault:?}");
        assert_eq!(outcome(&server, ALWAYS, list, fault), "Answer", "{}", &shown[..shown.len().min(200)]);
    }
    let none = body("application/json", b"{\"sha\": \"0123456789abcdef0123456789abcdef01234567\"}");
    assert_eq!(outcome(&server, ALWAYS, list, none), "NoModel");
}

#[test]
fn who_stops_sending_is_given_up() {
    let server = server();
    let hour = Duration::from_secs(3600);
    for hit in [list, small, large] {
        let cache = tempfile::tempdir().unwrap();
        let mut options = options(&server, cache.path());
        options.patience = Duration::from_millis(300);
        options.attempts = 2;
        let hub = emberlm_model::hub::Hub::new(options).unwrap();
        // After some bytes at first: those count as progress.
        let count = AtomicUsize::new(0);
        server.faults(move |asked| match hit(asked) {
            true if count.fetch_add(1, Ordering::Relaxed) == 0 => Fault::Stall(1, hour),
            true => Fault::Stall(0, hour),
            false => Fault::None,
        });
        let start = Instant::now();
        let error = pull(&hub, NAME).unwrap_err();
        assert_eq!(kind(&error), "Network", "{error}");
        let said = ["stopped sending", "no answer within"];
        assert!(said.iter().any(|said| error.to_string().contains(said)), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        server.faults(|_| Fault::None);
        assert_files(&pull(&hub, NAME).unwrap(), &repository(), &NEEDED);
    }
    // Patience without an end is one of a year: clocks end.
    let endless = tempfile::tempdir().unwrap();
    let mut options_without_end = options(&server, endless.path());
    options_without_end.patience = Duration::MAX;
    assert!(pull(&Hub::new(options_without_end).unwrap(), NAME).is_ok());
    // A server that is not there.
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&server, cache.path());
    options.endpoint = "http://127.0.0.1:1".into();
    let error = pull(&emberlm_model::hub::Hub::new(options).unwrap(), NAME).unwrap_err();
    assert!(kind(&error) == "Network" && error.to_string().contains("refused"), "{error}");
}

/// Whatever a pull is at when it is cancelled, it ends then, and what came is of use to the next one.
#[test]
fn a_pull_that_is_cancelled_ends_and_keeps_what_came() {
    let server = server();
    let cache = tempfile::tempdir().unwrap();
    let name: HubName = NAME.parse().unwrap();
    let began = Instant::now();

    // At bytes of a large file.
    let hub_of_bytes = hub(&server, cache.path());
    let cancel = hub_of_bytes.cancel_handle();
    let large = AtomicBool::new(false);
    let error = hub_of_bytes.pull(&name, &|event| match event {
        PullEvent::File { length, .. } => large.store(length > PART as u64 * 9, Ordering::Relaxed),
        PullEvent::Bytes(_) if large.load(Ordering::Relaxed) => cancel.cancel(),
        _ => {}
    });
    assert_eq!(kind(&error.unwrap_err()), "Cancelled");
    assert!(assert_blobs(cache.path()) < NEEDED.len());
    server.asked();
    assert_eq!(kind(&pull(&hub_of_bytes, NAME).unwrap_err()), "Cancelled");
    assert!(server.asked().is_empty());

    // While another downloads the same file.
    let (holds, held) = mpsc::channel();
    let (ends, ended) = mpsc::channel::<()>();
    let ended = Mutex::new(ended);
    thread::scope(|scope| {
        let first = hub(&server, cache.path());
        let name = &name;
        scope.spawn(move || {
            let held_up = |event: PullEvent<'_>| {
                if let PullEvent::File { length, kept, .. } = event
                    && kept < length
                {
                    let _ = holds.send(());
                    let _ = ended.lock().unwrap().recv();
                }
            };
            first.pull(name, &held_up).unwrap();
        });
        held.recv().unwrap();
        let second = hub(&server, cache.path());
        let cancel = second.cancel_handle();
        let error = second.pull(name, &|event| {
            if let PullEvent::Waiting { .. } = event {
                cancel.cancel();
            }
        });
        drop(ends);
        assert_eq!(kind(&error.unwrap_err()), "Cancelled");
    });
    assert_files(&pull(&hub(&server, cache.path()), NAME).unwrap(), &repository(), &NEEDED);

    // In a wait that the server asks for.
    server.faults(|_| Fault::Status(503, vec![("Retry-After", "60".into())]));
    let other = tempfile::tempdir().unwrap();
    let mut patient = options(&server, other.path());
    patient.longest_wait = Duration::from_secs(60);
    let patient = Hub::new(patient).unwrap();
    let cancel = patient.cancel_handle();
    let error = patient.pull(&name, &|event| {
        if let PullEvent::Retry { .. } = event {
            cancel.cancel();
        }
    });
    assert_eq!(kind(&error.unwrap_err()), "Cancelled");
    assert!(began.elapsed() < Duration::from_secs(30));
}
