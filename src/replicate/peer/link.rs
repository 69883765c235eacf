//! One connection to a peer that is kept between requests, over TCP or TLS.
//!
//! Does not know requests.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::Uri;
use http_body_util::Empty;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use crate::task;

/// The most bytes of an answer's head.
const HEAD_BYTES: usize = 64 << 10;

/// What makes TLS out of a connection.
pub type Tls = Arc<ClientConfig>;

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Its name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// As it stands in the `Host` header.
    pub authority: String,
    /// What stands before every path; empty, or without a slash at its end.
    pub prefix: String,
}

/// A URL that is none of a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write http://host:port or https://host:port")]
pub struct BadAddress;

impl Address {
    /// Reads `http://host:port` or `https://host`, a path before ours behind it or not. A login in it
    /// is not sent: the token is what a peer asks for.
    ///
    /// # Errors
    /// [`BadAddress`], which never holds the text: there may be a password in it.
    pub fn parse(url: &str) -> Result<Self, BadAddress> {
        let uri: Uri = url.trim().parse().map_err(|_| BadAddress)?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(BadAddress),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(BadAddress)?;
        let usual = if tls { 443 } else { 80 };
        let named = uri.authority().and_then(|all| all.as_str().rsplit('@').next());
        let port = match uri.port_u16() {
            Some(port) => port,
            None if named == Some(host) => usual,
            None => return Err(BadAddress),
        };
        let authority = if port == usual { host.to_owned() } else { format!("{host}:{port}") };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { tls, host: bare.to_owned(), port, authority, prefix })
    }
}

/// TLS that believes the certificates that this system believes (`SSL_CERT_FILE` and `SSL_CERT_DIR`
/// name others).
///
/// # Errors
/// Where no such certificate is found.
pub fn tls() -> io::Result<Tls> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(io::Error::other(
            "no certificate authorities are installed (apt-get install ca-certificates), or SSL_CERT_FILE names none",
        ));
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

type Sender = SendRequest<Empty<Bytes>>;

/// A connection that takes a request.
pub(super) struct Connection {
    /// Its sending side.
    pub sender: Sender,
    /// Whether it was just made.
    pub is_new: bool,
}

/// A connection that is kept.
pub(super) struct Link {
    address: Address,
    tls: Option<Tls>,
    kept: Mutex<Option<Sender>>,
}

impl Link {
    pub fn new(address: Address, tls: Option<Tls>) -> Self {
        Self { address, tls, kept: Mutex::default() }
    }

    /// The kept connection where it still takes requests, else another one; always another one where
    /// it must be `fresh`.
    pub async fn connection(&self, fresh: bool) -> Result<Connection, String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut sender) = kept.filter(|sender| !fresh && !sender.is_closed())
            && sender.ready().await.is_ok()
        {
            return Ok(Connection { sender, is_new: false });
        }
        Ok(Connection { sender: self.connect().await?, is_new: true })
    }

    /// For the next request.
    pub fn keep(&self, sender: Sender) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    }

    async fn connect(&self) -> Result<Sender, String> {
        let Address { host, port, .. } = &self.address;
        let stream = TcpStream::connect((host.as_str(), *port)).await;
        let stream = stream.map_err(|e| format!("{host}:{port} cannot be reached: {e}"))?;
        let _ = stream.set_nodelay(true);
        let Some(tls) = self.tls.as_ref().filter(|_| self.address.tls) else {
            return handshake(stream).await;
        };
        let name = ServerName::try_from(host.clone());
        let name = name.map_err(|_| format!("{host} is no name that a certificate can hold"))?;
        let stream = TlsConnector::from(tls.clone()).connect(name, stream).await;
        handshake(stream.map_err(|e| format!("no TLS with {host}:{port}: {e}"))?).await
    }
}

async fn handshake<T>(stream: T) -> Result<Sender, String>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES);
    let made = builder.handshake(TokioIo::new(stream)).await;
    let (sender, connection) = made.map_err(|e| told(&e))?;
    // it ends with the sender and the answer under way
    task::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

/// An error of hyper with what caused it.
pub(super) fn told(e: &hyper::Error) -> String {
    match e.source() {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_from_its_url() {
        let cases = [
            ("http://10.0.1.2:8080", (false, "10.0.1.2", 8080, "10.0.1.2:8080", "")),
            ("https://dc3.example.com", (true, "dc3.example.com", 443, "dc3.example.com", "")),
            ("https://dc3.example.com:443/", (true, "dc3.example.com", 443, "dc3.example.com", "")),
            ("http://[::1]:8080/replicon/", (false, "::1", 8080, "[::1]:8080", "/replicon")),
            ("http://u:s3cret@h:81", (false, "h", 81, "h:81", "")),
        ];
        for (url, (tls, host, port, authority, prefix)) in cases {
            let address = Address::parse(url).unwrap();
            let expect = Address {
                tls,
                host: host.to_owned(),
                port,
                authority: authority.to_owned(),
                prefix: prefix.to_owned(),
            };
            assert_eq!(address, expect, "{url}");
        }
        for bad in ["", "dc2", "ftp://h", "http://", "http:///x", "http://h:99999"] {
            assert_eq!(Address::parse(bad), Err(BadAddress), "{bad:?}");
        }
    }
}
