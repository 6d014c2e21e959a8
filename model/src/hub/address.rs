//! Addresses: which origin they belong to, where a redirect leads, and how they are shown.

use ureq::http::Uri;
use ureq::http::uri::Scheme;

use crate::checkpoint::names::{shown, shown_within};

/// Longest address that is followed, in bytes; signed ones have about 2,000.
const LONGEST: usize = 16 << 10;

/// An address of http or https, without user name and fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    uri: Uri,
    origin: Origin,
}

/// Who is talked to. A token is for one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub https: bool,
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// Whether it is this machine, as far as the name says.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// A message that says what is not allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("an address of {} bytes is longer than the {LONGEST} that are accepted", text.len()));
        }
        let text = text.split('#').next().unwrap_or_default();
        let no_address = || format!("\"{}\" is not an address of http or https", without_query(text));
        let uri: Uri = text.parse().map_err(|_| no_address())?;
        let https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(no_address()),
        };
        let authority = uri.authority().ok_or_else(no_address)?;
        if authority.as_str().contains('@') {
            return Err("an address with a user name or password is not used".into());
        }
        let host = authority.host();
        // A port that is not a number must not become the default one.
        let port = match authority.as_str().strip_prefix(host).map(|rest| (rest, rest.strip_prefix(':'))) {
            Some(("", _)) if https => 443,
            Some(("", _)) => 80,
            Some((_, Some(port))) => port.parse().map_err(|_| no_address())?,
            _ => return Err(no_address()),
        };
        if host.is_empty() {
            return Err(no_address());
        }
        let host = host.to_ascii_lowercase();
        let origin = Origin { https, host, port };
        Ok(Self { uri, origin })
    }

    /// An address below this one; `path` begins with `/` and is encoded.
    pub fn join_path(&self, path: &str) -> Result<Self, String> {
        let base = self.text();
        Self::parse(&format!("{}{path}", base.trim_end_matches('/')))
    }

    /// Where a `Location` leads.
    ///
    /// # Errors
    /// A message when it leads to something that is not fetched: another scheme, or from https to http.
    pub fn redirect(&self, location: &str) -> Result<Self, String> {
        let scheme = if self.origin.https { "https" } else { "http" };
        let authority = self.uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let target = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else {
            // Servers give whole addresses or whole paths; anything else is not guessed at.
            location.to_owned()
        };
        let target = Self::parse(&target)?;
        if self.origin.https && !target.origin.https {
            return Err(format!("leads from https to http ({}), which is not followed", target.shown()));
        }
        Ok(target)
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// As it is requested.
    pub fn text(&self) -> String {
        self.uri.to_string()
    }

    /// As it is shown: without the query, which may be a signature.
    pub fn shown(&self) -> String {
        without_query(&self.text())
    }
}

fn without_query(text: &str) -> String {
    shown_within(text.split(['?', '#']).next().unwrap_or_default(), 300)
}

/// A part of a path, percent-encoded. `/` stays where `slashes` says so.
pub(super) fn encode(text: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') || (slashes && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A header's value for a message.
pub(super) fn header_shown(value: &str) -> String {
    shown(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_told_apart() {
        let origin = |text: &str| Address::parse(text).unwrap().origin;
        assert_eq!(origin("https://Hub.example/x?y#z"), Origin { https: true, host: "hub.example".into(), port: 443 });
        assert_eq!(origin("https://hub.example:443/"), origin("https://HUB.example"));
        assert_ne!(origin("http://hub.example"), origin("https://hub.example"));
        assert_ne!(origin("http://hub.example:81"), origin("http://hub.example"));
        assert_ne!(origin("https://hub.example.evil.test"), origin("https://hub.example"));
        for local in ["http://127.0.0.1:8", "http://localhost", "http://[::1]:9/x"] {
            assert!(origin(local).is_loopback(), "{local}");
        }
        assert!(!origin("http://127.0.0.1.evil.test").is_loopback());
    }

    #[test]
    fn redirects_stay_on_http() {
        let from = Address::parse("https://hub.example/a/b?sig=1").unwrap();
        let to = |location: &str| from.redirect(location).map(|address| address.text());
        assert_eq!(to("/c?d=e").unwrap(), "https://hub.example/c?d=e");
        assert_eq!(to("//cdn.example/x").unwrap(), "https://cdn.example/x");
        assert_eq!(to("https://cdn.example/x#frag").unwrap(), "https://cdn.example/x");
        for wrong in [
            "http://cdn.example/x",
            "file:///etc/passwd",
            "ftp://x/y",
            "data:text/plain,x",
            "javascript:1",
            "https://me:pw@x/",
            "",
            "https://",
            "https://x:port/",
            "https://x y/",
            "relative",
            "gopher://127.0.0.1:1/_x",
            "https://x:/y",
        ] {
            assert!(to(wrong).is_err(), "{wrong}");
        }
        assert!(from.redirect(&format!("/{}", "x".repeat(20_000))).is_err());
        assert!(Address::parse("http://hub.example").unwrap().redirect("http://cdn.example/x").is_ok());
    }

    #[test]
    fn what_is_shown_has_no_signature() {
        let address = Address::parse("https://cdn.example/x?Signature=secret").unwrap();
        assert_eq!(address.shown(), "https://cdn.example/x");
        let error = Address::parse("ftp://cdn.example/x?Signature=secret").unwrap_err();
        assert!(!error.contains("secret"), "{error}");
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/ü.json", true), "a%20b/%C3%BC.json");
    }
}
