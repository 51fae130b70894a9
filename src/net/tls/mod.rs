//! TLS of the gateway's own (`gateway.tls`): the certificate in force, its renewal, and the handshake.
//!
//! rustls with ring, TLS 1.2 and 1.3, ALPN `http/1.1`, tickets for resumption. Whoever shakes hands takes the
//! certificate of that moment; [`Tls::reload`] puts another in its place and touches no connection.
//! [`certificate`] reads the files and makes a self-signed pair.

pub mod certificate;

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::stream::Stream;
pub use certificate::{Files, Fingerprints, TlsError};

/// What a TLS record with a handshake begins with (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 0x16;

/// The certificate of this gateway, and how to renew it.
pub struct Tls {
    files: Files,
    current: ArcSwap<InForce>,
}

struct InForce {
    config: Arc<ServerConfig>,
    fingerprints: Fingerprints,
    digest: [u8; 32],
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).field("fingerprints", &self.fingerprints()).finish()
    }
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer speaks plain HTTP; the socket is given back so that it can be told.
    #[error("the peer speaks plain HTTP to a port of TLS")]
    Plaintext(TcpStream),
    /// It took too long.
    #[error("no TLS handshake in time")]
    Timeout,
    /// The peer left, or there is no version, cipher or protocol both know.
    #[error("TLS handshake failed: {0}")]
    Failed(#[from] io::Error),
}

impl Tls {
    /// Takes the pair of `files`; when neither file is there and it may, makes one for `names` first. Says whether
    /// it did.
    ///
    /// # Errors
    /// [`TlsError`]: the text names the file and what to do.
    pub fn open(files: Files, names: &[String]) -> Result<(Self, bool), TlsError> {
        let made = certificate::make_if_missing(&files, names)?;
        let current = ArcSwap::from_pointee(InForce::load(&files)?);
        Ok((Self { files, current }, made))
    }

    /// Reads the files again. The new pair is in force for handshakes from now on; connections stay. `None` when
    /// the files are what is in force already.
    ///
    /// # Errors
    /// [`TlsError`]: the files are not a pair, and what was in force stays.
    pub fn reload(&self) -> Result<Option<Fingerprints>, TlsError> {
        let found = InForce::load(&self.files)?;
        if found.digest == self.current.load().digest {
            return Ok(None);
        }
        let fingerprints = found.fingerprints;
        self.current.store(Arc::new(found));
        Ok(Some(fingerprints))
    }

    /// Where the pair lies.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// What clients pin, of the certificate in force.
    pub fn fingerprints(&self) -> Fingerprints {
        self.current.load().fingerprints
    }

    /// Shakes hands until `deadline`.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub async fn accept(&self, stream: TcpStream, deadline: Instant) -> Result<Stream, HandshakeError> {
        let mut first = [0];
        match timeout_at(deadline, stream.peek(&mut first)).await {
            Err(_) => return Err(HandshakeError::Timeout),
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(0)) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            // A request line, where a record should be.
            Ok(Ok(_)) if first[0] != HANDSHAKE && first[0].is_ascii_alphabetic() => {
                return Err(HandshakeError::Plaintext(stream));
            }
            Ok(Ok(_)) => {}
        }
        let acceptor = TlsAcceptor::from(Arc::clone(&self.current.load().config));
        // The handshake's state is large and short-lived: in a box, the connection does not carry it on.
        let shaken = timeout_at(deadline, Box::pin(acceptor.accept(stream))).await;
        Ok(Stream::Tls(Box::new(shaken.map_err(|_| HandshakeError::Timeout)??)))
    }
}

impl InForce {
    fn load(files: &Files) -> Result<Self, TlsError> {
        let pair = certificate::read(files)?;
        let (fingerprints, digest) = (pair.fingerprints, pair.digest);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(pair.chain, pair.key))
            .map_err(|error| files.mismatch(&error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(|error| files.mismatch(&error))?;
        // One is enough: a client that comes back gets the next.
        config.send_tls13_tickets = 1;
        Ok(Self { config: Arc::new(config), fingerprints, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(folder: &std::path::Path) -> (Tls, bool) {
        let files = Files { cert: folder.join("cert.pem"), key: folder.join("key.pem"), may_make: true };
        Tls::open(files, &["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap()
    }

    #[test]
    fn a_pair_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (first, was_made) = made(folder.path());
        assert!(was_made);
        let (second, was_made) = made(folder.path());
        assert!(!was_made);
        assert_eq!(first.fingerprints(), second.fingerprints());
    }

    #[test]
    fn a_renewal_takes_effect_only_when_the_new_files_are_a_pair() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (tls, _) = made(folder.path());
        let (renewed, _) = made(other.path());
        let before = tls.fingerprints();
        assert_eq!(tls.reload().unwrap(), None, "nothing has changed");
        std::fs::copy(&renewed.files().cert, &tls.files().cert).unwrap();
        let error = tls.reload().unwrap_err().to_string();
        assert!(error.contains("key.pem") && error.contains("cert.pem"), "{error}");
        assert_eq!(tls.fingerprints(), before, "half a renewal changes nothing");
        std::fs::copy(&renewed.files().key, &tls.files().key).unwrap();
        assert_eq!(tls.reload().unwrap(), Some(renewed.fingerprints()));
        assert_eq!(tls.fingerprints(), renewed.fingerprints());
    }
}
