//! Who may ask: hosts that the server is called by, pages that may call it, and the key.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use super::error::ApiError;

/// Rules of access.
///
/// A page on the web can make a browser send requests to this machine, under the page's own name when its owner points that name
/// here. So the name in `Host` has to be one that only this machine has: an address, `localhost`, or one that was allowed. A browser always
/// sends one; a request without it (HTTP/1.0 of a gateway's probe) comes from no page.
#[derive(Debug)]
pub struct Access {
    /// Further names of this machine, in lower case.
    pub hosts: Vec<String>,
    /// Clients from other machines are expected: names without a dot, which nobody can register, are taken too.
    pub open: bool,
    pub key: Option<Key>,
}

/// A secret that is compared in constant time and never shown.
pub struct Key(Vec<u8>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    pub fn new(key: &str) -> Self {
        Self(key.as_bytes().to_vec())
    }

    /// Whether it is this key. The time depends on the length of what is presented alone.
    fn is(&self, presented: &[u8]) -> bool {
        let mut difference = u8::from(self.0.len() != presented.len());
        let own = self.0.iter().copied().chain(std::iter::repeat(0));
        for (own, presented) in own.zip(presented) {
            difference |= std::hint::black_box(own ^ presented);
        }
        std::hint::black_box(difference) == 0
    }
}

impl Access {
    /// Checks the names that a request was sent to and from.
    ///
    /// # Errors
    /// 403.
    pub fn check_names(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
        if host.is_some_and(|host| !self.knows(host)) {
            let message = "the name in Host is not one of this server's; use its address or localhost, or allow the name with --allow-host";
            return Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("foreign_host"));
        }
        if !headers.get_all(header::ORIGIN).iter().all(|origin| self.answers_page(origin, headers)) {
            let message = "requests of other sites' pages are not answered; allow the site's name with --allow-host";
            return Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("foreign_origin"));
        }
        Ok(())
    }

    /// Whether a page of this origin may read answers: one of this server, or of a name that was allowed, on any port.
    pub fn answers_page(&self, origin: &HeaderValue, headers: &HeaderMap) -> bool {
        let origin = origin.to_str().unwrap_or_default();
        let Some(authority) = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) else {
            return false;
        };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        host.is_some_and(|host| authority.eq_ignore_ascii_case(host)) || self.allows(name_of(authority))
    }

    /// Checks the key, where one is set: `Authorization: Bearer KEY`, or `x-api-key: KEY`.
    ///
    /// # Errors
    /// 401.
    pub fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = &self.key else { return Ok(()) };
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
        });
        let plain = headers.get("x-api-key").map(HeaderValue::as_bytes);
        let presented = bearer.or(plain);
        if presented.is_some_and(|presented| key.is(presented)) {
            return Ok(());
        }
        let message = match presented {
            Some(_) => "the API key is not right",
            None => "an API key is needed: Authorization: Bearer KEY",
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key"))
    }

    fn knows(&self, host: &str) -> bool {
        let name = name_of(host);
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let local = name.eq_ignore_ascii_case("localhost");
        match address.parse::<IpAddr>() {
            Ok(address) => self.open || address.is_loopback() || self.allows(name),
            Err(_) if local => true,
            Err(_) => self.allows(name) || self.open && !name.is_empty() && !name.contains('.'),
        }
    }

    fn allows(&self, name: &str) -> bool {
        self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
    }
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn access(open: bool) -> Access {
        Access { hosts: vec!["models.example.org".into()], open, key: Some(Key::new("s3cret")) }
    }

    #[test]
    fn only_names_that_this_machine_has_are_answered() {
        for (host, local, open) in [
            ("localhost", true, true),
            ("localhost:8080", true, true),
            ("LOCALHOST:1", true, true),
            ("127.0.0.1:8080", true, true),
            ("127.3.2.1", true, true),
            ("[::1]:8080", true, true),
            ("[::1]", true, true),
            ("models.example.org:80", true, true),
            ("192.168.1.5:8080", false, true),
            ("ember:8080", false, true),
            ("evil.example.com", false, false),
            ("evil.example.com:8080", false, false),
            ("localhost.evil.com", false, false),
            ("127.0.0.1.evil.com", false, false),
            ("localhost:8080@evil.com", false, false),
            ("", false, false),
        ] {
            for (is_open, answered) in [(false, local), (true, open)] {
                let ok = access(is_open).check_names(&headers(&[("host", host)])).is_ok();
                assert_eq!(ok, answered, "{host:?} where open is {is_open}");
            }
        }
    }

    #[test]
    fn a_request_without_a_host_comes_from_no_page() {
        assert!(access(false).check_names(&HeaderMap::new()).is_ok());
        assert!(access(false).check_names(&headers(&[("origin", "http://localhost:8080")])).is_err());
    }

    #[test]
    fn pages_of_other_sites_are_not_answered() {
        let host = ("host", "localhost:8080");
        for (origin, answered) in [
            ("http://localhost:8080", true),
            ("http://LOCALHOST:8080", true),
            ("http://models.example.org", true),
            ("http://localhost:3000", false),
            ("https://evil.example.com", false),
            ("http://localhost:8080.evil.com", false),
            ("null", false),
            ("", false),
        ] {
            let ok = access(false).check_names(&headers(&[host, ("origin", origin)])).is_ok();
            assert_eq!(ok, answered, "{origin:?}");
        }
    }

    #[test]
    fn a_key_is_the_whole_key() {
        for (name, value, right) in [
            ("authorization", "Bearer s3cret", true),
            ("authorization", "bearer s3cret", true),
            ("x-api-key", "s3cret", true),
            ("authorization", "Bearer s3cre", false),
            ("authorization", "Bearer s3crett", false),
            ("authorization", "Bearer ", false),
            ("authorization", "Basic s3cret", false),
            ("authorization", "s3cret", false),
            ("x-api-key", "", false),
        ] {
            let ok = access(false).check_key(&headers(&[(name, value)])).is_ok();
            assert_eq!(ok, right, "{name}: {value:?}");
        }
        assert!(access(false).check_key(&HeaderMap::new()).is_err());
        assert!(!format!("{:?}", access(false)).contains("s3cret"));
    }
}
