//! HTTPS in front of the hub, with an authority of its own.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes its certificate.
    pub fn write(&self, path: &Path) {
        std::fs::write(path, &self.pem).expect("written");
    }

    /// A server for a host, with a certificate that may have expired.
    pub fn server(&self, host: &str, expired: bool) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new([host.to_owned()]).expect("a name");
        if expired {
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key);
        Arc::new(config.expect("a server"))
    }
}

/// The address of a server that hands what it is asked, a request per connection, to the one at a plain address.
pub fn front(plain: &str, config: &Arc<ServerConfig>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("https://{}", listener.local_addr().expect("an address"));
    let (plain, config) = (plain.trim_start_matches("http://").to_owned(), config.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (plain, config) = (plain.clone(), config.clone());
            std::thread::spawn(move || pass_on(stream, &plain, config));
        }
    });
    address
}

/// Ends silently where the client does not like the certificate.
fn pass_on(stream: TcpStream, plain: &str, config: Arc<ServerConfig>) -> Option<()> {
    let mut client = StreamOwned::new(ServerConnection::new(config).ok()?, stream);
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        request.extend(byte);
    }
    let mut server = TcpStream::connect(plain).ok()?;
    server.write_all(&request).ok()?;
    // The server closes after its answer, when no further request can come.
    server.shutdown(Shutdown::Write).ok()?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).ok()?;
    let line = answer.windows(2).position(|pair| pair == b"\r\n")?;
    answer.splice(line..line, *b"\r\nConnection: close");
    client.write_all(&answer).ok()?;
    client.conn.send_close_notify();
    client.flush().ok()
}
