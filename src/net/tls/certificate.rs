//! The certificate and its key, as files: reading them, what clients pin of them, and a self-signed pair for a gateway
//! that has none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;

use crate::config::fingerprint::Fingerprint;
use crate::private_file::{Existing, write_private};

/// Bytes of either file. A chain of ten certificates has about 20 000.
const MAX_BYTES: u64 = 1 << 20;
/// How long a pair of our own lasts. Clients pin it, so an early end would only break them.
const VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How far a client's clock may be behind.
const BACKDATED: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the pair lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `gateway.tls.certPath`: PEM, the leaf first.
    pub cert: PathBuf,
    /// `gateway.tls.keyPath`: PEM.
    pub key: PathBuf,
    /// `gateway.tls.autoGenerate`: a pair is made when neither is there.
    pub may_make: bool,
}

/// What clients may pin: SHA-256 of the certificate, and of its public key, which outlives a renewal that keeps the
/// key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprints {
    /// Of the leaf's DER form, as `openssl x509 -fingerprint -sha256` prints it.
    pub certificate: Fingerprint,
    /// Of its `SubjectPublicKeyInfo` in DER (RFC 7469, section 2.4).
    pub public_key: Fingerprint,
}

/// Why there is no TLS. The text names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of each variant says what it is")]
pub enum TlsError {
    #[error(
        "{found} is there and {missing} is not: a certificate and its key belong together. Restore {missing}, or set gateway.tls.certPath and gateway.tls.keyPath"
    )]
    Half { found: PathBuf, missing: PathBuf },
    #[error("{path} is not there. Set {setting}, or gateway.tls.autoGenerate to true for a self-signed certificate")]
    Missing { path: PathBuf, setting: &'static str },
    #[error("{path} ({setting}) cannot be read: {error}")]
    Unreadable { path: PathBuf, setting: &'static str, error: io::Error },
    #[error("{path} ({setting}) is not {wanted}: {why}")]
    Malformed { path: PathBuf, setting: &'static str, wanted: &'static str, why: String },
    #[error("{cert} (gateway.tls.certPath) and {key} (gateway.tls.keyPath) cannot be used together: {why}")]
    NoPair { cert: PathBuf, key: PathBuf, why: String },
    #[error("a self-signed certificate cannot be made: {0}")]
    Make(String),
    #[error("{path} cannot be written: {error}")]
    Unwritable { path: PathBuf, error: io::Error },
}

const CERT_SETTING: &str = "gateway.tls.certPath";
const KEY_SETTING: &str = "gateway.tls.keyPath";

impl Files {
    pub(super) fn mismatch(&self, error: &rustls::Error) -> TlsError {
        TlsError::NoPair { cert: self.cert.clone(), key: self.key.clone(), why: error.to_string() }
    }
}

/// A pair that was read; not yet known to belong together.
pub(super) struct Pair {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) fingerprints: Fingerprints,
    /// Of both files: whether anything changed.
    pub(super) digest: [u8; 32],
}

/// Reads both files.
pub(super) fn read(files: &Files) -> Result<Pair, TlsError> {
    let cert = read_file(&files.cert, CERT_SETTING)?;
    let key = zeroize::Zeroizing::new(read_file(&files.key, KEY_SETTING)?);
    let (chain, fingerprints) = parse_chain(&files.cert, &cert)?;
    let parsed = PrivateKeyDer::from_pem_slice(&key).map_err(|error| TlsError::Malformed {
        path: files.key.clone(),
        setting: KEY_SETTING,
        wanted: "a private key in PEM without a passphrase",
        why: error.to_string(),
    })?;
    let digest = sha256(&[sha256(&cert).0, sha256(&key).0].concat()).0;
    Ok(Pair { chain, key: parsed, fingerprints, digest })
}

/// What clients may pin of the certificate in this file. Reads nothing else.
///
/// # Errors
/// [`TlsError`]: it is not there, or is no certificate.
pub fn fingerprints(cert: &Path) -> Result<Fingerprints, TlsError> {
    parse_chain(cert, &read_file(cert, CERT_SETTING)?).map(|(_, fingerprints)| fingerprints)
}

fn parse_chain(path: &Path, pem: &[u8]) -> Result<(Vec<CertificateDer<'static>>, Fingerprints), TlsError> {
    let malformed = |why: String| TlsError::Malformed {
        path: path.to_owned(),
        setting: CERT_SETTING,
        wanted: "a certificate in PEM",
        why,
    };
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| malformed(error.to_string()))?;
    let leaf = chain.first().ok_or_else(|| malformed("there is no certificate in it".to_owned()))?;
    let parsed = ParsedCertificate::try_from(leaf).map_err(|error| malformed(error.to_string()))?;
    let public_key = sha256(&parsed.subject_public_key_info());
    let fingerprints = Fingerprints { certificate: sha256(leaf), public_key };
    Ok((chain, fingerprints))
}

