//! TLS to a gateway: which certificates will do, and the handshake (contract 4.10).
//!
//! The rules, the first that applies:
//!
//! 1. **Pins** ([`Trust::pins`]): one of them must match, and then nothing else is asked: neither who issued the
//!    certificate nor for which name or how long. A self-signed certificate needs this.
//! 2. **Normal trust**: what the operating system trusts, for this name and at this time. Nothing turns it off.
//! 3. **First use** ([`Trust::known`]): the first certificate that passes normal trust is remembered, by host and
//!    port. From then on another certificate with another key is refused, although normal trust would let it pass.
//!
//! [`verify`] is the decision, [`known`] the file. TLS 1.2 and 1.3, by rustls with ring.

pub mod known;
pub(super) mod verify;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, Error as RustlsError, InvalidMessage};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use self::known::{KnownError, KnownGateways};
use self::verify::Verifier;
use super::url_policy::GatewayUrl;
use crate::config::fingerprint::{Fingerprint, Pin};

/// Which certificates of a gateway will do.
///
/// The default is normal trust and no memory.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Certificates or keys, any of which must match. Empty: normal trust decides.
    pub pins: Vec<Pin>,
    /// What said the pins, for errors: `gateway.remote.tlsFingerprint`.
    pub pins_from: String,
    /// The state directory in which the first certificate of each gateway is remembered; `None` remembers nothing.
    pub known: Option<PathBuf>,
    /// What normal trust is. Default: what the operating system trusts.
    pub authorities: Authorities,
}

/// Whose word counts for a certificate without a pin.
#[derive(Clone, Default)]
pub enum Authorities {
    /// The operating system's trust store.
    #[default]
    System,
    /// A verifier of the caller's.
    These(Arc<dyn ServerCertVerifier>),
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::These(_) => "These",
        })
    }
}

/// A gateway's certificate, as it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// SHA-256 of the certificate.
    pub fingerprint: Fingerprint,
    /// SHA-256 of its public key; `None` when the certificate is of a form that has none to read.
    pub public_key: Option<Fingerprint>,
}

impl Certificate {
    /// Reads `der`.
    pub fn of(der: &CertificateDer<'_>) -> Self {
        let public_key = rustls::server::ParsedCertificate::try_from(der)
            .ok()
            .map(|parsed| Fingerprint::of(&parsed.subject_public_key_info()));
        Self { fingerprint: Fingerprint::of(der), public_key }
    }

    /// Whether `pin` is of this certificate or of its key.
    pub fn matches(&self, pin: Pin) -> bool {
        match pin {
            Pin::Certificate(fingerprint) => fingerprint == self.fingerprint,
            Pin::PublicKey(fingerprint) => self.public_key == Some(fingerprint),
        }
    }
}

/// Why there is no TLS with a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TlsFailure {
    /// There are pins, and none is of this certificate.
    #[error("the gateway's certificate is not the one that {from} names")]
    NotPinned {
        /// What would have done.
        pins: Vec<Pin>,
        /// Who says so.
        from: String,
        /// What came.
        presented: Box<Certificate>,
    },
    /// Normal trust lets it pass, but it is another one than before.
    #[error("the gateway's certificate has changed since this machine first met it")]
    Changed {
        /// What was remembered.
        known: Box<Certificate>,
        /// What came.
        presented: Box<Certificate>,
    },
    /// Normal trust does not let it pass.
    #[error("the gateway's certificate is not trusted: {why}")]
    Untrusted {
        /// Why.
        why: Distrust,
        /// What came.
        presented: Box<Certificate>,
    },
    /// What answers does not speak TLS.
    #[error("what answers there does not speak TLS")]
    NotTls,
    /// The handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    /// The remembered certificates cannot be read or written.
    #[error(transparent)]
    Known(#[from] KnownError),
}

/// Why normal trust does not let a certificate pass.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Distrust {
    /// It vouches for itself, or its issuer is nobody this machine knows.
    #[error("it is self-signed, or issued by nobody this machine trusts")]
    UnknownIssuer,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet")]
    NotYet,
    /// It is for other names.
    #[error("it is not for {0}")]
    WrongName(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl TlsFailure {
    /// What is compared, a line each: what was expected, and what came.
    pub fn fingerprints(&self) -> Vec<(&'static str, String)> {
        let (expected, presented) = match self {
            Self::NotPinned { pins, presented, .. } => {
                (pins.iter().map(|pin| ("pinned", pin.to_string())).collect(), presented)
            }
            Self::Changed { known, presented } => (vec![("known", known.fingerprint.with_colons())], presented),
            Self::Untrusted { presented, .. } => (Vec::new(), presented),
            Self::NotTls | Self::Handshake(_) | Self::Known(_) => return Vec::new(),
        };
        expected.into_iter().chain([("presented", presented.fingerprint.with_colons())]).collect()
    }
}

/// Opens TLS over `stream`, and remembers the certificate where that is asked for.
pub(super) async fn handshake(
    stream: TcpStream,
    url: &GatewayUrl,
    trust: &Trust,
) -> Result<TlsStream<TcpStream>, TlsFailure> {
    let place = match (&trust.known, trust.pins.is_empty()) {
        (Some(state_dir), true) => Some(KnownGateways::load(state_dir)?),
        _ => None,
    };
    let entry = place.as_ref().and_then(|known| known.get(url));
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Verifier::new(trust, entry, Arc::clone(&provider)));
    let name = match url.ip() {
        Some(ip) => ServerName::from(ip),
        None => ServerName::try_from(url.host().to_owned())
            .map_err(|_| TlsFailure::Handshake(format!("{:?} is no name that a certificate can be for", url.host())))?,
    };
    let connector = TlsConnector::from(Arc::new(config(provider, Arc::clone(&verifier))?));
    match connector.connect(name, stream).await {
        Ok(stream) => {
            if let (Some(mut known), Some(seen)) = (place, verifier.seen())
                && entry.is_none_or(|entry| entry.certificate != seen)
            {
                known.put(url, seen)?;
            }
            Ok(stream)
        }
        Err(error) => Err(verifier.refusal().unwrap_or_else(|| failure(&error))),
    }
}

fn config(provider: Arc<CryptoProvider>, verifier: Arc<Verifier>) -> Result<ClientConfig, TlsFailure> {
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsFailure::Handshake(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    // WebSocket is an upgrade of HTTP/1.1; and a resumed session would show no certificate to look at.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn failure(error: &std::io::Error) -> TlsFailure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<RustlsError>()) {
        Some(RustlsError::InvalidMessage(InvalidMessage::InvalidContentType)) => TlsFailure::NotTls,
        Some(error) => TlsFailure::Handshake(error.to_string()),
        None => match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                TlsFailure::Handshake("the connection was closed in the middle".into())
            }
            std::io::ErrorKind::ConnectionReset => TlsFailure::Handshake("the connection was reset".into()),
            _ => TlsFailure::Handshake(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests;
