//! Who is answered.

use serde_json::json;

use crate::client::Server;

#[test]
fn foreign_hosts_and_pages_are_refused() {
    let server = Server::start(&["--allow-host", "models.example.org"]);
    let address = server.address.clone();
    for (headers, status) in [
        (vec![("host", "localhost:8080")], 200),
        (vec![("host", address.as_str())], 200),
        (vec![("host", "models.example.org")], 200),
        (vec![("host", "evil.example.com")], 403),
        (vec![("host", "127.0.0.1.evil.example.com")], 403),
        (vec![("host", "ember")], 403),
        (vec![("host", "192.168.0.1")], 403),
        (vec![("host", "")], 403),
        (vec![("host", "localhost"), ("origin", "http://localhost")], 200),
        (vec![("host", "localhost"), ("origin", "https://evil.example.com")], 403),
        (vec![("host", "localhost"), ("origin", "null")], 403),
    ] {
        for path in ["/health", "/v1/models", "/", "/metrics"] {
            let response = server.send("GET", path, &headers, "");
            assert_eq!(response.status, status, "{path} {headers:?}: {}", response.body);
            // A browser shows an answer to pages that are told of.
            let page = headers.iter().find(|(name, _)| *name == "origin").map(|(_, origin)| *origin);
            let told = response.header("access-control-allow-origin");
            assert_eq!(told, page.filter(|_| status == 200), "{path} {headers:?}");
        }
    }
}

#[test]
fn browsers_are_told_which_pages_may_ask() {
    let mut server = Server::start(&["--allow-host", "models.example.org", "--api-key", "k3y"]);
    let ask = |server: &Server, origin: &str| {
        let headers = [
            ("host", "localhost"),
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        server.send("OPTIONS", "/v1/chat/completions", &headers, "")
    };
    // A browser sends no key with this.
    let page = "http://models.example.org:3000";
    let told = ask(&server, page);
    assert_eq!(told.status, 200, "{}", told.body);
    assert_eq!(told.header("access-control-allow-origin"), Some(page));
    assert_eq!(told.header("access-control-allow-headers"), Some("authorization,content-type"));
    assert!(told.header("access-control-allow-methods").is_some_and(|methods| methods.contains("POST")));
    assert!(told.header("vary").is_some_and(|vary| vary.contains("origin")));
    let foreign = ask(&server, "https://evil.example.com");
    assert_eq!((foreign.status, &foreign.json()["error"]["code"]), (403, &json!("foreign_origin")));
    assert!(!foreign.headers.iter().any(|(name, _)| name.starts_with("access-control")), "{:?}", foreign.headers);
    // Both are in the log, once.
    for line in ["OPTIONS /v1/chat/completions 200", "OPTIONS /v1/chat/completions 403"] {
        server.wait_for(line);
        assert_eq!(server.log().matches(line).count(), 1, "{line}: {}", server.log());
    }
    let ask = |headers: &[(&str, &str)]| server.send("OPTIONS", "/v1/messages", headers, "").status;
    assert_eq!(ask(&[("host", "evil.example.com"), ("origin", page)]), 403);
    // An error can be read too.
    let refused = server.send("GET", "/v1/models", &[("host", "localhost"), ("origin", page)], "");
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some(page)));
}

#[test]
fn a_key_is_asked_for_and_never_logged() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "k3y-of-this-test\n").unwrap();
    check_key(&Server::start(&["--api-key", "k3y-of-this-test"]));
    check_key(&Server::start(&["--api-key-file", file.path().to_str().unwrap()]));
}

fn check_key(server: &Server) {
    let body = json!({"messages": [{"role": "user", "content": "hi there, secretly"}], "max_tokens": 1}).to_string();
    let chat = |headers: &[(&str, &str)]| server.send("POST", "/v1/chat/completions", headers, &body);
    for headers in [
        &[][..],
        &[("authorization", "Bearer k3y-of-this-tes")],
        &[("authorization", "Bearer k3y-of-this-testt")],
        &[("authorization", "Basic k3y-of-this-test")],
        &[("x-api-key", "")],
    ] {
        let response = chat(headers);
        assert_eq!((response.status, &response.json()["error"]["code"]), (401, &json!("invalid_api_key")));
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(chat(&[("authorization", "Bearer k3y-of-this-test")]).status, 200);
    assert_eq!(chat(&[("x-api-key", "k3y-of-this-test")]).status, 200);
    // What gateways and browsers ask for first.
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.get("/metrics").status, 401);
    let anthropic = server.send("POST", "/v1/messages", &[], &body);
    assert_eq!((anthropic.status, &anthropic.json()["type"]), (401, &json!("error")));
    let log = server.log();
    assert!(log.contains("POST /v1/chat/completions 200"), "{log}");
    for secret in ["k3y-of", "secretly", "Basic"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn the_page_is_served_and_no_other_server_is_pretended() {
    let server = Server::start(&[]);
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    // A gateway would take us for vLLM.
    for path in ["/version", "/server_info", "/nothing", "/v1/embeddings", "/../../etc/passwd"] {
        let response = server.get(path);
        assert_eq!((response.status, &response.json()["error"]["type"]), (404, &json!("not_found_error")), "{path}");
    }
    let wrong = server.get("/v1/chat/completions");
    assert_eq!(wrong.status, 405);
    assert!(wrong.message().contains("GET"), "{}", wrong.body);
}