/// Makes a pair for `names` when neither file is there and it may. Says whether it did.
pub(super) fn make_if_missing(files: &Files, names: &[String]) -> Result<bool, TlsError> {
    match (files.cert.exists(), files.key.exists()) {
        (true, true) => return Ok(false),
        (true, false) => return Err(TlsError::Half { found: files.cert.clone(), missing: files.key.clone() }),
        (false, true) => return Err(TlsError::Half { found: files.key.clone(), missing: files.cert.clone() }),
        (false, false) if !files.may_make => {
            return Err(TlsError::Missing { path: files.cert.clone(), setting: CERT_SETTING });
        }
        (false, false) => {}
    }
    let (cert, key) = self_signed(names).map_err(|error| TlsError::Make(error.to_string()))?;
    let write = |path: &Path, pem: &str| {
        write_private(path, pem.as_bytes(), Existing::Keep)
            .map_err(|error| TlsError::Unwritable { path: path.to_owned(), error })
    };
    write(&files.key, &key)?;
    write(&files.cert, &cert).inspect_err(|_| drop(fs::remove_file(&files.key)))?;
    Ok(true)
}

/// A certificate and its key, in PEM.
fn self_signed(names: &[String]) -> Result<(String, zeroize::Zeroizing<String>), rcgen::Error> {
    let now = SystemTime::now();
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "clawgate");
    (params.not_before, params.not_after) = ((now - BACKDATED).into(), (now + VALIDITY).into());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let cert = params.self_signed(&key)?;
    Ok((cert.pem(), zeroize::Zeroizing::new(key.serialize_pem())))
}

fn read_file(path: &Path, setting: &'static str) -> Result<Vec<u8>, TlsError> {
    let unreadable = |error| TlsError::Unreadable { path: path.to_owned(), setting, error };
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > MAX_BYTES {
        return Err(unreadable(io::Error::other(format!("it is longer than {MAX_BYTES} bytes"))));
    }
    fs::read(path).map_err(unreadable)
}

fn sha256(bytes: &[u8]) -> Fingerprint {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    Fingerprint(out)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    fn files(folder: &Path) -> Files {
        Files { cert: folder.join("deep/er/cert.pem"), key: folder.join("deep/er/key.pem"), may_make: true }
    }

    fn names() -> Vec<String> {
        ["localhost", "127.0.0.1", "::1", "box.example"].map(str::to_owned).into()
    }

    #[test]
    fn the_key_is_private_and_the_names_are_those_of_the_bind() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        assert!(make_if_missing(&files, &names()).unwrap());
        assert_eq!(fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(files.key.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let pair = read(&files).unwrap();
        let leaf = rustls::pki_types::CertificateDer::from(pair.chain[0].to_vec());
        let cert = ParsedCertificate::try_from(&leaf).unwrap();
        for name in names() {
            let name = rustls::pki_types::ServerName::try_from(name).unwrap();
            rustls::client::verify_server_name(&cert, &name).unwrap();
        }
        let other = rustls::pki_types::ServerName::try_from("other.example").unwrap();
        rustls::client::verify_server_name(&cert, &other).unwrap_err();
    }

    #[test]
    fn fingerprints_are_those_of_openssl() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        make_if_missing(&files, &names()).unwrap();
        let found = fingerprints(&files.cert).unwrap();
        let Ok(said) = Command::new("openssl")
            .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
            .arg(&files.cert)
            .output()
        else {
            assert!(std::env::var_os("CI").is_none(), "openssl is missing");
            return;
        };
        let said = String::from_utf8(said.stdout).unwrap();
        assert_eq!(Fingerprint::parse(&said).unwrap(), found.certificate);
        let key = KeyPair::from_pem(&fs::read_to_string(&files.key).unwrap()).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        assert_eq!(sha256(&spki), found.public_key);
    }

    #[test]
    fn half_a_pair_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        make_if_missing(&files, &names()).unwrap();
        fs::remove_file(&files.cert).unwrap();
        let error = make_if_missing(&files, &names()).unwrap_err().to_string();
        assert!(error.contains("key.pem is there") && error.contains("gateway.tls.certPath"), "{error}");
        assert!(!files.cert.exists());
    }

    #[test]
    fn what_is_missing_or_broken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files { may_make: false, ..files(folder.path()) };
        assert!(make_if_missing(&files, &[]).unwrap_err().to_string().contains("autoGenerate"));
        fs::create_dir_all(files.cert.parent().unwrap()).unwrap();
        fs::write(&files.cert, "no certificate").unwrap();
        fs::write(&files.key, "no key").unwrap();
        let error = read(&files).err().unwrap().to_string();
        assert!(error.contains("cert.pem (gateway.tls.certPath) is not a certificate"), "{error}");
    }
}
