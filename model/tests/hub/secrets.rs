//! Who is given the token, where redirects may lead, and what messages hold.

use emberlm_model::hub::HubError;
use serde_json::json;

use crate::hub_support::{Fault, SIGNATURE, Server, TOKEN};
use crate::support::{NAME, assert_token_went_to_the_hub_alone, get, hub, kind, pull, server};

#[test]
fn the_token_goes_to_the_hub_alone() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    pull(&hub(&server, cache.path()), NAME).unwrap();
    assert_token_went_to_the_hub_alone(&server);
}

#[test]
fn a_redirect_of_the_list_takes_no_token_along() {
    let (server, elsewhere, cache) = (server(), Server::start(), tempfile::tempdir().unwrap());
    elsewhere.add(NAME, server.repository(NAME));
    let to = elsewhere.url().to_owned();
    server.faults(move |asked| match asked.path.starts_with("/api/") {
        true => Fault::Redirect(format!("{to}{}", asked.path)),
        false => Fault::None,
    });
    pull(&hub(&server, cache.path()), NAME).unwrap();
    let asked = elsewhere.asked();
    assert!(asked.len() == 1 && asked[0].0.authorization.is_none());
    // Another name of the same machine is another origin.
    let to = server.url().replace("127.0.0.1", "localhost");
    server.asked();
    server.faults(move |asked| match asked.path.starts_with("/api/") && asked.authorization.is_some() {
        true => Fault::Redirect(format!("{to}{}", asked.path)),
        false => Fault::None,
    });
    pull(&hub(&server, cache.path()), NAME).unwrap();
    let list: Vec<_> = server.asked().into_iter().filter(|(asked, _)| asked.path.starts_with("/api/")).collect();
    assert_eq!(list.iter().map(|(asked, _)| asked.authorization.is_some()).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn redirects_that_lead_elsewhere_are_refused() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let own = server.url().to_owned();
    let targets = [
        "file:///etc/passwd".to_owned(),
        "ftp://127.0.0.1/x".into(),
        "data:application/json,{}".into(),
        "gopher://127.0.0.1:70/_x".into(),
        "http://user:hunter2@127.0.0.1/x".into(),
        "http://".into(),
        "relative".into(),
        "http://[".into(),
        "\u{1b}]0;title".into(),
        format!("/{}", "x".repeat(20_000)),
        // For ever.
        format!("{own}/api/loop"),
    ];
    for side in ["/api/", "/org/", "/blob/"] {
        for target in &targets {
            let to = target.clone();
            server.faults(move |asked| match asked.path.starts_with(side) {
                true => Fault::Redirect(if to.ends_with("/api/loop") { to.replace("/api/", side) } else { to.clone() }),
                false => Fault::None,
            });
            let error = pull(&hub, NAME).unwrap_err();
            let expected = match target.as_str() {
                // A control character in a header is no HTTP.
                target if target.contains('\u{1b}') => "Network",
                _ => "Redirect",
            };
            assert_eq!(kind(&error), expected, "{side} {target}: {error}");
            let text = format!("{error} {error:?}");
            assert!(!text.contains("hunter2") && !text.contains('\u{1b}') && text.len() < 2000, "{text}");
            server.asked();
        }
    }
    assert!(server.asked().is_empty());
}

#[test]
fn messages_hold_no_secrets() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let seen = |text: &str| text.contains(TOKEN) || text.contains(SIGNATURE);
    assert!(!seen(&format!("{hub:?}")));
    let echo = json!({"error": TOKEN}).to_string();
    let header = |name| (name, TOKEN.to_owned());
    let faults = [
        Fault::Status(401, vec![header("X-Error-Message"), header("X-Error-Code")]),
        Fault::Status(403, vec![header("X-Error-Message")]),
        Fault::Status(404, vec![header("X-Error-Code")]),
        Fault::Status(418, vec![header("X-Error-Message")]),
        Fault::Status(500, vec![header("X-Error-Message")]),
        Fault::Status(429, vec![("Retry-After", "100".into())]),
        Fault::Body("application/json", echo.into_bytes()),
        Fault::Body("text/html", format!("<html>{TOKEN}").into_bytes()),
        Fault::Body("application/json", TOKEN.into()),
        Fault::Redirect(format!("file:///{TOKEN}?{SIGNATURE}")),
        Fault::Redirect(format!("/{TOKEN}?{SIGNATURE}")),
        Fault::Cut(1),
        Fault::Garbage,
        Fault::Linked("a".repeat(64)),
        Fault::Flip(0),
    ];
    let retries = std::sync::Mutex::new(String::new());
    for side in ["/api/", "/org/", "/blob/"] {
        for fault in &faults {
            let fault = fault.clone();
            server.faults(move |asked| if asked.path.starts_with(side) { fault.clone() } else { Fault::None });
            let pulled = hub.pull(&NAME.parse().unwrap(), &|event| *retries.lock().unwrap() += &format!("{event:?}"));
            if let Err(error) = pulled {
                assert!(!seen(&format!("{error} {error:?}")), "{error:?}");
            }
        }
    }
    let retries = retries.into_inner().unwrap();
    assert!(retries.contains("Retry") && !seen(&retries));
}

#[test]
fn gated_and_unknown_models_say_what_to_do() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let with_token = hub(&server, cache.path());
    let mut options = crate::support::options(&server, cache.path());
    options.token = None;
    let without = emberlm_model::hub::Hub::new(options).unwrap();

    let error = get(&without, "org/unknown").unwrap_err().to_string();
    assert!(error.contains("org/unknown") && error.contains("check the name") && error.contains("HF_TOKEN"), "{error}");
    let error = get(&with_token, "org/unknown").unwrap_err();
    assert!(matches!(error, HubError::Denied { .. }) && error.to_string().contains("your token"), "{error}");
    // The list of a gated model is public, its files are not.
    for status in [401, 403] {
        server.faults(move |asked| match asked.path.starts_with("/org/") {
            true => Fault::Status(status, vec![("X-Error-Code", "GatedRepo".into())]),
            false => Fault::None,
        });
        let page = format!("{}/org/model", server.url());
        let error = pull(&without, NAME).unwrap_err().to_string();
        assert!(error.contains("gated") && error.contains(&page) && error.contains("HF_TOKEN"), "{error}");
        let error = pull(&with_token, NAME).unwrap_err().to_string();
        assert!(error.contains("gated") && error.contains(&page) && error.contains("account of your token"), "{error}");
    }
    server.faults(|_| Fault::Status(404, vec![]));
    let error = get(&with_token, NAME).unwrap_err();
    assert!(matches!(error, HubError::NotFound { .. }) && error.to_string().contains("no such model"), "{error}");
}
