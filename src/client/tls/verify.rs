//! The decision about one certificate: pins, normal trust, the certificate that is known. No IO but the look into the
//! operating system's trust store.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error as RustlsError, SignatureScheme};

use super::known::Entry;
use super::{Authorities, Certificate, Distrust, TlsFailure, Trust};
use crate::config::fingerprint::Pin;

/// Looks at the certificate of one handshake, and says afterwards what it saw.
#[derive(Debug)]
pub(in crate::client) struct Verifier {
    pins: Vec<Pin>,
    pins_from: String,
    known: Option<Entry>,
    authorities: Authorities,
    provider: Arc<CryptoProvider>,
    verdict: Mutex<Option<Result<Certificate, TlsFailure>>>,
}

impl Verifier {
    pub(super) fn new(trust: &Trust, known: Option<Entry>, provider: Arc<CryptoProvider>) -> Self {
        let Trust { pins, pins_from, authorities, .. } = trust.clone();
        Self { pins, pins_from, known, authorities, provider, verdict: Mutex::new(None) }
    }

    fn verdict(&self) -> Option<Result<Certificate, TlsFailure>> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The certificate that was let pass.
    pub(super) fn seen(&self) -> Option<Certificate> {
        self.verdict()?.ok()
    }

    /// Why the certificate was not let pass.
    pub(super) fn refusal(&self) -> Option<TlsFailure> {
        self.verdict()?.err()
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<Certificate, TlsFailure> {
        let presented = Certificate::of(leaf);
        if !self.pins.is_empty() {
            return if self.pins.iter().any(|pin| presented.matches(*pin)) {
                Ok(presented)
            } else {
                Err(TlsFailure::NotPinned {
                    pins: self.pins.clone(),
                    from: self.pins_from.clone(),
                    presented: presented.into(),
                })
            };
        }
        // Whoever accepted this very certificate by hand has looked at it, and at no other.
        if let Some(known) = self.known.filter(|known| known.accepted) {
            return if known.certificate.fingerprint == presented.fingerprint {
                Ok(presented)
            } else {
                Err(TlsFailure::Changed { known: known.certificate.into(), presented: presented.into() })
            };
        }
        self.trusted(leaf, chain, name, now)
            .map_err(|error| TlsFailure::Untrusted { why: distrust(&error, name), presented: presented.into() })?;
        match self.known {
            // A renewed certificate with the same key is no change of the gateway.
            Some(known)
                if known.certificate.fingerprint != presented.fingerprint
                    && (presented.public_key.is_none() || known.certificate.public_key != presented.public_key) =>
            {
                Err(TlsFailure::Changed { known: known.certificate.into(), presented: presented.into() })
            }
            _ => Ok(presented),
        }
    }

    fn trusted(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), RustlsError> {
        match &self.authorities {
            // Reading the trust store takes milliseconds, so it is read only when a certificate depends on it.
            Authorities::System => rustls_platform_verifier::Verifier::new(Arc::clone(&self.provider))?
                .verify_server_cert(leaf, chain, name, &[], now),
            Authorities::These(verifier) => verifier.verify_server_cert(leaf, chain, name, &[], now),
        }
        .map(drop)
    }
}

fn distrust(error: &RustlsError, name: &ServerName<'_>) -> Distrust {
    let RustlsError::InvalidCertificate(error) = error else { return Distrust::Other(error.to_string()) };
    match error {
        // A bad signature: its issuer has the name of one that is trusted, and is another.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Distrust::UnknownIssuer,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Distrust::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Distrust::NotYet,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Distrust::WrongName(name.to_str().into_owned())
        }
        // webpki's word for a self-signed certificate that may issue others.
        error if error.to_string().contains("CaUsedAsEndEntity") => Distrust::UnknownIssuer,
        error => Distrust::Other(error.to_string()),
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        let verdict = self.judge(leaf, chain, name, now);
        let passes = verdict.is_ok();
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
        if passes {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(RustlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls12_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls13_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
