//! Which authorities a server's certificate may come from, and what is said when it comes from none of them.

use std::path::Path;
use std::sync::Arc;

use rustls::CertificateError;
use ureq::tls::{Certificate, RootCerts};

use super::address::header_shown;
use super::error::{HubError, HubResult};

/// Those in a file or a directory, or else those that the system trusts; where the system has no list, Mozilla's, which is a part of the
/// program.
///
/// # Errors
/// [`HubError::Io`] when the file holds no certificate.
pub(super) fn authorities(given: Option<&Path>) -> HubResult<RootCerts> {
    let found = match given {
        Some(path) if path.is_dir() => rustls_native_certs::load_certs_from_paths(None, Some(path)),
        Some(path) => rustls_native_certs::load_certs_from_paths(Some(path), None),
        None => rustls_native_certs::load_native_certs(),
    };
    for error in &found.errors {
        tracing::debug!("authorities of certificates: {error}");
    }
    match (given, found.certs.is_empty()) {
        (Some(path), true) => {
            let message = "holds no certificate: it has to be a file of certificates in PEM (-----BEGIN CERTIFICATE-----), or a \
                           directory of such files under the names that openssl rehash gives";
            Err(HubError::io(path, std::io::Error::new(std::io::ErrorKind::InvalidData, message)))
        }
        (None, true) => Ok(RootCerts::WebPki),
        (_, false) => {
            let owned = found.certs.iter().map(|certificate| Certificate::from_der(certificate.as_ref()).to_owned());
            Ok(RootCerts::Specific(Arc::new(owned.collect())))
        }
    }
}

/// What is wrong with the certificate of a server, when that is why there is no connection.
pub(super) fn refusal(error: &std::io::Error, given: Option<&Path>) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let wrong = match error {
        rustls::Error::InvalidCertificate(wrong) => wrong,
        rustls::Error::InvalidMessage(_) => return Some("no encrypted connection: does the server speak TLS?".into()),
        _ => return None,
    };
    let what = match wrong {
        // The other: by one of the same name with another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            let by = match given {
                Some(path) => format!("none of the authorities in {}", path.display()),
                None => "none of the authorities that this system trusts".to_owned(),
            };
            return Some(format!(
                "the server's certificate is signed by {by}. If a proxy of your network replaces certificates, set SSL_CERT_FILE to a \
                 PEM file with its authority; else somebody may be listening"
            ));
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is for another host: is the address right?".into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired: is the clock of this machine right?".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet: is the clock of this machine right?".into()
        }
        CertificateError::Revoked => "has been revoked".into(),
        other => format!("is not valid ({})", header_shown(&other.to_string())),
    };
    Some(format!("the server's certificate {what}"))
}
