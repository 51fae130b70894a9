//! The certificates of gateways that this machine has met: `identity/gateway-certificates.json` in the state
//! directory, mode 0600, by host and port.
//!
//! A file that is there and cannot be understood is an error, not an empty file: it would let every certificate be a
//! first one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::super::url_policy::GatewayUrl;
use super::Certificate;
use crate::clock::UnixMs;
use crate::config::fingerprint::Fingerprint;
use crate::private_file::{Existing, write_private};

/// Gateways that are remembered; the one that was met longest ago goes first.
const MAX_GATEWAYS: usize = 1000;

/// Why the file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the certificates of known gateways in {} cannot be used: {why}. If the file is lost, remove it; each gateway then \
     counts as new", .path.display()
)]
pub struct KnownError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub why: String,
}

/// What is remembered of one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its certificate.
    pub certificate: Certificate,
    /// A person accepted it: it needs no issuer that this machine trusts.
    pub accepted: bool,
}

/// The file.
#[derive(Debug)]
pub struct KnownGateways {
    path: PathBuf,
    file: File,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    version: u32,
    gateways: BTreeMap<String, Stored>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key_sha256: Option<String>,
    #[serde(default)]
    accepted: bool,
    met_at_ms: UnixMs,
}

impl KnownGateways {
    /// Reads the file in `state_dir`; one that is not there is empty.
    ///
    /// # Errors
    /// [`KnownError`].
    pub fn load(state_dir: &Path) -> Result<Self, KnownError> {
        let path = state_dir.join("identity").join("gateway-certificates.json");
        let file = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<File>(&text).map_err(|error| error.to_string()).and_then(|file| {
                let readable = file.gateways.values().all(|stored| stored.entry().is_some());
                if readable { Ok(file) } else { Err("it holds what is no fingerprint".to_owned()) }
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(File { version: 1, ..File::default() }),
            Err(error) => Err(error.to_string()),
        };
        match file {
            Ok(file) => Ok(Self { path, file }),
            Err(why) => Err(KnownError { path, why }),
        }
    }

    /// What is remembered of the gateway at `url`.
    pub fn get(&self, url: &GatewayUrl) -> Option<Entry> {
        self.file.gateways.get(&url.authority())?.entry()
    }

    /// Remembers what the gateway at `url` presented.
    ///
    /// # Errors
    /// [`KnownError`].
    pub fn put(&mut self, url: &GatewayUrl, certificate: Certificate) -> Result<(), KnownError> {
        self.keep(url, Entry { certificate, accepted: false })
    }

    /// Accepts `fingerprint` for the gateway at `url`, whoever issued it.
    ///
    /// # Errors
    /// [`KnownError`].
    pub fn accept(&mut self, url: &GatewayUrl, fingerprint: Fingerprint) -> Result<(), KnownError> {
        self.keep(url, Entry { certificate: Certificate { fingerprint, public_key: None }, accepted: true })
    }

    /// Forgets the gateway at `url`; false when it was not known.
    ///
    /// # Errors
    /// [`KnownError`].
    pub fn forget(&mut self, url: &GatewayUrl) -> Result<bool, KnownError> {
        let was_known = self.file.gateways.remove(&url.authority()).is_some();
        if was_known {
            self.write()?;
        }
        Ok(was_known)
    }

    fn keep(&mut self, url: &GatewayUrl, entry: Entry) -> Result<(), KnownError> {
        let Certificate { fingerprint, public_key } = entry.certificate;
        let stored = Stored {
            sha256: fingerprint.to_string(),
            public_key_sha256: public_key.map(|key| key.to_string()),
            accepted: entry.accepted,
            met_at_ms: UnixMs::now(),
        };
        self.file.gateways.insert(url.authority(), stored);
        while self.file.gateways.len() > MAX_GATEWAYS {
            let oldest =
                self.file.gateways.iter().min_by_key(|(_, stored)| stored.met_at_ms).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.file.gateways.remove(&key));
        }
        self.write()
    }

    fn write(&self) -> Result<(), KnownError> {
        let failed = |why: String| KnownError { path: self.path.clone(), why };
        let text = serde_json::to_string_pretty(&self.file).map_err(|error| failed(error.to_string()))?;
        write_private(&self.path, text.as_bytes(), Existing::Replace).map_err(|error| failed(error.to_string()))
    }
}

impl Stored {
    fn entry(&self) -> Option<Entry> {
        let public_key = match &self.public_key_sha256 {
            Some(key) => Some(Fingerprint::parse(key).ok()?),
            None => None,
        };
        let fingerprint = Fingerprint::parse(&self.sha256).ok()?;
        Some(Entry { certificate: Certificate { fingerprint, public_key }, accepted: self.accepted })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn certificate(n: u8) -> Certificate {
        Certificate { fingerprint: Fingerprint([n; 32]), public_key: Some(Fingerprint([n + 1; 32])) }
    }

    #[test]
    fn remembers_by_host_and_port_in_a_private_file() {
        let state = tempfile::tempdir().unwrap();
        let url = |text: &str| GatewayUrl::parse(text).unwrap();
        let mut known = KnownGateways::load(state.path()).unwrap();
        assert_eq!(known.get(&url("wss://a.example")), None);
        known.put(&url("wss://a.example"), certificate(1)).unwrap();
        known.accept(&url("wss://a.example:8443"), Fingerprint([9; 32])).unwrap();
        let known = KnownGateways::load(state.path()).unwrap();
        let first = known.get(&url("wss://A.example:443/path")).unwrap();
        assert_eq!(first, Entry { certificate: certificate(1), accepted: false });
        let second = known.get(&url("wss://a.example:8443")).unwrap();
        assert!(second.accepted && second.certificate.fingerprint == Fingerprint([9; 32]));
        assert_eq!(fs::metadata(&known.path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut known = known;
        assert_eq!(known.forget(&url("wss://a.example")), Ok(true));
        assert_eq!(KnownGateways::load(state.path()).unwrap().get(&url("wss://a.example")), None);
    }

    #[test]
    fn a_broken_file_is_not_an_empty_one() {
        let state = tempfile::tempdir().unwrap();
        let path = KnownGateways::load(state.path()).unwrap().path;
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for broken in ["", "{", r#"{"version":1,"gateways":{"a:1":{"sha256":"00","metAtMs":1}}}"#] {
            fs::write(&path, broken).unwrap();
            let error = KnownGateways::load(state.path()).unwrap_err().to_string();
            assert!(error.contains("gateway-certificates.json"), "{error}");
        }
    }
}
