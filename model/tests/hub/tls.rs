//! Whose certificates are accepted, and what is said about the others.

use std::path::Path;

use emberlm_model::hub::{Hub, HubError};

use crate::hub_support::tls::{Authority, front};
use crate::hub_support::{Server, Side};
use crate::support::{NAME, NEEDED, assert_files, assert_token_went_to_the_hub_alone, kind, options, pull, repository};

/// A hub and its store behind HTTPS, with certificates for this host.
fn server(authority: &Authority, host: &str, expired: bool) -> Server {
    let config = authority.server(host, expired);
    let server = Server::start_as(|hub, store| (front(&hub, &config), front(&store, &config)));
    server.add(NAME, repository());
    server
}

fn hub(server: &Server, cache: &Path, certificates: Option<&Path>) -> Hub {
    let mut options = options(server, cache);
    options.certificates = certificates.map(Path::to_path_buf);
    Hub::new(options).unwrap()
}

#[test]
fn an_authority_of_ones_own_is_trusted_and_the_token_stays_with_the_hub() {
    let (authority, scratch) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let server = server(&authority, "127.0.0.1", false);
    let file = scratch.path().join("ca.pem");
    authority.write(&file);
    // A directory as openssl rehash makes it.
    let directory = scratch.path().join("authorities");
    std::fs::create_dir(&directory).unwrap();
    authority.write(&directory.join("0a1b2c3d.0"));
    for (cache, certificates) in [("one", &file), ("two", &directory)] {
        let cache = scratch.path().join(cache);
        let folder = pull(&hub(&server, &cache, Some(certificates)), NAME).unwrap();
        assert_files(&folder, &repository(), &NEEDED);
        assert_token_went_to_the_hub_alone(&server);
    }
}

#[test]
fn other_certificates_are_refused_at_once() {
    let (ours, other, scratch) = (Authority::new("ours"), Authority::new("another"), tempfile::tempdir().unwrap());
    let file = scratch.path().join("ca.pem");
    ours.write(&file);
    let shown = file.display().to_string();
    let cases = [
        (
            server(&other, "127.0.0.1", false),
            Some(file.as_path()),
            vec!["none of the authorities in", &shown, "SSL_CERT_FILE"],
        ),
        (
            server(&Authority::new("ours"), "127.0.0.1", false),
            Some(&file),
            vec!["none of the authorities in", "SSL_CERT_FILE"],
        ),
        (server(&ours, "127.0.0.1", false), None, vec!["this system trusts", "SSL_CERT_FILE"]),
        (server(&ours, "hub.example", false), Some(&file), vec!["another host"]),
        (server(&ours, "127.0.0.1", true), Some(&file), vec!["has expired", "clock"]),
    ];
    for (server, certificates, parts) in cases {
        let retries = std::sync::atomic::AtomicUsize::new(0);
        let hub = hub(&server, &scratch.path().join("cache"), certificates);
        let error = hub.pull(&NAME.parse().unwrap(), &|_| {
            retries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let error = error.unwrap_err();
        assert!(matches!(error, HubError::Network { .. }), "{error:?}");
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)) && text.contains(server.url()), "{text}");
        assert!(retries.into_inner() == 0 && server.asked().is_empty(), "{text}: is not asked, and not tried again");
    }
}

#[test]
fn files_without_certificates_and_servers_without_encryption_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::start();
    server.add(NAME, repository());
    let text = scratch.path().join("text.pem");
    std::fs::write(&text, "not a certificate").unwrap();
    let error = pull(&hub(&server, scratch.path(), Some(&text)), NAME).unwrap_err();
    assert!(
        kind(&error) == "Io" && error.to_string().contains("text.pem") && error.to_string().contains("PEM"),
        "{error}"
    );
    assert!(server.asked().is_empty());
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = options(&server, scratch.path());
    options.endpoint = format!("https://{}", plain.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    let error = pull(&Hub::new(options).unwrap(), NAME).unwrap_err();
    assert!(kind(&error) == "Network" && error.to_string().contains("speak TLS"), "{error}");
}

#[test]
fn a_redirect_does_not_leave_the_encryption() {
    let (authority, scratch) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let config = authority.server("127.0.0.1", false);
    let server = Server::start_as(|hub, store| (front(&hub, &config), store));
    server.add(NAME, repository());
    let file = scratch.path().join("ca.pem");
    authority.write(&file);
    let error = pull(&hub(&server, &scratch.path().join("cache"), Some(&file)), NAME).unwrap_err();
    assert_eq!(kind(&error), "Redirect", "{error}");
    assert!(server.asked().iter().all(|(asked, _)| asked.side == Side::Hub));
}
